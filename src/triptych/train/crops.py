"""Grids of features as rows of cells, and some of the cells for each training step."""

from __future__ import annotations

import torch
from torch import Tensor


def cells_of(maps: Tensor) -> Tensor:
    """``[B, C, h, w]`` -> ``[B, L, C]``."""
    return maps.flatten(2).transpose(1, 2)


def crop_cells(image_features: Tensor, grid: tuple[int, int], share: float, window: float, seed: int) -> Tensor:
    """Some cells of each photo, ``[P, L, Dv]`` -> ``[P, share * L, Dv]``: drawn from a random window of the grid.

    A window keeps at least ``window`` of each side, and as many cells as are drawn.
    """
    (h, w), photos = grid, len(image_features)
    keep = round(share * h * w)
    generator = torch.Generator().manual_seed(seed)
    inside = torch.ones(photos, h, w, dtype=torch.bool)
    for axis, size in ((1, h), (2, w)):
        span = torch.randint(-int(-window * size // 1), size + 1, (photos,), generator=generator)
        start = (torch.rand(photos, generator=generator) * (size - span + 1)).long()
        place = torch.arange(size)
        within = (place >= start[:, None]) & (place < (start + span)[:, None])
        inside &= within.unsqueeze(2 if axis == 1 else 1)
    order = torch.rand(photos, h * w, generator=generator) + ~inside.flatten(1)
    cells = order.topk(keep, largest=False).indices
    return image_features.gather(1, cells[..., None].expand(-1, -1, image_features.shape[-1]))
