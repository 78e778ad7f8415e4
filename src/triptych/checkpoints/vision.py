"""Image encoders as transformers saves them (CLIP, SigLIP, DINOv2, ViT), read into our vision transformer; timm's: ``timm_vision``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych.checkpoints.place import WithoutInitialWeights, fill, unallocated
from triptych.checkpoints.tables.keys import fitted, translated
from triptych.checkpoints.tables.vision import VISION_TABLES
from triptych.checkpoints.timm_vision import read_timm_encoder
from triptych.checkpoints.weight_files import open_folder, read_json
from triptych.errors import InputError
from triptych.io.pixels import Colour, PixelSpec, pixel_spec
from triptych.nn.configs import ViTConfig
from triptych.nn.vit import CLIP_MEAN, CLIP_STD, ViT

VISION_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
}
# What transformers takes for granted of a vision_config: published configs leave it out
CLIP = BASE | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
SIGLIP = BASE | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
IMAGENET: tuple[Colour, Colour] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: tuple[Colour, Colour] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def read_vision_encoder(directory: Path, image_size: int | None = None) -> ViT:
    """An image encoder from a directory of transformers': config.json, the files of tensors, and preprocessor_config.json; or of timm's.

    Args:
        image_size: of the square that photos are brought to, in pixels; None = the one it was trained on.

    Raises:
        InputError: it cannot be read, is of a kind that is not covered, or cannot take photos of this size.
    """
    config = read_json(directory / "config.json")
    kind = config.get("model_type")
    if kind is None and "architecture" in config:
        return resized(read_timm_encoder(directory, config), image_size).eval()
    if kind not in VISION_TABLES:
        raise InputError(
            f"{directory} holds an image encoder of the type {kind!r}: there are {', '.join(VISION_TABLES)}"
        )
    try:
        ours = vit_config(kind, config)
        with unallocated():
            vit = ViT(ours, stretched_pixels(directory, kind, ours.image_size))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / 'config.json'} does not describe an image encoder ({error})") from None
    tensors, _ = translated(open_folder(directory), VISION_TABLES[kind], "vision_encoder", unused(ours))
    fill(vit, fitted(tensors, vit), source=directory)
    return resized(vit, image_size).eval()


def unused(config: ViTConfig) -> tuple[str, ...]:
    """CLIP norms its class token alone after the last block, which no cell has."""
    return () if config.norm_after else ("norm_after",)


def vit_config(kind: str, config: Mapping[str, Any]) -> ViTConfig:
    """Raises KeyError and the like: a field is missing or invalid."""
    family = kind.partition("_")[0]
    defaults = {"clip": CLIP, "siglip": SIGLIP}.get(family, {})
    settings = {**defaults, **(config.get("vision_config", {}) if kind in ("clip", "siglip") else config)}
    if settings.get("use_swiglu_ffn"):
        raise InputError("a DINOv2 with SwiGLU (giant) is not covered: small, base and large are")
    if settings["hidden_act"] not in VISION_ACTIVATIONS:
        raise InputError(
            f"a feed-forward with {settings['hidden_act']!r} is not covered: there are {', '.join(VISION_ACTIVATIONS)}"
        )
    return ViTConfig(
        dim=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        mlp_dim=int(settings["hidden_size"] * settings["mlp_ratio"])
        if family == "dinov2"
        else settings["intermediate_size"],
        patch_size=settings["patch_size"],
        image_size=settings["image_size"],
        activation=VISION_ACTIVATIONS[settings["hidden_act"]],  # type: ignore[arg-type]
        eps=settings["layer_norm_eps"],
        patch_bias=family != "clip",
        norm_before=family == "clip",
        norm_after=family != "clip",
        has_class_token=family != "siglip",
        registers=settings["num_register_tokens"] if kind == "dinov2_with_registers" else 0,
        layer_scale=family == "dinov2",
    )


def stretched_pixels(directory: Path, kind: str, image_size: int) -> PixelSpec:
    """How photos are brought to the encoder: the colours and the filter of the processor in its folder, else the family's own.

    Photos are stretched where the processor cuts out their middle, so that what is trained over the encoder sees, and shows, all of them.
    """
    family = kind.partition("_")[0]
    mean, std = {"clip": (CLIP_MEAN, CLIP_STD), "dinov2": IMAGENET}.get(family, HALF)
    settings = read_json(directory / "preprocessor_config.json", optional=True)
    return replace(pixel_spec(settings, image_size, mean, std), shortest_side=None)


def resized(vit: ViT, image_size: int | None) -> ViT:
    """The same encoder for photos of another size: its positions are interpolated.

    Raises:
        InputError: the size is not a multiple of the patch size.
    """
    if image_size is None or image_size == vit.image_size:
        return vit
    if image_size < vit.config.patch_size or image_size % vit.config.patch_size:
        raise InputError(
            f"an image size of {image_size}: it must be a multiple of {vit.config.patch_size}, the encoder's patch size"
        )
    other = replace(vit.config, image_size=image_size)
    with WithoutInitialWeights():
        new = ViT(other, replace(vit.pixels, size=image_size))
    state = vit.state_dict() | {"positions": vit.positions_for(other.grid)}
    new.load_state_dict(state)
    return new
