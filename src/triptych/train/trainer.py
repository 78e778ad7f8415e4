"""What the loop needs of a system: one trainer object for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from triptych.train.sampling import DataMix

ParameterGroups = list[dict[str, Any]]


class Trainer(Protocol):
    """A model, its data and its recipe.

    ``objective``: ``forward(*batch)`` is the loss; its attribute ``last``, where it has one, holds the terms of the last loss for the log.
    ``mix``: how many training items each data set has, and its share. ``metric``: the name of the figure that validations are compared
    by; greater is better.
    """

    @property
    def objective(self) -> nn.Module: ...

    @property
    def mix(self) -> DataMix: ...

    @property
    def metric(self) -> str: ...

    def identity(self) -> Mapping[str, Any]:
        """What the run is (recipe, model, data), as plain values: a run that was started as another is not resumed."""

    def prepare(self, run: Path, new: bool) -> None:
        """Called once before the first step of this process; ``new``: the run starts, it is not resumed."""

    def parameter_groups(self) -> ParameterGroups:
        """As AdamW takes them; an ``lr_scale`` multiplies the learning rate of its group."""

    def batch(self, rows: Sequence[int], seed: int) -> tuple[Any, ...]:
        """What ``objective`` takes: of these rows of all training items, one data set behind the other."""

    def validate(self) -> dict[str, float]:
        """The figures of the present state; runs on the main process after each epoch."""

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        """Write a checkpoint; ``record``: the epoch, the step and the figures."""


def train_bridges(model: nn.Module) -> None:
    """All parameters are trained but those of the frozen encoder and language model of BLIP-2 and Flamingo."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("vision_encoder.", "lm.")))
