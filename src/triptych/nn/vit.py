"""The vision transformer (Dosovitskiy et al. 2021) in the variants of published encoders: pixels -> a grid of features.

All are pre-norm transformers over square patches with learned positions. CLIP (Radford et al. 2021) has no bias in its patch embedding
and one more norm before the first block; BLIP-2's EVA and the original ViT have the bias and no such norm. SigLIP (Zhai et al. 2023)
has no class token. DINOv2 (Oquab et al. 2023) scales the output of each sublayer and may have registers (Darcet et al. 2024).

Shapes (legend in ``nn/attention.py``): ``pixel_values [B, 3, H, W]`` -> ``image_features [B, L, D]``, L = h * w cells from left to right,
then top to bottom, after the class token's feature where the config asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.io.pixels import Colour, PixelSpec
from triptych.nn.attention import MultiHeadAttention
from triptych.nn.configs import ViTConfig

CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's CLIP: x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


VIT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class LayerScale(nn.Module):
    """Touvron et al. 2021, *Going deeper with image transformers*, section 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ViTBlock(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim, config.eps)
        self.attention = MultiHeadAttention(config.dim, config.heads)
        self.attention_scale = LayerScale(config.dim) if config.layer_scale else nn.Identity()
        self.mlp_norm = nn.LayerNorm(config.dim, config.eps)
        self.up = nn.Linear(config.dim, config.mlp_dim)
        self.down = nn.Linear(config.mlp_dim, config.dim)
        self.mlp_scale = LayerScale(config.dim) if config.layer_scale else nn.Identity()
        self.activation = VIT_ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_scale(self.attention(self.attention_norm(x)))
        return x + self.mlp_scale(self.down(self.activation(self.up(self.mlp_norm(x)))))


class ViT(nn.Module):
    """An image encoder with ``dim`` channels on a ``grid`` of cells, at the image size that it was trained on.

    ``pixels``: how photos are resized and normalised; None = stretched, with CLIP's mean and standard deviation, which EVA shares.
    """

    name = "vit"

    def __init__(self, config: ViTConfig, pixels: PixelSpec | None = None) -> None:
        super().__init__()
        self.config, self.dim, self.grid, self.image_size = config, config.dim, config.grid, config.image_size
        self.pixels = pixels or PixelSpec(config.image_size, CLIP_MEAN, CLIP_STD)
        self.cut = config.layers  # all are frozen
        self.patches = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.randn(config.dim) * 0.02) if config.has_class_token else None
        self.registers = nn.Parameter(torch.randn(config.registers, config.dim) * 0.02) if config.registers else None
        positions = config.has_class_token + config.grid[0] * config.grid[1]
        self.positions = nn.Parameter(torch.randn(positions, config.dim) * 0.02)
        self.norm_before = nn.LayerNorm(config.dim, config.eps) if config.norm_before else nn.Identity()
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.layers))
        self.norm_after = nn.LayerNorm(config.dim, config.eps) if config.norm_after else nn.Identity()

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """The learned positions ``[1 + h * w, D]``, interpolated for another grid; without a class token ``[h * w, D]``."""
        if grid == self.grid:
            return self.positions
        extra = int(self.config.has_class_token)
        cells = self.positions[extra:].T.reshape(1, self.dim, *self.grid)
        antialias = self.config.registers > 0  # as in DINOv2's code for its models with registers
        cells = F.interpolate(cells, grid, mode="bicubic", align_corners=False, antialias=antialias)[0]
        return torch.cat([self.positions[:extra], cells.flatten(1).T])

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
        x = cells.flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)
        x = x + self.positions_for((cells.shape[2], cells.shape[3]))
        if self.registers is not None:  # after the cells; attention does not depend on the order
            x = torch.cat([x, self.registers.expand(len(x), -1, -1)], 1)
        x = self.norm_before(x)
        for block in self.blocks:
            x = block(x)
        x = x[:, : x.shape[1] - self.config.registers]
        return self.norm_after(x[:, 1:] if self.config.has_class_token and not self.config.class_token else x)
