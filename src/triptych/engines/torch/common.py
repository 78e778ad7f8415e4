"""Shared by the reference engines: encoding photos, scoring texts, counting parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from triptych.engines.interface import Array, PhotoSpec
from triptych.evidence import Floats
from triptych.logits import not_finite_error, to_numpy
from triptych.models.memory import bytes_available
from triptych.nn.int8 import Int8Linear
from triptych.nn.linear import CpuProduct

M = TypeVar("M", bound=nn.Module)


def on_device(model: M, device: torch.device) -> M:
    """The model on ``device``, unless ``models.placement`` has placed its parts."""
    if hasattr(model, "hf_device_map"):
        return model
    model = model.to(device)
    products = [module for module in model.modules() if isinstance(module, CpuProduct)]
    copies, free = sum(module.weight.nbytes for module in products), bytes_available(torch.device("cpu"))
    if device.type == "cpu" and free is not None and copies > free / 2:
        for module in products:  # packed copies, which make several beams faster, would take the remaining memory
            module.keeps_packed = False
    return model


class TorchEncoder:
    """The frozen image encoder of a model on ``device``. ``encode_pixels``: pixels -> features ``[B, L, D]`` or ``[B, D, h, w]``."""

    def __init__(self, encoder: Any, encode_pixels: Callable[[Tensor], Tensor], device: torch.device) -> None:
        encoder.to(memory_format=torch.channels_last)
        self.photos = PhotoSpec(encoder.pixels, tuple(encoder.grid))
        self.encode_pixels, self.device = encode_pixels, device
        self.dtype: torch.dtype = next(encoder.parameters()).dtype

    @property
    def explains(self) -> bool:
        return True

    @torch.inference_mode()
    def encode(self, pixel_values: Array) -> list[Tensor]:
        """``[B, 3, H, W]`` -> the features of each photo, in memory of their own."""
        pixels = self.tensor(pixel_values).to(self.dtype, memory_format=torch.channels_last)
        return [features.clone(memory_format=torch.contiguous_format) for features in self.encode_pixels(pixels)]

    def pooled(self, features: Sequence[Array]) -> Floats:
        """The mean of each photo's features ``[L, D]`` over the grid: ``[B, D]``."""
        return to_numpy(self.stack(features).mean(1))

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def stack(self, arrays: Sequence[Array]) -> Tensor:
        return torch.stack([self.tensor(array) for array in arrays])


@torch.inference_mode()
def continuation_logprobs(
    first: Tensor, texts: Sequence[Sequence[int]], read_on: Callable[[Tensor], Tensor]
) -> list[list[float]]:
    """The log-probability of each token of each text after one prompt.

    Args:
        first: ``[1, V]``, the logits after the prompt.
        read_on: ids ``[C, T]`` after the prompt, one row for each text -> the logits ``[C, T, V]`` after each id.

    Raises TriptychError: one is not finite.
    """
    longest = max(map(len, texts))
    padded = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in texts], device=first.device)
    logits = first.expand(len(texts), -1)[:, None]
    if longest > 1:
        logits = torch.cat([logits, read_on(padded[:, :-1])], 1)
    logprobs = logits.float().log_softmax(-1).gather(2, padded[..., None])[..., 0]
    if not logprobs.isfinite().all():
        raise not_finite_error()
    return [logprobs[i, : len(row)].tolist() for i, row in enumerate(texts)]


def weight_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The parameters, and what stands for them in layers of 8-bit integers."""
    yield from model.parameters()
    yield from (layer.codes for layer in model.modules() if isinstance(layer, Int8Linear))


def count_parameters(model: nn.Module) -> dict[str, int]:
    """The number of parameters of each part."""
    return {name: sum(x.numel() for x in weight_tensors(part)) for name, part in model.named_children()}


def megabytes(model: nn.Module) -> float:
    return round(sum(x.nbytes for x in weight_tensors(model)) / 2**20, 1)
