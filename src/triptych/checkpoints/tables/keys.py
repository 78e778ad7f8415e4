"""Published state dicts under our names, by tables of keys; and the tables of vision towers (EVA, CLIP, open_clip).

A row reads ``their prefix: our prefix``; ``*`` is a layer's number. Several names of ours mean that the tensor is cut into as many
equal parts. Our names begin with the part they belong to: ``vision_encoder``, ``qformer``, ``resampler``, ``xattn``...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.checkpoints.place import LoadReport, load_strict
from triptych.checkpoints.store import DerivedStore, Recipe, TensorStore, as_store
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


def translated(
    state: Mapping[str, Tensor], table: Table, part: str = "", ignored_prefixes: tuple[str, ...] = ()
) -> tuple[DerivedStore, tuple[str, ...]]:
    """Their tensors under our names, each translated when it is asked for; and those of their keys that are left aside.

    Args:
        part: only what belongs to this part of ours; the names come without it.
        ignored_prefixes: of names that are left aside too.

    Where two keys hold the same weights (tied ones), both are read; InputError then: they do not.
    """
    prefix = f"{part}." if part else ""
    rows = [
        (re.compile(re.escape(theirs).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias|)"), ours)
        for theirs, ours in table.items()
    ]
    recipes: dict[str, Recipe] = {}
    ignored = []
    for key in state:
        names = [name.removeprefix(prefix) for name in our_names(key, rows) if name.startswith(prefix)]
        if not names or names[0].startswith(ignored_prefixes):
            ignored.append(key)
            continue
        for place, name in enumerate(names):
            if name in recipes:
                recipes[name] = Recipe((*recipes[name].sources, key), partial(tied, name))
            else:
                part_of = partial(piece, place, len(names))
                recipes[name] = Recipe((key,), part_of, part_of)
            if key.endswith(".attn.q_bias"):  # LAVIS's EVA has no bias on its keys
                recipes[name.replace(".query.", ".key.")] = Recipe((key,), lambda x: torch.zeros_like(x[0]))
    return DerivedStore(as_store(state), recipes), tuple(ignored)


def piece(place: int, pieces: int, tensors: list[Tensor]) -> Tensor:
    """One of several equal parts of a tensor."""
    return tensors[0].tensor_split(pieces)[place] if pieces > 1 else tensors[0]  # a view, of a layout as well


def tied(name: str, tensors: list[Tensor]) -> Tensor:
    """Raises InputError: the tensors, which should be the same, are not."""
    first, *others = tensors
    if not first.is_meta and not all(torch.equal(first, other) for other in others):
        raise InputError(f"several tensors stand for {name}, which should be tied, and they differ")
    return first


def our_names(key: str, rows: Iterable[tuple[re.Pattern[str], str | tuple[str, ...]]]) -> list[str]:
    """What the first row that fits makes of one of their keys; nothing where none fits."""
    for pattern, ours in rows:
        if match := pattern.fullmatch(key):
            *number, leaf = match.groups()
            return [name.replace("*", "".join(number)) + leaf for name in ((ours,) if isinstance(ours, str) else ours)]
    return []


def fitted(store: TensorStore, module: nn.Module) -> DerivedStore:
    """Published parameters such as ``query_tokens [1, Q, D]`` without the axes of length 1 that ours have not."""
    own = module.state_dict()
    names = {name: own[name].ndim if name in own else -1 for name in store}
    squeezed = {name: partial(without_batch, ndim) for name, ndim in names.items()}
    return DerivedStore(store, {name: Recipe((name,), squeeze, squeeze) for name, squeeze in squeezed.items()})


def without_batch(ndim: int, tensors: list[Tensor]) -> Tensor:
    tensor = tensors[0]
    while -1 < ndim < tensor.ndim and len(tensor) == 1:
        tensor = tensor.view(tensor.shape[1:])
    return tensor


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
    tensors, ignored = translated(state, table, part, ignored_prefixes)
    missing = load_strict(module, fitted(tensors, module), source=source, optional_prefixes=optional_prefixes).missing
    left = set(ignored)
    return LoadReport(tuple(key for key in state if key not in left), missing, ignored)
