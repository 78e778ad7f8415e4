"""A vision transformer from a folder as the frozen encoder of a model that is trained, saved and opened again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_blip2 import tiny_blip2

from triptych.checkpoints.config import Card
from triptych.data.photos import Photo
from triptych.errors import InputError
from triptych.models import encoder_spec, load_blip2, published_encoder, save_blip2, vision_encoder
from triptych.nn.vit import ViT
from triptych.systems.blip2 import Blip2
from triptych.train.features import cached_features

CONFIG = {"model_type": "siglip_vision_model", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 12, "patch_size": 4, "image_size": 12}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny SigLIP as transformers saves it."""
    torch.manual_seed(0)
    block, path = "encoder.layers.0", tmp_path / "siglip"
    matrices = {f"{block}.self_attn.{x}_proj": (8, 8) for x in ("q", "k", "v", "out")}
    matrices |= {f"{block}.mlp.fc1": (12, 8), f"{block}.mlp.fc2": (8, 12), "embeddings.patch_embedding": (8, 3, 4, 4)}
    vectors = dict.fromkeys((f"{block}.layer_norm1", f"{block}.layer_norm2", "post_layernorm"), (8,))
    tensors = {"embeddings.position_embedding.weight": torch.randn(9, 8)}
    for name, shape in {**matrices, **vectors}.items():
        tensors |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def test_a_model_over_it(folder: Path, tmp_path: Path) -> None:
    """Its features are cached for training; the checkpoint holds it."""
    encoder = vision_encoder(str(folder), image_size=16)
    assert isinstance(encoder, ViT)
    tiny = tiny_blip2(with_lm=False)
    config = replace(tiny.model.config, qformer=replace(tiny.model.config.qformer, image_dim=8))
    model = Blip2(config, encoder, None)
    about = msgspec.structs.replace(tiny.config, encoder=encoder_spec(encoder), model=config)
    save_blip2(tmp_path / "model", replace(tiny, model=model, config=about), Card())
    again = load_blip2(tmp_path / "model").model
    pixels = torch.randn(1, 3, 16, 16)
    assert torch.equal(again.encode(pixels), model.encode(pixels)) and model.encode(pixels).shape == (1, 16, 8)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "photo.png")
    photo = Photo("1", "train", (), {}, tmp_path / "photo.png")
    features = cached_features([photo], encoder, tmp_path / "features")
    assert features[[0], [0]].shape == (1, 16, 8)


def test_names_that_are_none(folder: Path) -> None:
    with pytest.raises(InputError, match=r"unknown encoder 'martian': choose .* or a directory of transformers"):
        vision_encoder("martian")
    with pytest.raises(InputError, match="holds its own weights: leave out --encoder-weights"):
        vision_encoder(str(folder), weights=folder / "model.safetensors")
    with pytest.raises(InputError, match="unknown encoder"):
        published_encoder(str(folder))
