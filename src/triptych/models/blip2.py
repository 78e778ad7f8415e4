"""BLIP-2 on disk: the trained tensors and those of the stored frozen parts (the language model's under ``lm.``), as fp32, fp16 or int8.

``vocab.txt``: the Q-Former's word pieces, if it reads text. The files of a stored language model's tokenizer lie beside it. What
``config.json`` says: ``checkpoints.config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from triptych.checkpoints.config import Card, CheckpointConfig
from triptych.checkpoints.format import load_typed, save_checkpoint
from triptych.checkpoints.place import unallocated
from triptych.checkpoints.quantize import stored_as
from triptych.checkpoints.store import MemoryStore, TensorStore
from triptych.generate import Search
from triptych.models.frozen import buildable, frozen_parts, tensors_to_save
from triptych.models.placement import ModelFiles, Placement, fill_model
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.text.prompt import Prompts
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import SPECIAL_PIECES, WordPieces


@dataclass(frozen=True)
class Blip2Model:
    """A BLIP-2 model with all that is needed to use it."""

    model: Blip2
    words: WordPieces
    tokenizer: TextTokenizer | None  # of the language model; None = the first stage alone
    search: Search
    config: CheckpointConfig[Blip2Config]
    files: Mapping[str, bytes] = field(default_factory=dict)  # of the tokenizer, where the language model is stored

    @property
    def prompts(self) -> Prompts:
        return self.config.prompts


def save_blip2(directory: Path, blip2: Blip2Model, card: Card, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint of the trained tensors and of the frozen parts whose specs say so. ``dtype`` int8: see ``quantize``."""
    config = msgspec.structs.replace(
        blip2.config,
        model=blip2.model.config,
        search=blip2.config.search.with_search(blip2.search),
        card=card,
    )
    tensors = MemoryStore(tensors_to_save(blip2.model, config))
    write_blip2(directory, config, tensors, blip2.words, blip2.files, dtype=dtype)


def write_blip2(
    directory: Path,
    config: CheckpointConfig[Blip2Config],
    tensors: TensorStore,
    words: WordPieces,
    files: Mapping[str, bytes],
    *,
    dtype: torch.dtype | None,
) -> None:
    """Write a checkpoint of tensors that need not be in memory. ``files``: of a stored language model's tokenizer."""
    vocabulary = {"vocab.txt": "\n".join(words.words) + "\n"} if config.model.qformer.vocab_size else {}
    save_checkpoint(directory, config=config, tensors=stored_as(tensors, dtype), extra_files={**vocabulary, **files})


def load_blip2(
    directory: Path, *, dtype: torch.dtype = torch.float32, placement: Placement | None = None
) -> Blip2Model:
    """Read a checkpoint, as ``dtype``, and build the model between its frozen parts; ``placement`` None = in memory.

    Raises:
        InputError: a file is missing, damaged, of another system, or does not fit; or a frozen part is another than in training.
    """
    config, tensors = load_typed(directory, "blip2", Blip2Config)
    with buildable(directory):
        encoder, lm, tokenizer = frozen_parts(directory, config, dtype)
        with unallocated():
            model = Blip2(config.model, encoder, lm)
    words = WordPieces.read(directory / "vocab.txt") if config.model.qformer.vocab_size else WordPieces(SPECIAL_PIECES)
    fill_model(model, ModelFiles(directory, config, tensors), dtype, placement)
    search = config.search.search(tokenizer.eos_ids if tokenizer else frozenset())
    files = {n: (directory / n).read_bytes() for n in config.files if n not in (config.weights, "vocab.txt")}
    return Blip2Model(model.eval().requires_grad_(False), words, tokenizer, search, config, files)


def blip2_search(tokenizer: TextTokenizer | None, **settings: Any) -> Search:
    """Search settings that end where the language model ends its turn."""
    return Search(tokenizer.eos_ids if tokenizer else frozenset(), **settings)
