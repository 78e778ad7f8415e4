"""Grids of features as rows of cells, and random crops of them for training steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.train.features import Features
from triptych.train.recipe import CropSettings


def cells_of(maps: Tensor) -> Tensor:
    """``[B, C, h, w]`` -> ``[B, L, C]``; cells ``[B, L, C]`` stay as they are."""
    return maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps


def all_cells(features: Features, rows: Sequence[int]) -> Tensor:
    """``[P, L, Dv]``: every cell of the photos, not mirrored."""
    return cells_of(features[rows, [0] * len(rows)])


def draw_cells(
    features: Features, rows: Sequence[int], grid: tuple[int, int], crops: CropSettings, seed: int
) -> Tensor:
    """``[P, l, Dv]``: the cells of the photos that one training step reads; some photos are mirrored."""
    maps = features[rows, mirrored(len(rows), crops.mirror, seed)]
    return crop_cells(cells_of(maps), grid, crops.cells, crops.window, seed)


def mirrored(count: int, mirror: bool, seed: int) -> list[int]:
    """For each photo 1 if its mirror image is read, else 0; equally likely, or always 0 without ``mirror``."""
    return torch.randint(2 if mirror else 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def crop_cells(image_features: Tensor, grid: tuple[int, int], share: float, window: float, seed: int) -> Tensor:
    """Some cells of each photo, ``[P, L, Dv]`` -> ``[P, share * L, Dv]``, at least one: drawn from a random window of the grid.

    A window is at least ``window`` of each side; if it has fewer cells than are drawn, the rest come from outside. Features before those of
    the cells (the class token of a vision transformer) are kept.
    """
    (h, w), photos = grid, len(image_features)
    before, image_features = image_features[:, : -h * w], image_features[:, -h * w :]
    keep = max(1, round(share * h * w))
    generator = torch.Generator().manual_seed(seed)
    inside = torch.ones(photos, h, w, dtype=torch.bool)
    for axis, size in ((1, h), (2, w)):
        span = torch.randint(-int(-window * size // 1), size + 1, (photos,), generator=generator)
        start = (torch.rand(photos, generator=generator) * (size - span + 1)).long()
        position = torch.arange(size)
        within = (position >= start[:, None]) & (position < (start + span)[:, None])
        inside &= within.unsqueeze(2 if axis == 1 else 1)
    order = torch.rand(photos, h * w, generator=generator) + ~inside.flatten(1)
    cells = order.topk(keep, largest=False).indices
    drawn = image_features.gather(1, cells[..., None].expand(-1, -1, image_features.shape[-1]))
    return torch.cat([before, drawn], 1) if before.shape[1] else drawn
