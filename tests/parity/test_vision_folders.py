"""Image encoders from directories of transformers': the same features, at the trained size and at another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from triptych.checkpoints.vision import read_vision_encoder
from triptych.errors import InputError

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 5, "image_size": 20}
MLP = SIZES | {"intermediate_size": 40}
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50}
MODELS = {
    "clip_vision_model": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**MLP)),
    "clip": (transformers.CLIPModel, transformers.CLIPConfig(text_config=TEXT, vision_config=MLP)),
    "siglip_vision_model": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**MLP)),
    "siglip": (transformers.SiglipModel, transformers.SiglipConfig(text_config=TEXT, vision_config=MLP)),
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**SIZES)),
    "dinov2_with_registers": (transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig(**SIZES)),
    "vit": (transformers.ViTModel, transformers.ViTConfig(**MLP)),
}


def saved(kind: str, directory: Path) -> Any:
    torch.manual_seed(0)
    model_class, config = MODELS[kind]
    peer = model_class(config)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    peer.eval().requires_grad_(False).save_pretrained(directory)
    return getattr(peer, "vision_model", peer)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def cells(kind: str, peer: Any, pixels: Tensor, **settings: Any) -> Tensor:
    hidden = peer(pixels, **settings).last_hidden_state
    return hidden[:, {"siglip": 0, "dinov2_with_registers": 5}.get(kind.replace("_vision_model", ""), 1) :]


@pytest.mark.parametrize("kind", MODELS)
def test_features(kind: str, tmp_path: Path) -> None:
    peer = saved(kind, tmp_path)
    vit = read_vision_encoder(tmp_path)
    assert (vit.grid, vit.dim, vit.image_size) == ((4, 4), 24, 20) and not vit.training
    pixels = torch.randn(2, 3, 20, 20)
    close(vit(pixels), cells(kind, peer, pixels))
    larger, pixels = read_vision_encoder(tmp_path, 30), torch.randn(2, 3, 30, 30)
    assert (larger.grid, larger.image_size) == ((6, 6), 30)
    more = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    close(larger(pixels), cells(kind, peer, pixels, **more))


def test_pixels_and_defaults(tmp_path: Path) -> None:
    """A published config leaves out what transformers takes for granted."""
    saved("siglip", tmp_path)
    assert read_vision_encoder(tmp_path).pixels.mean == (0.5, 0.5, 0.5)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]})
    )
    assert read_vision_encoder(tmp_path).pixels.std == (1.0, 2.0, 3.0)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] = {name: config["vision_config"][name] for name in MLP}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_vision_encoder(tmp_path).config.activation == "gelu_tanh"


def test_what_is_refused(tmp_path: Path) -> None:
    saved("dinov2", tmp_path)
    with pytest.raises(InputError, match="image size of 33: it must be a multiple of 5"):
        read_vision_encoder(tmp_path, 33)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"use_swiglu_ffn": True}, "SwiGLU"),
        ({"model_type": "swin"}, "type 'swin'"),
        ({"hidden_act": "silu"}, "'silu' is not covered"),
        ({"hidden_size": "x"}, "does not describe an image encoder"),
        ({"num_hidden_layers": 4}, "missing blocks.3"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=words):
            read_vision_encoder(tmp_path)
