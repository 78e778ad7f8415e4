"""The mean of the weights of several checkpoints of one model: often better than each (Wortsman et al. 2022, "Model soups")."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import torch

from triptych.checkpoints.config import EncoderSpec
from triptych.checkpoints.locate import load_config
from triptych.errors import InputError
from triptych.models.frozen import tensors_to_save
from triptych.models.registry import system_of


@torch.no_grad()
def average_checkpoints(directories: Sequence[Path], target: Path) -> None:
    """Write the mean of the trained weights of the checkpoints in ``directories`` as a checkpoint, in fp32.

    Layers of the encoder that some trained and others left as they were published count as such. What else belongs to the checkpoint, such
    as search settings and frozen parts, is that of the one with the most trained layers; of several the first.

    Raises:
        InputError: there are fewer than two, or they are not of one architecture with the same frozen parts.
    """
    if len(directories) < 2:
        raise InputError(f"{len(directories)} checkpoints: give two or more to take the mean of")
    first_index = min(range(len(directories)), key=lambda i: frozen_layers(directories[i]))
    first_directory = directories[first_index]
    system = system_of(first_directory)
    load = system.resolve("load")
    first = load(first_directory)
    config = first.config
    means = tensors_to_save(first.model, config)
    for count, directory in enumerate((*directories[:first_index], *directories[first_index + 1 :]), 2):
        if system_of(directory) is not system:
            raise InputError(f"{directory} is another system than {first_directory}")
        other = load(directory)
        for part in ("model", "encoder", "lm"):
            if whatever_is_trained(getattr(other.config, part)) != whatever_is_trained(getattr(config, part)):
                raise InputError(f"{directory} has another {part} than {first_directory}: their weights have no mean")
        if getattr(other, "vocabulary", None) != getattr(first, "vocabulary", None):
            raise InputError(f"{directory} has another vocabulary than {first_directory}: their weights have no mean")
        tensors = other.model.state_dict()
        for name, mean in means.items():
            if mean.is_floating_point():
                mean.lerp_(tensors[name].to(mean.dtype), 1 / count)
    card = msgspec.structs.replace(config.card, notes={**config.card.notes, "mean_of": len(directories)})
    system.resolve("save")(target, first, card)


def frozen_layers(directory: Path) -> float:
    """The number of layers of a checkpoint's encoder that are as they were published."""
    cut = load_config(directory).encoder.cut
    return inf if cut is None else cut


def whatever_is_trained(part: Any) -> Any:
    """What a checkpoint says of a part, without the number of frozen layers."""
    return msgspec.structs.replace(part, cut=None) if isinstance(part, EncoderSpec) else part
