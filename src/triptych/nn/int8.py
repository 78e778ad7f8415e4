"""A linear layer whose weights stay 8-bit integers in memory, for language models that do not fit in 16 bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """``x [.., D] -> x W^T + b [.., N]`` with ``W [N, D]`` = ``codes`` times the ``scale`` of their row, computed in the dtype of ``x``."""

    codes: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(x, self.codes.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias.to(x.dtype)
