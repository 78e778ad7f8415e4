"""A moving average of the trained weights, which is validated and saved instead of the noisier weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- d average + (1 - d) weights after each step, d = min(``decay``, (1 + step) / (10 + step)), so that it soon forgets its
    start. With a ``decay`` of 0 there is no average, and every method does nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [p for p in model.parameters() if p.requires_grad] if decay else []
        self.tensors = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """``step``: the number of steps before this one."""
        if self.tensors:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.tensors, [p.detach() for p in self.parameters], weight)

    @torch.no_grad()
    def load(self, tensors: Sequence[Tensor]) -> None:
        for own, saved in zip(self.tensors, tensors, strict=True):
            own.copy_(saved)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights within the block, and its own afterwards."""
        own = [p.detach().clone() for p in self.parameters]
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.copy_(tensor)
