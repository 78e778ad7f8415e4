"""Our vision transformer against transformers' CLIP and BLIP-2 (EVA) towers on tiny random weights."""

from typing import Any

import pytest
import torch

from triptych.checkpoints.tables.blip2 import HF_BLIP2, LAVIS
from triptych.checkpoints.tables.keys import CLIP_VISION, OPEN_CLIP_VISION, load, translated
from triptych.errors import InputError
from triptych.nn.configs import ViTConfig
from triptych.nn.vit import ViT

transformers = pytest.importorskip("transformers")

SIZES = {"dim": 24, "layers": 3, "heads": 4, "mlp_dim": 40, "patch_size": 5, "image_size": 20}
PEER_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "patch_size": 5,
    "image_size": 20,
}


def randomised(peer: torch.nn.Module) -> Any:
    torch.manual_seed(11)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return peer.eval()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("prefix", ["", "vision_model."])  # in memory, and in the published files
@torch.no_grad()
def test_clip(activation: str, prefix: str) -> None:
    peer = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**PEER_SIZES, hidden_act=activation)))
    state = {prefix + key: tensor for key, tensor in peer.state_dict().items()}
    vit = ViT(ViTConfig(**SIZES, activation=activation, norm_after=False, class_token=True)).eval()  # type: ignore[arg-type]
    report = load(vit, state, CLIP_VISION, "vision_encoder", ignored_prefixes=("norm_after",))
    assert not report.missing
    assert sorted(report.ignored) == [f"{prefix}post_layernorm.bias", f"{prefix}post_layernorm.weight"]
    assert len(report.mapped) == len(state) - 2
    pixels = torch.randn(2, 3, 20, 20)
    close(vit(pixels), peer(pixels).last_hidden_state)


@torch.no_grad()
def test_clip_pooled_and_interpolated() -> None:
    peer = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**PEER_SIZES)))
    vit = ViT(ViTConfig(**SIZES, activation="quick_gelu", class_token=True)).eval()
    assert not load(vit, peer.state_dict(), CLIP_VISION, "vision_encoder").ignored
    pixels = torch.randn(2, 3, 30, 25)
    close(vit(pixels)[:, 0], peer(pixels, interpolate_pos_encoding=True).pooler_output)


def eva() -> Any:
    return randomised(transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**PEER_SIZES)))


@torch.no_grad()
def test_eva_as_in_blip2() -> None:
    peer = eva()
    vit = ViT(ViTConfig.blip2(**SIZES)).eval()
    state = {f"vision_model.{key}": tensor for key, tensor in peer.state_dict().items()}
    report = load(vit, state, HF_BLIP2, "vision_encoder")
    assert not report.missing and not report.ignored and set(report.mapped) == set(state)
    for size in (20, 30):
        pixels = torch.randn(2, 3, size, size)
        close(vit(pixels), peer(pixels, interpolate_pos_encoding=True).last_hidden_state)


@torch.no_grad()
def test_eva_in_lavis_layout() -> None:
    """LAVIS keeps the biases of queries and values alone; keys have none."""
    peer = eva()
    state = {}
    for key, tensor in peer.state_dict().items():
        if key.endswith("qkv.bias"):
            tensor[24:48] = 0
            block = "visual_encoder.blocks." + key.split(".")[2] + ".attn."
            state |= {f"{block}q_bias": tensor[:24], f"{block}v_bias": tensor[48:]}
            continue
        for old, new in (
            ("embeddings.class_embedding", "visual_encoder.cls_token"),
            ("embeddings.position_embedding", "visual_encoder.pos_embed"),
            ("embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
            ("encoder.layers", "visual_encoder.blocks"),
            ("self_attn.projection", "attn.proj"),
            ("self_attn", "attn"),
            ("layer_norm", "norm"),
            ("post_layernorm", "ln_vision"),
        ):
            key = key.replace(old, new)
        state[key] = tensor
    vit = ViT(ViTConfig.blip2(**SIZES)).eval()
    report = load(vit, state, LAVIS, "vision_encoder")
    assert not report.missing and not report.ignored and set(report.mapped) == set(state)
    assert not any(block.attention.key.bias.any() for block in vit.blocks)  # type: ignore[union-attr,operator]
    pixels = torch.randn(2, 3, 20, 20)
    close(vit(pixels), peer(pixels).last_hidden_state)


@torch.no_grad()
def test_clip_in_open_clip_layout() -> None:
    """open_clip joins the projections of queries, keys and values, and norms every cell at the end."""
    peer = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**PEER_SIZES, hidden_act="gelu")))
    theirs, state = peer.state_dict(), {}
    for key, tensor in theirs.items():
        if "k_proj" in key or "v_proj" in key or "position_ids" in key:
            continue
        if "q_proj" in key:
            tensor = torch.cat([theirs[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            key = key.replace("q_proj.", "in_proj_")
        for old, new in (
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.patch_embedding", "conv1"),
            ("encoder.layers", "transformer.resblocks"),
            ("self_attn", "attn"),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
        ):
            key = key.replace(old, new)
        state[f"visual.{key}"] = tensor
    state |= {"visual.proj": torch.zeros(24, 8), "logit_scale": torch.zeros(())}
    vit = ViT(ViTConfig(**SIZES)).eval()
    report = load(vit, state, OPEN_CLIP_VISION, "vision_encoder")
    assert not report.missing and set(report.ignored) == {"visual.proj", "logit_scale"}
    pixels = torch.randn(2, 3, 20, 20)
    close(vit(pixels), peer.post_layernorm(peer(pixels).last_hidden_state[:, 1:]))


def test_incomplete_and_foreign_files_are_refused() -> None:
    state = {f"vision_model.{key}": tensor for key, tensor in eva().state_dict().items()}
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    with pytest.raises(InputError, match=r"missing blocks.1.up.bias"):
        load(ViT(ViTConfig.blip2(**SIZES)), state, HF_BLIP2, "vision_encoder")
    ours, ignored = translated({"something.else": torch.zeros(1)}, HF_BLIP2)
    assert (ours, ignored) == ({}, ("something.else",))
