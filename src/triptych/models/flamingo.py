"""Flamingo on disk: the trained tensors and those of the stored frozen parts, as fp32, fp16 or int8; and the files of a stored
language model's tokenizer. What ``config.json`` says: ``checkpoints.config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from triptych.checkpoints.config import Card, CheckpointConfig
from triptych.checkpoints.format import load_typed, save_checkpoint
from triptych.checkpoints.language_models import decoder_only
from triptych.checkpoints.place import unallocated
from triptych.checkpoints.quantize import stored_as
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models.frozen import ADDED, buildable, frozen_parts, tensors_to_save
from triptych.models.placement import ModelFiles, Placement, fill_model
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo
from triptych.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class FlamingoModel:
    """A Flamingo with all that is needed to use it."""

    model: Flamingo
    tokenizer: TextTokenizer
    search: Search
    config: CheckpointConfig[FlamingoConfig]
    files: Mapping[str, bytes] = field(default_factory=dict)  # of the tokenizer, where the language model is stored

    @property
    def end_id(self) -> int:
        """The token that ends an example, and so what is written."""
        assert self.config.lm is not None and self.config.lm.end_id is not None
        return self.config.lm.end_id


def save_flamingo(directory: Path, flamingo: FlamingoModel, card: Card, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint of the trained tensors and of the frozen parts whose specs say so. ``dtype`` int8: see ``quantize``."""
    config = msgspec.structs.replace(
        flamingo.config,
        model=flamingo.model.config,
        search=flamingo.config.search.with_search(flamingo.search),
        card=card,
    )
    tensors = stored_as(tensors_to_save(flamingo.model, config), dtype)
    save_checkpoint(directory, config=config, tensors=tensors, extra_files=flamingo.files)


def load_flamingo(
    directory: Path, *, dtype: torch.dtype = torch.float32, placement: Placement | None = None
) -> FlamingoModel:
    """Read a checkpoint, as ``dtype``, and build the model between its frozen parts; ``placement`` None = in memory.

    Raises:
        InputError: a file is missing, damaged, of another system, or does not fit; or a frozen part is another than in training.
    """
    config, tensors = load_typed(directory, "flamingo", FlamingoConfig)
    if config.lm is None or config.lm.end_id is None:
        raise InputError(f"{directory / 'config.json'}: lm.end_id is missing")
    with buildable(directory):
        encoder, language_model, tokenizer = frozen_parts(directory, config, dtype)
        assert language_model is not None and tokenizer is not None
        lm = decoder_only(language_model)
        with unallocated():
            model = Flamingo(config.model, encoder, lm)
    end_id, image_id, words = config.lm.end_id, config.model.image_id, lm.vocab_size
    for name, token in (("lm.end_id", end_id), ("model.image_id", image_id)):
        if not 0 <= token < words:
            raise InputError(f"{directory / 'config.json'}: {name} is {token}, expected a token from 0 to {words - 1}")
    if config.lm.added_tokens and f"{ADDED}embedding" not in tensors:
        raise InputError(f"{directory} lacks the rows of the tokens that were added to its language model")
    fill_model(model, ModelFiles(directory, config, tensors), dtype, placement)
    around = tokenizer.specials.get(config.prompts.around, image_id)
    search = config.search.search(frozenset({end_id}), frozenset({image_id, around}))
    files = {name: (directory / name).read_bytes() for name in config.files if name != config.weights}
    return FlamingoModel(model.eval().requires_grad_(False), tokenizer, search, config, files)
