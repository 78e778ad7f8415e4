"""The table of keys for OpenFlamingo's checkpoints, versions 1 and 2 over any language model (how to read it: ``key_tables``)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from triptych.checkpoints.store import DerivedStore, renamed
from triptych.checkpoints.tables.keys import CLIP_TOWER, Table, translated
from triptych.checkpoints.tables.language import KeyTable

BLOCKS = (  # where a gated block lies: version 1, then version 2 over MPT, GPT-NeoX, LLaMA, OPT
    "gated_cross_attn_layers.*",
    "transformer.blocks.*.gated_cross_attn_layer",
    "gpt_neox.layers.*.gated_cross_attn_layer",
    "model.layers.*.gated_cross_attn_layer",
    "model.decoder.layers.*.gated_cross_attn_layer",
)


def feed_forward(theirs: str, ours: str) -> Table:
    """Norm, up and down, by their places; the GELU between has no weights."""
    return {f"{theirs}.{i}": f"{ours}.{i}" for i in (0, 1, 3)}


def gated(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.attn.norm": f"{ours}.norm",
        f"{theirs}.attn.to_q": f"{ours}.attention.query",
        f"{theirs}.attn.to_kv": (f"{ours}.attention.key", f"{ours}.attention.value"),
        f"{theirs}.attn.to_out": f"{ours}.attention.out",
        f"{theirs}.attn_gate": f"{ours}.attn_gate",
        f"{theirs}.ff_gate": f"{ours}.ffw_gate",
        **feed_forward(f"{theirs}.ff", f"{ours}.ffw"),
    }


def resampler(theirs: str, ours: str) -> Table:
    layer, own = f"{theirs}.layers.*", f"{ours}.layers.*"
    return {
        f"{theirs}.latents": f"{ours}.latents",
        f"{theirs}.frame_embs": f"{ours}.frame_embeddings",
        f"{theirs}.media_time_embs": f"{ours}.picture_embeddings",
        f"{theirs}.norm": f"{ours}.norm",
        f"{layer}.0.norm_media": f"{own}.media_norm",
        f"{layer}.0.norm_latents": f"{own}.latents_norm",
        f"{layer}.0.to_q": f"{own}.attention.query",
        f"{layer}.0.to_kv": (f"{own}.attention.key", f"{own}.attention.value"),
        f"{layer}.0.to_out": f"{own}.attention.out",
        **feed_forward(f"{layer}.1", f"{own}.ffw"),
    }


OPENFLAMINGO: Table = {  # a gated block is numbered by the language model's block that it stands before
    **resampler("perceiver", "resampler"),
    **{k: v for place in BLOCKS for k, v in gated(f"lang_encoder.{place}", "xattn.*").items()},
}


PERCEIVER, CROSS = "model.perceiver_resampler", "model.gated_cross_attn_layers.*"
IDEFICS: Table = {  # without the language model's own tensors; what is stacked: IDEFICS_GATED
    **{f"model.vision_model.{theirs}": ours for theirs, ours in CLIP_TOWER.items()},
    f"{PERCEIVER}.latents": "resampler.latents",
    f"{PERCEIVER}.layer_norm": "resampler.norm",
    f"{PERCEIVER}.blocks.*.0.context_layer_norm": "resampler.layers.*.media_norm",
    f"{PERCEIVER}.blocks.*.0.latents_layer_norm": "resampler.layers.*.latents_norm",
    f"{PERCEIVER}.blocks.*.0.q_layer_norm": "resampler.layers.*.attention.query_norm",
    f"{PERCEIVER}.blocks.*.0.k_layer_norm": "resampler.layers.*.attention.key_norm",
    f"{PERCEIVER}.blocks.*.0.q_proj": "resampler.layers.*.attention.query",
    f"{PERCEIVER}.blocks.*.0.k_proj": "resampler.layers.*.attention.key",
    f"{PERCEIVER}.blocks.*.0.v_proj": "resampler.layers.*.attention.value",
    f"{PERCEIVER}.blocks.*.0.output_proj": "resampler.layers.*.attention.out",
    f"{PERCEIVER}.blocks.*.1.ln": "resampler.layers.*.ffw.0",
    f"{PERCEIVER}.blocks.*.1.fc": "resampler.layers.*.ffw.1",
    f"{PERCEIVER}.blocks.*.1.c_proj": "resampler.layers.*.ffw.3",
    f"{CROSS}.alpha_cross_attn": "xattn.*.attn_gate",
    f"{CROSS}.alpha_dense": "xattn.*.ffw_gate",
}
IDEFICS_GATED: KeyTable = {  # as the tables of ``language``
    "xattn.*.norm": (f"{CROSS}.input_layernorm",),
    "xattn.*.attention.query": (f"{CROSS}.cross_attn.q_proj",),
    "xattn.*.attention.key": (f"{CROSS}.cross_attn.k_proj",),
    "xattn.*.attention.value": (f"{CROSS}.cross_attn.v_proj",),
    "xattn.*.attention.out": (f"{CROSS}.cross_attn.o_proj",),
    "xattn.*.attention.query_norm": (f"{CROSS}.cross_attn.q_layer_norm",),
    "xattn.*.attention.key_norm": (f"{CROSS}.cross_attn.k_layer_norm",),
    "xattn.*.ffw.0": (f"{CROSS}.post_attention_layernorm",),
    "xattn.*.ffw.1.up": (f"{CROSS}.mlp.gate_proj", f"{CROSS}.mlp.up_proj"),
    "xattn.*.ffw.1.down": (f"{CROSS}.mlp.down_proj",),
}


def translated_flamingo(state: Mapping[str, Tensor]) -> tuple[DerivedStore, int, tuple[str, ...]]:
    """OpenFlamingo's tensors under our names, every how many blocks a gated one stands, and the keys that were left aside.

    Raises:
        KeyError: it has no gated block.
    """
    store, ignored = translated(state, OPENFLAMINGO)
    numbers = sorted({int(name.split(".")[1]) for name in store if name.startswith("xattn.")})
    if not numbers:
        raise KeyError("gated_cross_attn_layers")
    places = {number: place for place, number in enumerate(numbers)}
    names = {}
    for name in store:
        part, number, rest = (*name.split(".", 2), "")[:3]
        names[f"xattn.{places[int(number)]}.{rest}" if part == "xattn" else name] = name
    return renamed(store, names), numbers[0] + 1, ignored
