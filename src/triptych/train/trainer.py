"""The interface between the training loop and a system: a trainer object for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from triptych.models.frozen import ADDED, FROZEN
from triptych.train.sampling import DataMix

ParameterGroups = list[dict[str, Any]]


class Trainer(Protocol):
    """A model, its data and its recipe.

    ``objective``: ``forward(*batch)`` is the loss; its optional attribute ``last`` has the terms of the last loss, for the log.
    ``mix``: the size of each data set, and its share. ``metric``: the name of the figure that decides which validation is the best; greater
    is better.
    """

    @property
    def objective(self) -> nn.Module: ...

    @property
    def mix(self) -> DataMix: ...

    @property
    def metric(self) -> str: ...

    def identity(self) -> Mapping[str, Any]:
        """The recipe, the model and the data, as plain values: only a run with the same identity is resumed."""

    def prepare(self, run: Path, new: bool) -> None:
        """Called once before the first step of this process; ``new``: the run is not resumed."""

    def parameter_groups(self) -> ParameterGroups:
        """AdamW's groups; an ``lr_scale`` multiplies the learning rate of its group."""

    def batch(self, rows: Sequence[int], seed: int) -> tuple[Any, ...]:
        """The arguments of ``objective`` for these training items, numbered over all data sets, one after another."""

    def validate(self) -> dict[str, float]:
        """The figures of the current state; runs on the main process after each epoch."""

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        """Write a checkpoint; ``record``: the epoch, the step and the figures."""


def train_bridges(model: nn.Module) -> None:
    """Make all parameters of BLIP-2 or Flamingo trainable except the frozen encoder's and language model's; tokens added to it are, too."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(ADDED) or not name.startswith(FROZEN))
