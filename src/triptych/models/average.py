"""The mean of the weights of several checkpoints of one model: often better than each (Wortsman et al. 2022, "Model soups")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from triptych.errors import InputError
from triptych.models.frozen import tensors_to_save
from triptych.models.registry import system_of


@torch.no_grad()
def average_checkpoints(directories: Sequence[Path], target: Path) -> None:
    """Write the mean of the trained weights of the checkpoints in ``directories`` as a checkpoint, in fp32.

    What else belongs to it, such as search settings and frozen parts, is the first one's.

    Raises:
        InputError: there are fewer than two, or they are not of one architecture with the same frozen parts.
    """
    if len(directories) < 2:
        raise InputError(f"{len(directories)} checkpoints: give two or more to take the mean of")
    system = system_of(directories[0])
    load = system.resolve("load")
    first = load(directories[0])
    config = first.config
    means = tensors_to_save(first.model, config)
    for count, directory in enumerate(directories[1:], 2):
        if system_of(directory) is not system:
            raise InputError(f"{directory} is another system than {directories[0]}")
        other = load(directory)
        for part in ("model", "encoder", "lm"):
            if getattr(other.config, part, None) != getattr(config, part, None):
                raise InputError(f"{directory} has another {part} than {directories[0]}: their weights have no mean")
        if getattr(other, "vocabulary", None) != getattr(first, "vocabulary", None):
            raise InputError(f"{directory} has another vocabulary than {directories[0]}: their weights have no mean")
        for name, tensor in tensors_to_save(other.model, other.config).items():
            if tensor.is_floating_point():
                means[name].lerp_(tensor.to(means[name].dtype), 1 / count)
    card = msgspec.structs.replace(config.card, notes={**config.card.notes, "mean_of": len(directories)})
    system.resolve("save")(target, first, card)
