"""BLIP-2 on disk.

``config.json``: ``system``, ``model`` (the config dataclass), ``encoder`` and ``lm`` (names, and the sha256 of their frozen weights),
``search`` (how text is made by default), ``card`` (recipe and figures). ``model.safetensors``: the trained tensors, as fp32, fp16 or int8.
``vocab.txt``: the Q-Former's word pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from triptych.assets import PARTS, part_path
from triptych.blip2 import Blip2, Blip2Config
from triptych.checkpoint import load_checkpoint, load_strict, save_checkpoint, sha256_of
from triptych.cnn import ENCODERS, ConvNet
from triptych.errors import InputError
from triptych.generate import Search
from triptych.lm_tables import LanguageModel, load_language_model
from triptych.pretrained.parts import part_fingerprint, published_encoder
from triptych.qformer import QFormerConfig
from triptych.quantize import dequantize, quantize
from triptych.tokenizers import TextTokenizer
from triptych.wordpiece import WordPieces

FROZEN = ("vision_encoder.", "lm.")


@dataclass(frozen=True)
class Blip2Model:
    """A BLIP-2 model with all that is needed to use it."""

    model: Blip2
    words: WordPieces
    tokenizer: TextTokenizer | None  # of the language model; None = the first stage alone
    search: Search
    config: Mapping[str, Any]


def embedded_lm(name: str) -> LanguageModel:
    """A frozen language model: the name of an embedded part, a GGUF file, or a directory as transformers saves it."""
    return load_language_model(part_path(name) if name in {part.name for part in PARTS} else Path(name))


def lm_fingerprint(name: str, lm: LanguageModel) -> str:
    return part_fingerprint(name) if name in {part.name for part in PARTS} else sha256_of(lm.decoder)


def save_blip2(
    directory: Path,
    blip2: Blip2Model,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint of the trained tensors; of the encoder too where it is no embedded part. ``dtype`` int8: see ``quantize``."""
    encoder = blip2.config["encoder"]
    tensors = {
        name: tensor
        for name, tensor in blip2.model.state_dict().items()
        if not name.startswith(FROZEN) or (name.startswith("vision_encoder.") and encoder["part"] is None)
    }
    stored = quantize(tensors) if dtype == torch.int8 else {k: v.to(dtype) for k, v in tensors.items()}
    config = {
        "system": "blip2",
        "model": asdict(blip2.model.config),
        "encoder": encoder,
        "lm": blip2.config["lm"],
        "search": {name: getattr(blip2.search, name) for name in ("beams", "length_penalty", "max_new_tokens")},
        "card": dict(card),
    }
    vocabulary = "\n".join(blip2.words.words) + "\n"
    save_checkpoint(directory, config=config, tensors=stored, extra_files={"vocab.txt": vocabulary})


def load_blip2(directory: Path) -> Blip2Model:
    """Read a checkpoint and build the model between its frozen parts.

    Raises:
        InputError: a file is missing, damaged, of another system, or does not fit; or a frozen part is another than in training.
    """
    config, tensors = load_checkpoint(directory)
    if config["system"] != "blip2":
        raise InputError(f"{directory} holds a {config['system']} model, not blip2")
    try:
        spec, lm_spec = config["encoder"], config["lm"]
        settings = dict(config["model"])
        model_config = Blip2Config(QFormerConfig(**settings.pop("qformer")), **settings)
        encoder = frozen_encoder(directory, spec)
        lm = None if lm_spec is None else embedded_lm(lm_spec["name"])
        if lm is not None and lm_fingerprint(lm_spec["name"], lm) != lm_spec["sha256"]:
            raise InputError(f"{directory} was trained with another {lm_spec['name']} than is there now")
        search = blip2_search(lm.tokenizer if lm else None, **config["search"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{directory / 'config.json'} is not a complete blip2 config ({error})") from None
    words = WordPieces.read(directory / "vocab.txt")
    model = Blip2(model_config, encoder, lm.decoder if lm else None)
    optional = ("lm.",) if spec["part"] is None else FROZEN
    load_strict(model, dequantize(tensors), source=directory, optional_prefixes=optional)
    return Blip2Model(model.eval().requires_grad_(False), words, lm.tokenizer if lm else None, search, config)


def frozen_encoder(directory: Path, spec: Mapping[str, Any]) -> ConvNet:
    if spec["part"] is None:
        return ENCODERS[spec["name"]](None, spec["image_size"])
    if spec["part"] != part_fingerprint(spec["name"]):
        raise InputError(f"{directory} was trained over another {spec['name']} than this version fetches")
    return published_encoder(spec["name"], image_size=spec["image_size"])


def blip2_search(tokenizer: TextTokenizer | None, **settings: Any) -> Search:
    """Search settings that end where the language model ends its turn."""
    return Search(tokenizer.eos_ids if tokenizer else frozenset(), **settings)


def itg_search(words: WordPieces, search: Search) -> Search:
    """The same search over word pieces: a text ends with [SEP] and holds no other special word."""
    return replace(search, eos=frozenset({words.sep}), banned=frozenset({words.pad, words.unk, words.cls, words.dec}))
