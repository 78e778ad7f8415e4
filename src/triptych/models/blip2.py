"""BLIP-2 on disk.

``config.json``: ``system``, ``model`` (the config dataclass), ``encoder`` and ``lm`` (names, and the sha256 of their frozen weights),
``search`` (how text is made by default), ``prompts`` (how it is asked for), ``card`` (recipe and figures). ``model.safetensors``: the
trained tensors, as fp32, fp16 or int8. ``vocab.txt``: the Q-Former's word pieces, if it reads text.

A published model has its frozen parts in the checkpoint, too: the encoder where its ``part`` is None, the language model where ``lm``
has a ``config``. Its tensors are under ``lm.`` then, its tokenizer's files lie beside them, and ``eos`` are the tokens that end a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from triptych.checkpoints.format import load_checkpoint, load_strict, save_checkpoint
from triptych.checkpoints.quantize import stored_as
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models.frozen import FROZEN, frozen_encoder, frozen_entries, frozen_lm, tensors_to_save
from triptych.nn.qformer import QFormerConfig
from triptych.systems.blip2 import Blip2, Blip2Config
from triptych.text.prompt import DEFAULT_PROMPTS, Prompts
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import SPECIALS, WordPieces


@dataclass(frozen=True)
class Blip2Model:
    """A BLIP-2 model with all that is needed to use it."""

    model: Blip2
    words: WordPieces
    tokenizer: TextTokenizer | None  # of the language model; None = the first stage alone
    search: Search
    config: Mapping[str, Any]
    prompts: Prompts = DEFAULT_PROMPTS
    files: Mapping[str, bytes] = field(
        default_factory=dict
    )  # of the tokenizer, where the checkpoint holds the language model


def save_blip2(
    directory: Path,
    blip2: Blip2Model,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint of the trained tensors; of the frozen parts too where they come from no other place. ``dtype`` int8: see
    ``quantize``."""
    stored = stored_as(tensors_to_save(blip2.model, blip2.config), dtype)
    config = {
        "system": "blip2",
        "model": asdict(blip2.model.config),
        **frozen_entries(blip2.config, blip2.search),
        "prompts": asdict(blip2.prompts),
        "card": dict(card),
    }
    vocabulary = {"vocab.txt": "\n".join(blip2.words.words) + "\n"} if blip2.model.config.qformer.vocab_size else {}
    save_checkpoint(directory, config=config, tensors=stored, extra_files={**vocabulary, **blip2.files})


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
        lm = None if lm_spec is None else frozen_lm(directory, lm_spec, tensors)
        search = blip2_search(lm.tokenizer if lm else None, **config["search"])
        prompts = Prompts(**config.get("prompts", {}))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"{directory / 'config.json'} is not a complete blip2 config ({error})") from None
    words = WordPieces.read(directory / "vocab.txt") if model_config.qformer.vocab_size else WordPieces(SPECIALS)
    files = {n: (directory / n).read_bytes() for n in config["files"] if n not in ("model.safetensors", "vocab.txt")}
    model = Blip2(model_config, encoder, lm.decoder if lm else None)
    optional = ("lm.",) if spec["part"] is None else FROZEN
    load_strict(model, tensors, source=directory, optional_prefixes=optional)
    tokenizer = lm.tokenizer if lm else None
    return Blip2Model(model.eval().requires_grad_(False), words, tokenizer, search, config, prompts, files)


def blip2_search(tokenizer: TextTokenizer | None, **settings: Any) -> Search:
    """Search settings that end where the language model ends its turn."""
    return Search(tokenizer.eos_ids if tokenizer else frozenset(), **settings)


def itg_search(words: WordPieces, search: Search) -> Search:
    """The same search over word pieces: a text ends with [SEP] and holds no other special word."""
    return replace(search, eos=frozenset({words.sep}), banned=frozenset({words.pad, words.unk, words.cls, words.dec}))
