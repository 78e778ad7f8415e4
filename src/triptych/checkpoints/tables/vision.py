"""Tables of keys for transformers' DINOv2 and ViT, of older and newer versions (``keys``: how to read them, and CLIP's and EVA's)."""

from __future__ import annotations

from triptych.checkpoints.tables.keys import CLIP_VISION, QKV, Table

VIT_BLOCKS = "vision_encoder.blocks.*"


def attention(theirs: str) -> Table:
    """The projections of one layer, as in BERT and as newer versions name them."""
    names = [(f"attention.{x}", f"{x[0]}_proj") for x in ("query", "key", "value")]
    rows = {f"{theirs}.{name}": ours for pair, ours in zip(names, QKV, strict=True) for name in pair}
    return rows | {f"{theirs}.{name}": f"{VIT_BLOCKS}.attention.out" for name in ("output.dense", "o_proj")}


def prefixed(prefix: str, table: Table) -> Table:
    return {f"{prefix}{theirs}": ours for theirs, ours in table.items()}


EMBEDDINGS: Table = {
    "embeddings.cls_token": "vision_encoder.class_token",
    "embeddings.register_tokens": "vision_encoder.registers",
    "embeddings.position_embeddings": "vision_encoder.positions",
    "embeddings.patch_embeddings.projection": "vision_encoder.patches",
    "layernorm": "vision_encoder.norm_after",
}

DINOV2_ENCODER: Table = {
    **EMBEDDINGS,
    "encoder.layer.*.norm1": f"{VIT_BLOCKS}.attention_norm",
    **attention("encoder.layer.*.attention"),
    "encoder.layer.*.layer_scale1.lambda1": f"{VIT_BLOCKS}.attention_scale.scale",
    "encoder.layer.*.norm2": f"{VIT_BLOCKS}.mlp_norm",
    "encoder.layer.*.mlp.fc1": f"{VIT_BLOCKS}.up",
    "encoder.layer.*.mlp.fc2": f"{VIT_BLOCKS}.down",
    "encoder.layer.*.layer_scale2.lambda1": f"{VIT_BLOCKS}.mlp_scale.scale",
}


def vit_layers(layer: str, up: str, down: str) -> Table:
    return {
        f"{layer}.layernorm_before": f"{VIT_BLOCKS}.attention_norm",
        **attention(f"{layer}.attention"),
        f"{layer}.layernorm_after": f"{VIT_BLOCKS}.mlp_norm",
        f"{layer}.{up}": f"{VIT_BLOCKS}.up",
        f"{layer}.{down}": f"{VIT_BLOCKS}.down",
    }


VIT_ENCODER: Table = {
    **EMBEDDINGS,
    **vit_layers("encoder.layer.*", "intermediate.dense", "output.dense"),
    **vit_layers("layers.*", "mlp.fc1", "mlp.fc2"),
}

DINOV2: Table = {**DINOV2_ENCODER, **prefixed("dinov2.", DINOV2_ENCODER)}

VISION_TABLES: dict[str, Table] = {
    "clip": CLIP_VISION,
    "clip_vision_model": CLIP_VISION,
    "siglip": CLIP_VISION,
    "siglip_vision_model": CLIP_VISION,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "vit": {**VIT_ENCODER, **prefixed("vit.", VIT_ENCODER)},
}
