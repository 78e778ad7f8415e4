"""Linear layers of the language model, made fast for decoding on a CPU: see ``CpuProduct``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedWeight(NamedTuple):
    """A weight in oneDNN's own layout, and the weight that it was made from."""

    weight: Tensor
    source: Tensor  # shares the original weight's memory, so that no other tensor can be allocated there
    version: int

    def is_copy_of(self, weight: Tensor) -> bool:
        return self.source.data_ptr() == weight.data_ptr() and self.version == weight._version


class CpuProduct(nn.Module):
    """A module that multiplies by its ``weight [N, D]``, fast in decoding on a CPU (fp32, without gradients).

    One row: the weight is stored as ``[D, N]``, so that the product is as fast as memory can be read. Several rows: oneDNN, which on
    some processors is nearly twice as fast as MKL. One step of several texts: oneDNN with a packed copy of the weight, 1.5 times as fast
    again. The copy is as large as the weight. It is made at the first such step and again after the weight has changed, dropped
    when the module moves, and never saved. There is none where oneDNN is switched off (``torch.backends.mkldnn``).
    """

    weight: Tensor
    keeps_packed = True  # False where weights are moved between devices all the time (``models.placement``)
    _packed: PackedWeight | None = None

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [.., T, D]`` -> ``x weight^T + bias [.., T, N]``."""
        if x.shape[:-1].numel() == 1 or not onednn_multiplies(x, self.weight):
            return F.linear(x, self.weight, bias)
        versioned = not self.weight.is_inference()  # tensors of inference mode have no version counter
        one_step = x.shape[-2] == 1 and self.keeps_packed and versioned
        weight = self.packed() if one_step else self.weight
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    def packed(self) -> Tensor:
        if self._packed is None or not self._packed.is_copy_of(self.weight):
            source = self.weight.detach()
            self._packed = PackedWeight(torch.ops.mkldnn._reorder_linear_weight(source), source, self.weight._version)
        return self._packed.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CpuProduct:
        self._packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        rows, columns = self.weight.shape
        if rows >= columns:  # with fewer rows than columns MKL is faster in the usual layout
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
    """Word embeddings whose weight is also the output layer's (``product``)."""
