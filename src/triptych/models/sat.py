"""Show, Attend and Tell on disk.

``config.json``: ``system``, ``model`` (the config dataclass), ``encoder`` (name, cut, and where its frozen weights come from), ``search``
(how text is made by default), ``card`` (recipe and figures). ``model.safetensors``: the trained tensors. ``vocabulary.json``: the words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoints.format import load_checkpoint, load_strict, save_checkpoint
from triptych.checkpoints.parts import PARTS
from triptych.checkpoints.quantize import stored_as
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models.locate import part_fingerprint, published_encoder
from triptych.nn.cnn import ENCODERS, ConvNet
from triptych.systems.show_attend_tell import ShowAttendTell, ShowAttendTellConfig
from triptych.text.vocabulary import BOS, EOS, PAD, UNK, WordVocabulary


@dataclass(frozen=True)
class Sat:
    """A Show, Attend and Tell model with all that is needed to use it."""

    model: ShowAttendTell
    vocabulary: WordVocabulary
    search: Search
    config: Mapping[str, Any]


def save_sat(
    directory: Path,
    model: ShowAttendTell,
    vocabulary: WordVocabulary,
    search: Search,
    card: Mapping[str, Any],
    whole_encoder: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint. ``whole_encoder``: keep the frozen layers in it as well (needed where they are no embedded part)."""
    encoder = model.encoder
    whole = whole_encoder or encoder.name not in {part.name for part in PARTS}
    config = {
        "system": "sat",
        "model": asdict(model.config),
        "encoder": {
            "name": encoder.name,
            "cut": encoder.cut,
            "part": None if whole else part_fingerprint(encoder.name),
        },
        "search": {
            "beams": search.beams,
            "length_penalty": search.length_penalty,
            "max_new_tokens": search.max_new_tokens,
        },
        "card": dict(card),
    }
    tensors = model.state_dict() if whole else trained_tensors(model)
    save_checkpoint(
        directory,
        config=config,
        tensors=stored_as(tensors, dtype),
        extra_files={"vocabulary.json": json.dumps({"words": vocabulary.words}, indent=0) + "\n"},
    )


def load_sat(directory: Path) -> Sat:
    """Read a checkpoint and build the model over its frozen encoder.

    Raises:
        InputError: a file is missing, damaged, of another system, or does not fit the model.
    """
    config, tensors = load_checkpoint(directory)
    if config["system"] != "sat":
        raise InputError(f"{directory} holds a {config['system']} model, not sat")
    try:
        spec = config["encoder"]
        model_config = ShowAttendTellConfig(**config["model"])
        vocabulary = read_vocabulary(directory / "vocabulary.json")
        search = sat_search(**config["search"])
        part = spec["part"]
        if part is not None and part != part_fingerprint(spec["name"]):
            raise InputError(f"{directory} was trained over another {spec['name']} than this version fetches")
        encoder = ENCODERS[spec["name"]](spec["cut"]) if part is None else published_encoder(spec["name"], spec["cut"])
    except (KeyError, TypeError, StopIteration) as error:
        raise InputError(f"{directory / 'config.json'} is not a complete sat config ({error})") from None
    if len(vocabulary) != model_config.vocab_size:
        raise InputError(f"{directory}: {len(vocabulary)} words, but the model was made for {model_config.vocab_size}")
    model = ShowAttendTell(model_config, encoder)
    load_strict(model, tensors, source=directory, optional_prefixes=() if part is None else frozen_prefixes(encoder))
    return Sat(model.eval().requires_grad_(False), vocabulary, search, config)


def frozen_prefixes(encoder: ConvNet) -> tuple[str, ...]:
    return tuple(f"encoder.layers.{i}." for i in range(encoder.cut))


def sat_search(**settings: Any) -> Search:
    """Search settings that never choose a special word but the end."""
    return Search(frozenset({EOS}), banned=frozenset({PAD, BOS, UNK}), **settings)


def read_vocabulary(path: Path) -> WordVocabulary:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))["words"]
        return WordVocabulary(tuple(map(str, words)))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a vocabulary: {error}") from None


def trained_tensors(model: ShowAttendTell) -> dict[str, Tensor]:
    """What a checkpoint holds: all but the frozen trunk of the encoder."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith(frozen_prefixes(model.encoder))}
