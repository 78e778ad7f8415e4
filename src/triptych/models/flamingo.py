"""Flamingo on disk.

``config.json``: ``system``, ``model`` (the config dataclass), ``encoder`` and ``lm`` (names, and the sha256 of their frozen weights),
``search`` (how text is made by default), ``end_id`` (the token that ends an example), ``card`` (recipe and figures).
``model.safetensors``: the trained tensors, as fp32, fp16 or int8. A published model has its frozen parts in the checkpoint, too, as
BLIP-2's (``pretrained.blip2``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from triptych.checkpoints.format import load_checkpoint, load_strict, save_checkpoint
from triptych.checkpoints.quantize import stored_as
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models.frozen import FROZEN, frozen_encoder, frozen_entries, frozen_lm, tensors_to_save
from triptych.systems.flamingo import Flamingo, FlamingoConfig
from triptych.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class FlamingoModel:
    """A Flamingo with all that is needed to use it. ``end_id`` ends an example, and so what is written."""

    model: Flamingo
    tokenizer: TextTokenizer
    search: Search
    end_id: int
    config: Mapping[str, Any]
    files: Mapping[str, bytes] = field(
        default_factory=dict
    )  # of the tokenizer, where the checkpoint holds the language model


def save_flamingo(
    directory: Path, flamingo: FlamingoModel, card: Mapping[str, Any], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a checkpoint of the trained tensors; of the frozen parts too where they come from no other place. ``dtype`` int8: see
    ``quantize``."""
    tensors = tensors_to_save(flamingo.model, flamingo.config)
    config = {
        "system": "flamingo",
        "model": asdict(flamingo.model.config),
        **frozen_entries(flamingo.config, flamingo.search),
        "end_id": flamingo.end_id,
        "card": dict(card),
    }
    save_checkpoint(directory, config=config, tensors=stored_as(tensors, dtype), extra_files=dict(flamingo.files))


def load_flamingo(directory: Path) -> FlamingoModel:
    """Read a checkpoint and build the model between its frozen parts.

    Raises:
        InputError: a file is missing, damaged, of another system, or does not fit; a tensor is not finite; or a frozen part is another
            than in training.
    """
    config, tensors = load_checkpoint(directory)
    if config["system"] != "flamingo":
        raise InputError(f"{directory} holds a {config['system']} model, not flamingo")
    if broken := sorted(name for name, x in tensors.items() if x.is_floating_point() and not bool(x.isfinite().all())):
        raise InputError(f"{directory}: {broken[0]} is not finite: the checkpoint is damaged or its training diverged")
    try:
        model_config = FlamingoConfig(**config["model"])
        encoder = frozen_encoder(directory, config["encoder"])
        lm = frozen_lm(directory, config["lm"], tensors)
        end_id = int(config["end_id"])
        if not (
            0 <= end_id < lm.decoder.config.vocab_size and 0 <= model_config.image_id < lm.decoder.config.vocab_size
        ):
            raise InputError(f"{directory}: its image_id or end_id is no token of its language model")
        model = Flamingo(model_config, encoder, lm.decoder)
        search = Search(frozenset({end_id}), banned=frozenset({model_config.image_id}), **config["search"])
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / 'config.json'} is not a complete flamingo config ({error})") from None
    files = {name: (directory / name).read_bytes() for name in config["files"] if name != "model.safetensors"}
    optional = ("lm.",) if config["encoder"]["part"] is None else FROZEN
    load_strict(model, tensors, source=directory, optional_prefixes=optional)
    return FlamingoModel(model.eval().requires_grad_(False), lm.tokenizer, search, end_id, config, files)
