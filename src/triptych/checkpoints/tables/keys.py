"""Published state dicts under our names, by tables of keys; and the tables of vision towers (EVA, CLIP, open_clip).

A row reads ``their prefix: our prefix``; ``*`` is a layer's number. Several names of ours mean that the tensor is cut into as many
equal parts. Our names begin with the part they belong to: ``vision_encoder``, ``qformer``, ``resampler``, ``xattn``...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.checkpoints.format import LoadReport, load_strict
from triptych.errors import InputError

Table = Mapping[str, str | tuple[str, ...]]

QKV = tuple(f"vision_encoder.blocks.*.attention.{x}" for x in ("query", "key", "value"))

HF_EVA: Table = {
    "vision_model.embeddings.class_embedding": "vision_encoder.class_token",
    "vision_model.embeddings.position_embedding": "vision_encoder.positions",
    "vision_model.embeddings.patch_embedding": "vision_encoder.patches",
    "vision_model.encoder.layers.*.layer_norm1": "vision_encoder.blocks.*.attention_norm",
    "vision_model.encoder.layers.*.self_attn.qkv": QKV,
    "vision_model.encoder.layers.*.self_attn.projection": "vision_encoder.blocks.*.attention.out",
    "vision_model.encoder.layers.*.layer_norm2": "vision_encoder.blocks.*.mlp_norm",
    "vision_model.encoder.layers.*.mlp.fc1": "vision_encoder.blocks.*.up",
    "vision_model.encoder.layers.*.mlp.fc2": "vision_encoder.blocks.*.down",
    "vision_model.post_layernorm": "vision_encoder.norm_after",
}

LAVIS_EVA: Table = {
    "visual_encoder.cls_token": "vision_encoder.class_token",
    "visual_encoder.pos_embed": "vision_encoder.positions",
    "visual_encoder.patch_embed.proj": "vision_encoder.patches",
    "visual_encoder.blocks.*.norm1": "vision_encoder.blocks.*.attention_norm",
    "visual_encoder.blocks.*.attn.qkv": QKV,
    "visual_encoder.blocks.*.attn.q_bias": f"{QKV[0]}.bias",
    "visual_encoder.blocks.*.attn.v_bias": f"{QKV[2]}.bias",
    "visual_encoder.blocks.*.attn.proj": "vision_encoder.blocks.*.attention.out",
    "visual_encoder.blocks.*.norm2": "vision_encoder.blocks.*.mlp_norm",
    "visual_encoder.blocks.*.mlp.fc1": "vision_encoder.blocks.*.up",
    "visual_encoder.blocks.*.mlp.fc2": "vision_encoder.blocks.*.down",
    "ln_vision": "vision_encoder.norm_after",
}

CLIP_TOWER: Table = {
    "embeddings.class_embedding": "vision_encoder.class_token",
    "embeddings.position_embedding.weight": "vision_encoder.positions",
    "embeddings.patch_embedding": "vision_encoder.patches",
    "pre_layrnorm": "vision_encoder.norm_before",
    "encoder.layers.*.layer_norm1": "vision_encoder.blocks.*.attention_norm",
    **{f"encoder.layers.*.self_attn.{x}_proj": ours for x, ours in zip("qkv", QKV, strict=True)},
    "encoder.layers.*.self_attn.out_proj": "vision_encoder.blocks.*.attention.out",
    "encoder.layers.*.layer_norm2": "vision_encoder.blocks.*.mlp_norm",
    "encoder.layers.*.mlp.fc1": "vision_encoder.blocks.*.up",
    "encoder.layers.*.mlp.fc2": "vision_encoder.blocks.*.down",
    "post_layernorm": "vision_encoder.norm_after",
}
CLIP_VISION: Table = {
    f"{prefix}{theirs}": ours for prefix in ("", "vision_model.") for theirs, ours in CLIP_TOWER.items()
}

OPEN_CLIP_VISION: Table = {
    "visual.class_embedding": "vision_encoder.class_token",
    "visual.positional_embedding": "vision_encoder.positions",
    "visual.conv1": "vision_encoder.patches",
    "visual.ln_pre": "vision_encoder.norm_before",
    "visual.transformer.resblocks.*.ln_1": "vision_encoder.blocks.*.attention_norm",
    "visual.transformer.resblocks.*.attn.in_proj_weight": tuple(f"{x}.weight" for x in QKV),
    "visual.transformer.resblocks.*.attn.in_proj_bias": tuple(f"{x}.bias" for x in QKV),
    "visual.transformer.resblocks.*.attn.out_proj": "vision_encoder.blocks.*.attention.out",
    "visual.transformer.resblocks.*.ln_2": "vision_encoder.blocks.*.mlp_norm",
    "visual.transformer.resblocks.*.mlp.c_fc": "vision_encoder.blocks.*.up",
    "visual.transformer.resblocks.*.mlp.c_proj": "vision_encoder.blocks.*.down",
    "visual.ln_post": "vision_encoder.norm_after",
}


def translate(
    state: Mapping[str, Tensor], table: Table, part: str = "", ignored_prefixes: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Their state dict under our names, and those of their keys that are left aside.

    Args:
        part: only what belongs to this part of ours; the names come without it.
        ignored_prefixes: of names that are left aside too.

    Raises:
        InputError: two keys that should hold the same weights (tied ones) do not.
    """
    prefix = f"{part}." if part else ""
    rows = [
        (re.compile(re.escape(theirs).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias|)"), ours)
        for theirs, ours in table.items()
    ]
    found: dict[str, Tensor] = {}
    ignored = []
    for key, tensor in state.items():
        names = [name.removeprefix(prefix) for name in our_names(key, rows) if name.startswith(prefix)]
        if not names or names[0].startswith(ignored_prefixes):
            ignored.append(key)
            continue
        pieces = tensor.tensor_split(len(names)) if tensor.ndim else [tensor] * len(names)
        for name, piece in zip(names, pieces, strict=True):
            if name in found and not torch.equal(found[name], piece):
                raise InputError(f"{key} differs from the other tensor that stands for {name}: they should be tied")
            found[name] = piece
            if key.endswith(".attn.q_bias"):  # LAVIS's EVA has no bias on its keys
                found[name.replace(".query.", ".key.")] = torch.zeros_like(piece)
    return found, tuple(ignored)


def our_names(key: str, rows: Iterable[tuple[re.Pattern[str], str | tuple[str, ...]]]) -> list[str]:
    """What the first row that fits makes of one of their keys; nothing where none fits."""
    for pattern, ours in rows:
        if match := pattern.fullmatch(key):
            *number, leaf = match.groups()
            return [name.replace("*", "".join(number)) + leaf for name in ((ours,) if isinstance(ours, str) else ours)]
    return []


def load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    table: Table,
    part: str = "",
    *,
    source: Path | str = "the checkpoint",
    optional_prefixes: tuple[str, ...] = (),
    ignored_prefixes: tuple[str, ...] = (),
) -> LoadReport:
    """Copy a published state dict into one part of ours, or into a module that holds the parts under their names.

    Args:
        optional_prefixes: of the module's keys that may be missing.
        ignored_prefixes: of names that the checkpoint has and the module need not have.

    Returns:
        Their keys that were used (mapped) and left aside (ignored), our keys that were not there (missing).

    Raises:
        InputError: keys are missing, unknown to the module, or of another shape.
    """
    found, ignored = translate(state, table, part, ignored_prefixes)
    own = module.state_dict()
    found = {name: without_batch(tensor, own[name].ndim) if name in own else tensor for name, tensor in found.items()}
    missing = load_strict(module, found, source=source, optional_prefixes=optional_prefixes).missing
    left = set(ignored)
    return LoadReport(tuple(key for key in state if key not in left), missing, ignored)


def without_batch(tensor: Tensor, ndim: int) -> Tensor:
    """Published parameters such as ``query_tokens [1, Q, D]`` carry axes of length 1 in front."""
    while tensor.ndim > ndim and len(tensor) == 1:
        tensor = tensor[0]
    return tensor
