"""Tables of keys for BLIP-2: transformers' and LAVIS's checkpoints, BERT for the Q-Former, CLIP's and open_clip's vision towers.

A row reads ``their prefix: our prefix``; ``*`` is a layer's number. Several names of ours mean that the tensor is cut into as many
equal parts. Our names begin with the part they belong to: ``vision_encoder``, ``qformer``, ``heads``, ``projection``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.checkpoint import LoadReport, load_strict
from triptych.errors import InputError
from triptych.qformer import QFormer

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


def bert_layers(prefix: str, attention: str) -> Table:
    """The layers of a BERT, and what a Q-Former adds to them; ``attention``: the name of the projections' module."""
    layer, ours = f"{prefix}encoder.layer.*", "qformer.layers.*"
    rows: dict[str, str | tuple[str, ...]] = {}
    for theirs, name in (("attention", "self_attention"), ("crossattention", "cross_attention")):
        for x in ("query", "key", "value"):
            rows[f"{layer}.{theirs}.{attention}.{x}"] = f"{ours}.{name}.attention.{x}"
        rows[f"{layer}.{theirs}.output.dense"] = f"{ours}.{name}.attention.out"
        rows[f"{layer}.{theirs}.output.LayerNorm"] = f"{ours}.{name}.norm"
    for theirs, name in (("", "text_mlp"), ("_query", "query_mlp")):
        rows[f"{layer}.intermediate{theirs}.dense"] = f"{ours}.{name}.up"
        rows[f"{layer}.output{theirs}.dense"] = f"{ours}.{name}.down"
        rows[f"{layer}.output{theirs}.LayerNorm"] = f"{ours}.{name}.norm"
    return rows


def bert(prefix: str) -> Table:
    """BERT's own layout, which LAVIS keeps."""
    return {
        f"{prefix}embeddings.word_embeddings": "qformer.word_embeddings",
        f"{prefix}embeddings.position_embeddings": "qformer.position_embeddings",
        f"{prefix}embeddings.LayerNorm": "qformer.norm",
        **bert_layers(prefix, "self"),
    }


HF_BLIP2: Table = {  # BLIP-2 for generation and for retrieval, InstructBLIP; without the language model
    **HF_EVA,
    "query_tokens": "qformer.query_tokens",
    "embeddings.word_embeddings": "qformer.word_embeddings",
    "embeddings.position_embeddings": "qformer.position_embeddings",
    "qformer.layernorm": "qformer.norm",
    "qformer.embeddings.word_embeddings": "qformer.word_embeddings",
    "qformer.embeddings.position_embeddings": "qformer.position_embeddings",
    "qformer.embeddings.layernorm": "qformer.norm",
    **bert_layers("qformer.", "attention"),
    "vision_projection": "heads.vision_proj",
    "text_projection": "heads.text_proj",
    "itm_head": "heads.itm_head",
    "language_projection": "projection",
}

LAVIS: Table = {  # the first and second stage, and InstructBLIP (llm_proj)
    **LAVIS_EVA,
    "query_tokens": "qformer.query_tokens",
    **bert("Qformer.bert."),
    "Qformer.cls.predictions.transform.dense": "heads.lm_dense",
    "Qformer.cls.predictions.transform.LayerNorm": "heads.lm_norm",
    "Qformer.cls.predictions.decoder.weight": "qformer.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "heads.lm_bias",
    "Qformer.cls.predictions.bias": "heads.lm_bias",
    "vision_proj": "heads.vision_proj",
    "text_proj": "heads.text_proj",
    "itm_head": "heads.itm_head",
    "temp": "heads.temperature",
    "opt_proj": "projection",
    "t5_proj": "projection",
    "llm_proj": "projection",
}

BERT: Table = {**bert(""), **bert("bert.")}


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


def load_bert(qformer: QFormer, state: Mapping[str, Tensor]) -> LoadReport:
    """Begin a Q-Former as a BERT of its size (MiniLM-L6, BERT-base); queries and cross-attention stay as they are.

    The queries' feed-forward layers become copies of the text's. BERT adds the embedding of its first segment to every word; the
    Q-Former knows no segments, so that it goes into the positions, of which there may be fewer than BERT's. [DEC], which BERT has
    not, keeps its initial embedding.

    Raises:
        InputError: the sizes differ.
    """
    found, ignored = translate(state, BERT, "qformer")
    segments = next((key for key in ignored if key.endswith("embeddings.token_type_embeddings.weight")), None)
    try:
        words, positions = found["word_embeddings.weight"], found["position_embeddings.weight"]
        positions = positions[: qformer.config.max_positions]
        found["position_embeddings.weight"] = positions + state[segments][0] if segments else positions
        own = qformer.word_embeddings.weight.detach()
        found["word_embeddings.weight"] = torch.cat([words, own[len(words) :]])
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"the weights are not those of a BERT of {qformer.config.dim} channels: {error}") from None
    found |= {
        name.replace(".text_mlp.", ".query_mlp."): tensor for name, tensor in found.items() if ".text_mlp." in name
    }
    fresh = tuple(name for name in qformer.state_dict() if name == "query_tokens" or ".cross_attention." in name)
    missing = load_strict(qformer, found, source="BERT", optional_prefixes=fresh).missing
    left = tuple(key for key in ignored if key != segments)
    return LoadReport(tuple(key for key in state if key not in left), missing, left)
