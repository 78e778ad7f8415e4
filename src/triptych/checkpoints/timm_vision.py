"""Vision transformers as timm saves them on the hub (ViT, DeiT, CLIP, SigLIP, DINOv2, EVA-01), read without timm.

A folder holds the tensors and a config.json with the name of an architecture; sizes are read off the tensors, and what they do not show
is decided by that name, as in timm's ``vision_transformer.py`` and ``eva.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.checkpoints.place import fill, unallocated
from triptych.checkpoints.store import DerivedStore, JoinedStore, Recipe, TensorStore, shaped
from triptych.checkpoints.tables.keys import LAVIS_EVA, Table, fitted, translated
from triptych.checkpoints.weight_files import open_folder
from triptych.errors import InputError
from triptych.io.pixels import FILTERS, PixelSpec, pixel_spec
from triptych.nn.configs import ViTConfig
from triptych.nn.vit import ViT

TIMM: Table = {
    **{name.removeprefix("visual_encoder."): ours for name, ours in LAVIS_EVA.items() if name != "ln_vision"},
    "reg_token": "vision_encoder.registers",
    "norm_pre": "vision_encoder.norm_before",
    "norm": "vision_encoder.norm_after",
    "blocks.*.ls1.gamma": "vision_encoder.blocks.*.attention_scale.scale",
    "blocks.*.ls2.gamma": "vision_encoder.blocks.*.mlp_scale.scale",
}
BEHIND_FEATURES = ("head.", "fc_norm.", "attn_pool.")  # keys of what classifies and pools
ARCHITECTURE = re.compile(r"(vit|deit3?|eva)_\w+")
OTHERS = re.compile(r"_(rpn|radio)_")  # of the same keys, computed otherwise
GELU_TANH = re.compile(r"_patch32_siglip|_large_patch16_siglip(_gap)?_512|_so400m_patch16_siglip|_giantopt_")
TIMM_HEAD_WIDTH = 64
TIMM_HEADS = {1152: 16, 1280: 16, 1408: 16, 1536: 16, 1664: 16}  # by width, where heads are wider


def read_timm_encoder(directory: Path, config: Mapping[str, Any]) -> ViT:
    """An image encoder from a folder of timm's: what it computes before pooling, ``forward_features``.

    Raises:
        InputError: it is of another architecture, or its tensors do not fit together.
    """
    name = str(config.get("architecture"))
    if not ARCHITECTURE.fullmatch(name) or OTHERS.search(name):
        raise InputError(
            f"{directory} holds {name} of timm: plain vision transformers can be read (vit_*, deit_*, eva_giant_*)"
        )
    tensors, ignored = translated(open_folder(directory), TIMM, "vision_encoder")
    if others := [key for key in ignored if not key.startswith(BEHIND_FEATURES)]:
        raise InputError(f"{directory} holds {name} of timm, with {others[0]}, which a plain vision transformer lacks")
    try:
        ours = timm_vit_config(name, tensors.layouts())
        with unallocated():
            vit = ViT(ours, timm_pixels(config, ours.image_size))
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{directory}: {error}") from None
        raise InputError(f"{directory} does not hold the tensors of an image encoder ({error})") from None
    fill(vit, fitted(with_class_position(tensors, ours), vit), source=directory)
    return vit


def timm_vit_config(name: str, layouts: Mapping[str, Tensor]) -> ViTConfig:
    """``layouts``: of the tensors under our names. Raises KeyError and the like: one is missing."""
    dim, _, patch, _ = layouts["patches.weight"].shape
    has_class_token = "class_token" in layouts
    places = layouts["positions"].shape[-2]
    side = math.isqrt(places)  # with a class token there may be a position of it before those of the cells
    if side * side != places and not (has_class_token and side * side == places - 1):
        raise InputError(f"{places} positions do not form a square of cells")
    clip = "_clip_" in name and not name.startswith("eva")
    return ViTConfig(
        dim=dim,
        layers=1 + max(int(key.split(".")[1]) for key in layouts if key.startswith("blocks.")),
        heads=16 if name.startswith("vit_base_patch16_gap_") else TIMM_HEADS.get(dim, dim // TIMM_HEAD_WIDTH),
        mlp_dim=len(layouts["blocks.0.up.weight"]),
        patch_size=patch,
        image_size=patch * side,
        activation=timm_activation(name),
        eps=1e-5 if clip else 1e-6,
        patch_bias="patches.bias" in layouts,
        norm_before="norm_before.weight" in layouts,
        norm_after="norm_after.weight" in layouts,
        has_class_token=has_class_token,
        registers=layouts["registers"].shape[-2] if "registers" in layouts else 0,
        layer_scale="blocks.0.attention_scale.scale" in layouts,
    )


def timm_activation(name: str) -> Literal["gelu", "gelu_tanh", "quick_gelu"]:
    if "quickgelu" in name:
        return "quick_gelu"
    return "gelu_tanh" if GELU_TANH.search(name) else "gelu"


def with_class_position(tensors: TensorStore, config: ViTConfig) -> TensorStore:
    """A class token without a position gets one of zeros."""
    *_, places, dim = tensors.layout("positions").shape
    if not config.has_class_token or places > config.grid[0] * config.grid[1]:
        return tensors
    padded = Recipe(
        ("positions",),
        lambda x: torch.cat([x[0].new_zeros(1, 1, dim), x[0]], 1),
        lambda x: shaped(x[0], (1, 1 + places, dim)),
    )
    return JoinedStore([tensors, DerivedStore(tensors, {"positions": padded})])


def timm_pixels(config: Mapping[str, Any], image_size: int) -> PixelSpec:
    """How photos are brought to the encoder: colours and filter of its config, the whole photo stretched.

    Raises:
        InputError: a setting makes no sense.
    """
    settings = config.get("pretrained_cfg", config)
    filter_name = settings.get("interpolation", "bicubic")
    if filter_name not in FILTERS:
        raise InputError(f"interpolation is {filter_name!r}, expected one of {', '.join(FILTERS)}")
    half = (0.5, 0.5, 0.5)
    colours = {"image_mean": settings.get("mean", half), "image_std": settings.get("std", half)}
    return pixel_spec({**colours, "resample": FILTERS.index(filter_name)}, image_size, half, half)
