"""The vision transformer (Dosovitskiy et al. 2021), as CLIP has it and as BLIP-2 has EVA's: pixels -> a grid of features.

Both are pre-norm transformers over square patches with a class token and learned positions. CLIP has no bias on its patches and
one more norm before the first block; EVA as BLIP-2 uses it has the bias and no such norm. Shapes (legend in ``attention.py``):
``pixel_values [B, 3, H, W]`` -> ``image_features [B, L, D]``, L = h * w cells from left to right, then top to bottom, behind one
more for the class token where the config asks for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn.attention import MultiHeadAttention
from triptych.nn.configs import Colour, ViTConfig

CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's CLIP: x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class ViTBlock(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim, config.eps)
        self.attention = MultiHeadAttention(config.dim, config.heads)
        self.mlp_norm = nn.LayerNorm(config.dim, config.eps)
        self.up = nn.Linear(config.dim, config.mlp_dim)
        self.down = nn.Linear(config.mlp_dim, config.dim)
        self.activation = quick_gelu if config.activation == "quick_gelu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class ViT(nn.Module):
    """An image encoder: ``dim`` channels out, on a ``grid`` of cells at the size that it was trained on.

    Pixels come normalised by ``mean`` and ``std``, which are CLIP's for EVA too.
    """

    name = "vit"

    def __init__(self, config: ViTConfig, mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD) -> None:
        super().__init__()
        self.config, self.dim, self.grid, self.image_size = config, config.dim, config.grid, config.image_size
        self.mean, self.std = mean, std
        self.cut = config.layers  # all are frozen
        self.patches = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + config.grid[0] * config.grid[1], config.dim) * 0.02)
        self.norm_before = nn.LayerNorm(config.dim, config.eps) if config.norm_before else nn.Identity()
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.layers))
        self.norm_after = nn.LayerNorm(config.dim, config.eps) if config.norm_after else nn.Identity()

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """``[1 + h * w, D]``: the learned positions, interpolated for a grid of another size."""
        if grid == self.grid:
            return self.positions
        cells = self.positions[1:].T.reshape(1, self.dim, *self.grid)
        cells = F.interpolate(cells, grid, mode="bicubic", align_corners=False)[0]
        return torch.cat([self.positions[:1], cells.flatten(1).T])

    @property
    def frozen_layers(self) -> ViT:
        return self

    @torch.no_grad()
    def trunk(self, pixel_values: Tensor) -> Tensor:
        """The whole encoder: as ``forward``, without gradients."""
        return self(pixel_values)

    def tail(self, maps: Tensor) -> Tensor:
        return maps

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, L, D]``, or ``[B, 1 + L, D]`` with the class token.

        Raises:
            InputError: H or W is not a multiple of the patch size.
        """
        if any(size % self.config.patch_size for size in pixel_values.shape[2:]):
            size = " x ".join(map(str, pixel_values.shape[2:]))
            raise InputError(f"the photo is {size} pixels: both must be multiples of {self.config.patch_size}")
        cells = self.patches(pixel_values)
        x = torch.cat([self.class_token.expand(len(cells), 1, -1), cells.flatten(2).transpose(1, 2)], 1)
        x = self.norm_before(x + self.positions_for((cells.shape[2], cells.shape[3])))
        for block in self.blocks:
            x = block(x)
        return self.norm_after(x if self.config.class_token else x[:, 1:])
