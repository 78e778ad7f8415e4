"""Image encoders in timm's layout, against the features that timm 1.0.31 computed of the same numbers.

``timm.safetensors`` holds each model's features of ``pixels()``, and in its metadata the names and shapes of timm's tensors, which
``numbers`` fills.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.checkpoints.vision import read_vision_encoder
from triptych.errors import InputError

GOLDEN = Path(__file__).with_name("timm.safetensors")
MODELS = (
    "vit_base_patch16_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch32_siglip_256",
    "vit_medium_patch16_reg4_gap_256",
    "eva_giant_patch14_224",
)
CONFIG = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "input_size": [3, 12, 12]}


def numbers(name: str, shape: Sequence[int]) -> Tensor:
    """The same on every machine: a sine, around 1 for the weights of norms and the scales of layers."""
    count = torch.Size(shape).numel()
    wave = torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + zlib.crc32(name.encode()) % 1000)
    center = float(("norm" in name and name.endswith("weight")) or name.endswith("gamma"))
    size = 0.3 if len(shape) == 1 else 1.5 * torch.Size(shape[1:]).numel() ** -0.5
    return (center + size * wave).reshape(*shape).float()


def pixels() -> Tensor:
    return numbers("pixels", (2, 3, 12, 12)) * 10


def saved(name: str, folder: Path, **config: Any) -> Tensor:
    """The folder as timm saves it; returns the features."""
    with safe_open(GOLDEN, "pt") as file:
        shapes, features = json.loads(file.metadata()[name]), file.get_tensor(name)
    save_file({key: numbers(key, shape) for key, shape in shapes.items()}, folder / "model.safetensors")
    about = {"architecture": name, "num_classes": 3, "num_features": 128, "pretrained_cfg": CONFIG}
    (folder / "config.json").write_text(json.dumps(about | config))
    return features


@pytest.mark.parametrize("name", MODELS)
def test_features(name: str, tmp_path: Path) -> None:
    """Of the cells; those of the class token and of registers are left out."""
    expected = saved(name, tmp_path)
    vit = read_vision_encoder(tmp_path)
    assert (vit.grid, vit.dim, vit.image_size) == ((3, 3), 128, 12) and not vit.training
    torch.testing.assert_close(vit(pixels()), expected[:, -9:], atol=1e-4, rtol=1e-4)
    assert (vit.pixels.mean, vit.pixels.resample) == ((0.1, 0.2, 0.3), "bilinear")
    assert read_vision_encoder(tmp_path, 20).grid == (5, 5)


def test_what_is_refused(tmp_path: Path) -> None:
    saved(MODELS[0], tmp_path)
    for config, message in (
        ({"architecture": "swin_tiny_patch4_window7_224"}, "holds swin_tiny_patch4_window7_224 of timm: plain vision"),
        ({"architecture": "vit_base_patch16_rpn_224"}, "vit_base_patch16_rpn_224 of timm: plain vision"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation is 'random', expected one of"),
        ({"pretrained_cfg": {"mean": [1]}}, "image processor settings"),
    ):
        saved(MODELS[0], tmp_path, **config)
        with pytest.raises(InputError, match=message):
            read_vision_encoder(tmp_path)
    saved(MODELS[0], tmp_path)
    whole = {key: numbers(key, shape) for key, shape in shapes_of(MODELS[0]).items()}
    for change, message in (
        ({"blocks.0.attn.q_norm.weight": torch.ones(64)}, "with blocks.0.attn.q_norm.weight, which a plain"),
        ({"pos_embed": torch.ones(1, 12, 128)}, "12 positions do not form a square"),
        ({"blocks.0.attn.qkv.bias": None}, "missing blocks.0.attention.key.bias"),
        ({"blocks.0.mlp.fc1.weight": None}, "does not hold the tensors of an image encoder"),
    ):
        kept = {key: tensor for key, tensor in (whole | change).items() if tensor is not None}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=message):
            read_vision_encoder(tmp_path)


def shapes_of(name: str) -> dict[str, list[int]]:
    with safe_open(GOLDEN, "pt") as file:
        shapes: dict[str, list[int]] = json.loads(file.metadata()[name])
    return shapes
