"""Weights as 8-bit integers, for checkpoints a quarter the size: each row of a matrix has its own scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"
SMALLEST = 1 << 14  # numbers; smaller tensors stay 16-bit floats


def stored_as(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The floats among ``tensors`` in another width; ``torch.int8``: see ``quantize``."""
    if dtype == torch.int8:
        return quantize(tensors)
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def quantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each large matrix ``w [N, M]`` becomes int8 ``round(w / scale)`` and ``scale [N]`` = max |w| / 127 of its row; the rest fp16."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or tensor.numel() < SMALLEST or not tensor.is_floating_point():
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
            continue
        scale = tensor.abs().amax(1).clamp_min(1e-12) / 127
        stored[name] = (tensor / scale[:, None]).round().to(torch.int8)
        stored[name + SCALE] = scale.float()
    return stored


def dequantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``quantize`` stored, as fp32 under its own names; tensors without a scale as they are."""
    scales = {name: tensors[name + SCALE] for name in tensors if name + SCALE in tensors}
    return {
        name: tensor.float() * scales[name][:, None] if name in scales else tensor
        for name, tensor in tensors.items()
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) in scales)
    }
