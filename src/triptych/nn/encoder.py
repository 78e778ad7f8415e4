"""The interface of image encoders, as a Protocol. ``cnn.ConvNet`` and ``vit.ViT`` implement it, and any other encoder may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self

from torch import Tensor, nn

from triptych.io.pixels import PixelSpec


class NetworkPart(Protocol):
    """The methods of ``nn.Module`` that Protocols of parts need."""

    def __call__(self, x: Tensor) -> Any: ...
    def eval(self) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...


class VisionEncoder(NetworkPart, Protocol):
    """Pixels -> a grid of features, in two steps: the frozen trunk, whose output may be cached, and a tail that may be trained.

    ``dim``: channels of a feature. ``grid``: rows and columns of cells. ``image_size``: side of the square photo, in pixels.
    ``pixels``: how a photo is resized and normalised for it. ``cut``: the number of layers in the trunk.
    """

    name: str
    dim: int
    grid: tuple[int, int]
    image_size: int
    cut: int

    @property
    def pixels(self) -> PixelSpec: ...

    @property
    def frozen_layers(self) -> nn.Module:
        """The trunk as a module of its own."""
        ...

    def trunk(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> the input of ``tail``, without gradients."""
        ...

    def tail(self, maps: Tensor) -> Tensor:
        """The trunk's output -> ``image_features [B, L, D]``, one for each cell, after that of the class token where there is one."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, L, D]``."""
        ...
