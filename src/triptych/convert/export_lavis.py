"""BLIP-2 out again: a ``.pth`` file that LAVIS loads. As LAVIS does, it leaves out the frozen language model."""

from __future__ import annotations

from pathlib import Path

from triptych.checkpoints.format import load_typed
from triptych.checkpoints.store import TensorStore
from triptych.checkpoints.tables.blip2 import LAVIS
from triptych.checkpoints.tables.keys import LAVIS_EVA, Table
from triptych.convert.export_keys import complete, published_recipes, write_torch_file
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig, T5Config, ViTConfig
from triptych.systems.configs import Blip2Config

LAVIS_AXES = {"query_tokens": 1, "visual_encoder.pos_embed": 1, "visual_encoder.cls_token": 2}  # of length 1, in front
PROJECTIONS = ("opt_proj", "t5_proj", "llm_proj")
WRITER = "Qformer.cls."  # the head that writes captions


def export_lavis(directory: Path, target: Path) -> int:
    """Write the BLIP-2 in ``directory`` as ``target``, a file of LAVIS's, in the dtypes that it is stored in.

    Returns:
        How many tensors were written.

    Raises:
        InputError: LAVIS has no model that computes what this one does (the message says why), or ``target`` is there.
        TriptychError: the disk is full or not writable.
    """
    config, tensors = load_typed(directory, "blip2", Blip2Config)
    vit = config.encoder.vit
    if vit is None:
        raise InputError(f"{directory} reads photos with the CNN {config.encoder.name}, for which LAVIS has no place")
    if config.lm is not None and not config.prompts.published:
        raise InputError(f"{directory} is asked with prompts of its own, which LAVIS's models do not make")
    recipes = published_recipes(
        tensors, lavis_table(tensors, vit, config.lm.network if config.lm else None), LAVIS_AXES
    )
    keys = key_biases(tensors, vit)
    if any(tensors[name].any() for name in keys):
        raise InputError(f"{directory}: its image encoder has biases on its keys, which LAVIS's EVA lacks")
    if not vit.norm_before:
        recipes = {name: recipe for name, recipe in recipes.items() if not name.endswith(".attn.qkv.bias")}
    theirs = complete(tensors, recipes, "LAVIS", ("lm.", *keys))
    return write_torch_file(target, theirs, under="model")


def lavis_table(tensors: TensorStore, vit: ViTConfig, lm: DecoderConfig | T5Config | None) -> Table:
    """The rows of ``LAVIS`` that this model has: one kind of image encoder, one projection, the writer's head where it writes."""
    projection = "opt_proj"
    if isinstance(lm, T5Config):
        projection = "t5_proj"
    elif lm is not None and lm.positions == "rotary":
        projection = "llm_proj"
    table: dict[str, str | tuple[str, ...]] = {}
    for theirs, ours in LAVIS.items():
        another_tower = theirs.startswith("visual_encoder.") and (theirs in LAVIS_EVA) == vit.norm_before
        without_writer = theirs.startswith(WRITER) and "heads.lm_dense.weight" not in tensors
        another_projection = theirs in PROJECTIONS and theirs != projection
        if not (another_tower or without_writer or another_projection):
            table[theirs] = ours
    if "vision_norm.weight" in tensors:  # LAVIS trains the norm behind the encoder
        table["ln_vision"] = "vision_norm"
    return table


def key_biases(tensors: TensorStore, vit: ViTConfig) -> list[str]:
    """EVA's, which are zero, and which LAVIS does not keep."""
    if vit.norm_before:
        return []
    names = [f"vision_encoder.blocks.{i}.attention.key.bias" for i in range(vit.layers)]
    return [name for name in names if name in tensors]
