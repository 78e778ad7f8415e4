"""Show, Attend and Tell on disk: the trained tensors, and ``vocabulary.json`` with the words (``config.json``: ``checkpoints.config``)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from triptych.checkpoints.config import Card, CheckpointConfig, SearchSpec
from triptych.checkpoints.format import load_typed, save_checkpoint
from triptych.checkpoints.place import fill, unallocated
from triptych.checkpoints.quantize import stored_as
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models.encoders import encoder_spec
from triptych.models.frozen import buildable, frozen_encoder
from triptych.nn.cnn import ConvNet
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import BOS, EOS, PAD, UNK, WordVocabulary, read_vocabulary


@dataclass(frozen=True)
class SatModel:
    """A Show, Attend and Tell model with all that is needed to use it."""

    model: ShowAttendTell
    vocabulary: WordVocabulary
    search: Search
    config: CheckpointConfig[ShowAttendTellConfig]

    @classmethod
    def new(
        cls, model: ShowAttendTell, vocabulary: WordVocabulary, search: Search, *, whole_encoder: bool = False
    ) -> SatModel:
        """``whole_encoder``: a checkpoint keeps the frozen layers as well (always where they are no embedded part)."""
        encoder, spec = encoder_spec(model.encoder, whole_encoder), SearchSpec.of(search, search.once is not None)
        config = CheckpointConfig(system="sat", model=model.config, encoder=encoder, search=spec)
        return cls(model, vocabulary, search, config)


def save_sat(directory: Path, sat: SatModel, card: Card, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint of the trained tensors, and of the encoder's frozen layers where its spec says so."""
    config = msgspec.structs.replace(
        sat.config, model=sat.model.config, search=SearchSpec.of(sat.search, sat.search.once is not None), card=card
    )
    tensors = sat.model.state_dict() if config.encoder.stored else trained_tensors(sat.model)
    vocabulary = {"vocabulary.json": json.dumps({"words": sat.vocabulary.words}, indent=0) + "\n"}
    save_checkpoint(directory, config=config, tensors=stored_as(tensors, dtype), extra_files=vocabulary)


def load_sat(directory: Path, *, dtype: torch.dtype = torch.float32) -> SatModel:
    """Read a checkpoint, as ``dtype``, and build the model over its frozen encoder.

    Raises:
        InputError: a file is missing, damaged, of another system, or does not fit the model.
    """
    config, tensors = load_typed(directory, "sat", ShowAttendTellConfig)
    vocabulary = read_vocabulary(directory / "vocabulary.json")
    if len(vocabulary) != config.model.vocab_size:
        raise InputError(f"{directory}: {len(vocabulary)} words, but the model was made for {config.model.vocab_size}")
    with buildable(directory):
        encoder = frozen_encoder(directory, config.encoder).to(dtype)
        if not isinstance(encoder, ConvNet):
            raise InputError(f"{directory}: encoder.vit is a vision transformer, expected a CNN")
        with unallocated():
            model = ShowAttendTell(config.model, encoder)
    frozen = () if config.encoder.stored else trunk_prefixes(encoder)
    fill(model, tensors, source=directory, optional_prefixes=frozen, dtype=dtype)
    search = caption_search(vocabulary, config.search)
    return SatModel(model.eval().requires_grad_(False), vocabulary, search, config)


def trunk_prefixes(encoder: ConvNet) -> tuple[str, ...]:
    return tuple(f"encoder.layers.{i}." for i in range(encoder.cut))


def caption_search(vocabulary: WordVocabulary, spec: SearchSpec) -> Search:
    """The search of a checkpoint's captions."""
    once = cache(vocabulary.repetitions) if spec.words_once else None
    return replace(spec.search(frozenset({EOS}), frozenset({PAD, BOS, UNK})), once=once)


def sat_search(**settings: Any) -> Search:
    """Search settings that never choose a special word but the end."""
    return Search(frozenset({EOS}), banned=frozenset({PAD, BOS, UNK}), **settings)


def trained_tensors(model: ShowAttendTell) -> dict[str, Tensor]:
    """What a checkpoint holds: all but the frozen trunk of the encoder."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith(trunk_prefixes(model.encoder))}
