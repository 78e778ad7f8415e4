"""Linear layers of the language model, quick on a CPU.

Weights lie in memory as one row of input reads them best; several rows go to oneDNN, in decoding with a packed copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedWeight(NamedTuple):
    """A weight as oneDNN likes it best, and what it was made from."""

    weight: Tensor
    source: Tensor  # the same memory as the weight's, kept so that no other tensor can come to lie there
    version: int

    def of(self, weight: Tensor) -> bool:
        return self.source.data_ptr() == weight.data_ptr() and self.version == weight._version


class CpuProduct(nn.Module):
    """A module whose ``weight [N, D]`` is multiplied with, fast in decoding on a CPU (fp32, without gradients).

    One row is as fast as memory can be read where the weight lies there as ``[D, N]``: so it is loaded. Several rows go to oneDNN, which
    on some processors is nearly twice as fast as MKL; in one step of several texts they take a packed copy of the weight, which is
    half as fast again. The copy is as large as the weight. It is made at the first such step, made anew when the weight has changed,
    dropped when the module moves, and never copied or saved. Where oneDNN is switched off (``torch.backends.mkldnn``), there is none.
    """

    weight: Tensor
    keeps_packed = True  # not where weights come and go (``models.placement``)
    _packed: PackedWeight | None = None

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [.., T, D]`` -> ``x weight^T + bias [.., T, N]``."""
        if x.shape[:-1].numel() == 1 or not onednn_multiplies(x, self.weight):
            return F.linear(x, self.weight, bias)
        one_step = (
            x.shape[-2] == 1 and self.keeps_packed and not self.weight.is_inference()
        )  # those have no version counter
        weight = self.packed() if one_step else self.weight
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    def packed(self) -> Tensor:
        if self._packed is None or not self._packed.of(self.weight):
            source = self.weight.detach()
            self._packed = PackedWeight(torch.ops.mkldnn._reorder_linear_weight(source), source, self.weight._version)
        return self._packed.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CpuProduct:
        self._packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        rows, columns = self.weight.shape
        if rows >= columns:  # MKL takes few long sums faster as they are
            self.weight.data = self.weight.data.t().contiguous().t()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}


def onednn_multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes the product: in fp32 on a CPU, without gradients."""
    return (
        not torch.is_grad_enabled()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch._C._has_mkldnn
        and torch._C._get_mkldnn_enabled()
    )


class Linear(CpuProduct, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)


class Embedding(CpuProduct, nn.Embedding):
    """Word embeddings that are the output layer, too."""
