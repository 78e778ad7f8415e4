"""Positions of tokens in attention: rotary (Su et al. 2021) and linear biases (ALiBi, Press et al. 2022).

Shapes (legend in ``nn/attention.py``): d width of a head, r of its rotary part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, each [B or 1, 1, T, r]


class Positions(NamedTuple):
    """The tokens' positions as attention needs them; empty where positions are learned embeddings."""

    rotation: Rotation | None = None
    bias: Tensor | None = None  # ALiBi's, [B or 1, H, T, S]
    local_rotation: Rotation | None = None  # for layers with a window; None = ``rotation``


def rotary_frequencies(theta: float, width: int, device: torch.device | None = None) -> Tensor:
    """Radians per position, ``[r / 2]``: theta ** (-2 i / r); ``width`` = r."""
    return 1.0 / theta ** (torch.arange(0, width, 2, device=device).float() / width)


def rotation(
    position_ids: Tensor, frequencies: Tensor, magnitude: float = 1.0, dtype: torch.dtype = torch.float32
) -> Rotation:
    """``position_ids [B, T]`` -> cosines ``[B, 1, T, r]`` and sines, the first half negated, both times ``magnitude``. They are computed in
    fp32; ``dtype``: of the embeddings, whose attention takes no other."""
    angles = (position_ids[..., None] * frequencies)[:, None]
    cosines, sines = ((x * magnitude).to(dtype) for x in (angles.cos(), angles.sin()))
    return cosines.repeat(1, 1, 1, 2), torch.cat([-sines, sines], -1)


def rotate(x: Tensor, rotary: Rotation) -> Tensor:
    """Rotate each pair (i, i + r/2) of ``x [B, H, T, d]`` by its token's angle; components from r on stay."""
    cosines, sines = rotary
    if (width := cosines.shape[-1]) < x.shape[-1]:
        return torch.cat([rotate(x[..., :width], rotary), x[..., width:]], -1)
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)


def alibi(positions: Tensor, key_positions: Tensor, heads: int, bias_max: float = 8.0) -> Tensor:
    """Linear biases: -slope * (i - j) where a token at position i attends to one at position j.

    ``positions [B, T]`` of the queries, ``key_positions [B, S]`` of the keys -> ``[B, H, T, S]``. If the number of heads is a power of
    two, the slopes are a geometric sequence down to 2 ** -bias_max; else they are taken from the next power's, every second first.
    """
    power = 1 << (heads - 1).bit_length()
    slopes = 2.0 ** -(torch.arange(1, power + 1, device=positions.device) * (bias_max / power))
    if heads < power:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[:heads]
    return slopes[:, None, None] * (key_positions[:, None, None] - positions[:, None, :, None])
