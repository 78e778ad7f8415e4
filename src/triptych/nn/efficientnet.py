"""The layers of EfficientNet-Lite2 (Tan & Le 2019) as data, and their names in the published file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

ENCODER_NAME = "efficientnet-lite2"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # pixels from 0 to 1 are normalised by them
DEFAULT_IMAGE_SIZE = 448  # side of the square photo, in pixels
CELL = 32  # side of a grid cell, in pixels
STEM_DIM = 32
BATCH_NORM_EPS = 1e-3


class Layer(NamedTuple):
    """A convolution with ReLU6, or an inverted residual (MobileNet-v2): ``expand`` x 1, depthwise ``kernel``, project."""

    dim: int
    out_dim: int
    kernel: int
    stride: int
    expand: int = 0  # 0 = a plain convolution

    @property
    def inverted(self) -> bool:
        return self.expand > 0

    @property
    def residual(self) -> bool:
        return self.inverted and self.stride == 1 and self.dim == self.out_dim


# (repeats, kernel, stride, expand, output width): width x 1.1, depth x 1.2, stem and head fixed
EFFICIENTNET_STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
HEAD_DIM = 1280


def _layers() -> Iterator[Layer]:
    dim = STEM_DIM
    yield Layer(3, dim, 3, 2)
    for repeats, kernel, stride, expand, out_dim in EFFICIENTNET_STAGES:
        for repeat in range(repeats):
            yield Layer(dim, out_dim, kernel, stride if repeat == 0 else 1, expand)
            dim = out_dim
    yield Layer(dim, HEAD_DIM, 1, 1)


LAYERS = tuple(_layers())  # 23: the stem, 21 blocks, the head


def published_names() -> Iterator[tuple[str, str, str]]:
    """For each convolution its name in the published file, its batch norm's name there, and our name."""
    last = len(LAYERS) - 1
    yield "_conv_stem", "_bn0", "layers.0.0"
    for i, layer in enumerate(LAYERS[1:last]):
        parts = ("expand", "depthwise", "project") if layer.expand > 1 else ("depthwise", "project")
        first = 3 - len(parts)  # a block that does not expand has no first batch norm of its own
        for number, part in enumerate(parts):
            yield f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{number + first}", f"layers.{i + 1}.{part}"
    yield "_conv_head", "_bn1", f"layers.{last}.0"
