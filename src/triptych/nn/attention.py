"""Multi-head attention for every model of the package: self and cross, with boolean masks.

The shape legend of the package:

    B  batch              L  grid cells of a picture      T  tokens of text     D  width of a vector
    N  pictures           R  latents (Flamingo)           V  vocabulary         H  heads
    K  rows of one input  Q  queries (BLIP-2)             S  keys that a token may attend to

Masks are boolean, True = may attend, shaped ``[T, S]`` or ``[B, T, S]`` (axes of 1 broadcast); ``masks.py`` draws them all.
A row whose keys are all masked gets exactly 0, neither NaN nor the mean of the masked values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.nn import masks


class KeysValues(NamedTuple):
    """``keys`` and ``values``, each ``[B, H, S, D / H]``."""

    keys: Tensor
    values: Tensor


class AttentionScores(NamedTuple):
    """How attention scores are computed: cap(scale * Q K^T) + bias."""

    scale: float | None = None  # None = 1 / sqrt(d)
    bias: Tensor | None = None  # [B or 1, H, T, S]
    softcap: float | None = None  # cap(s) = softcap * tanh(s / softcap)


SCALED_DOT_PRODUCT = AttentionScores()


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scores: AttentionScores = SCALED_DOT_PRODUCT,
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1), with other scores where ``scores`` asks for them.

    Uses the fused kernel, except while training on a CPU: its backward pass is five to ten times slower there on short texts.

    Args:
        queries: ``[B, H, T, d]``.
        keys, values: ``[B, G, S, d]``; G divides H, and each of the G heads serves H / G heads of the queries.
        mask: ``[T, S]`` or ``[B, T, S]``, True = may attend; None = everything.
        causal: T = S and each token attends to itself and the earlier ones, without a mask in memory; not together with ``mask``.

    Returns:
        ``[B, H, T, d]``, exactly 0 in rows whose keys are all masked.
    """
    plain = scores.softcap is not None or (torch.is_grad_enabled() and queries.device.type == "cpu")
    bias = scores.bias
    if causal and (plain or bias is not None):  # the kernel takes no bias beside its own causal mask
        mask, causal = masks.causal(queries.shape[2], device=queries.device), False
    if plain:
        groups = queries.shape[1] // keys.shape[1]
        return attention_weights(queries, keys, mask, scores).to(values.dtype) @ values.repeat_interleave(groups, dim=1)
    over_heads = None if mask is None else mask.unsqueeze(-3)
    if bias is not None:
        bias = bias.to(queries.dtype)
        over_heads = bias if over_heads is None else torch.where(over_heads, bias, -torch.inf)
    grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(
        queries, keys, values, over_heads, is_causal=causal, scale=scores.scale, enable_gqa=grouped
    )


def attention_weights(
    queries: Tensor, keys: Tensor, mask: Tensor | None = None, scores: AttentionScores = SCALED_DOT_PRODUCT
) -> Tensor:
    """The attention weights ``[B, H, T, S]``; arguments as in ``attend``. Rows sum to 1, or to 0 where all keys are masked."""
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    scale = queries.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    products = queries * scale @ keys.mT
    if scores.softcap is not None:
        products = scores.softcap * (products / scores.softcap).tanh()
    if scores.bias is not None:
        products = products + scores.bias.to(products.dtype)
    if mask is None:
        return products.softmax(-1)
    masked = ~mask.unsqueeze(-3)
    return products.masked_fill(masked, max(-1e30, torch.finfo(products.dtype).min)).softmax(-1).masked_fill(masked, 0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, T, D]`` -> ``[B, H, T, D / H]``."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, H, T, D / H]`` -> ``[B, T, D]``."""
    return x.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Queries from ``x``, keys and values from ``x`` itself or from a source of another width."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_dim: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        """``dim``: width of ``x`` and of the output. ``kv_dim``: of the source; None = dim. ``head_dim``: of a head; None = dim / heads."""
        super().__init__()
        inner = heads * (head_dim or dim // heads)
        self.heads = heads
        self.query = nn.Linear(dim, inner, bias)
        self.key = nn.Linear(kv_dim or dim, inner, bias)
        self.value = nn.Linear(kv_dim or dim, inner, bias)
        self.out = nn.Linear(inner, dim, bias)
        self.query_norm: nn.Module = nn.Identity()  # over each head; some models replace both by norms
        self.key_norm: nn.Module = nn.Identity()

    def queries(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, H, T, d]``."""
        return self.query_norm(split_heads(self.query(x), self.heads))

    def keys_values(self, source: Tensor) -> KeysValues:
        """``source [B, S, kv_dim]`` -> the ``kv`` of ``forward``, ``[B, H, S, d]`` each: computed once for any number of calls."""
        keys = self.key_norm(split_heads(self.key(source), self.heads))
        return KeysValues(keys, split_heads(self.value(source), self.heads))

    def forward(self, x: Tensor, kv: KeysValues | None = None, mask: Tensor | None = None) -> Tensor:
        """``x [B, T, D]`` -> ``[B, T, D]``.

        Args:
            kv: from ``keys_values`` of the source; None = self-attention.
            mask: ``[T, S]`` or ``[B, T, S]``, True = may attend.
        """
        keys, values = kv or self.keys_values(x)
        return self.out(merge_heads(attend(self.queries(x), keys, values, mask)))

    def weights(self, x: Tensor, kv: KeysValues | None = None, mask: Tensor | None = None) -> Tensor:
        """The weight of each key for each token of ``x`` in ``forward``: ``[B, H, T, S]``."""
        return attention_weights(self.queries(x), (kv or self.keys_values(x)).keys, mask)
