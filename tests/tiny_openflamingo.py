"""State dicts in OpenFlamingo's layout, tiny and random."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

WORDS = 257  # of the small tokenizer
WIDTH = 64  # of the tiny image encoder
State = dict[str, Tensor]

FEED_FORWARD = {"0.weight": (24,), "0.bias": (24,), "1.weight": (48, 24), "3.weight": (24, 48)}
GATED = {
    **{f"attn.norm.{x}": (24,) for x in ("weight", "bias")},
    **{"attn.to_q.weight": (128, 24), "attn.to_kv.weight": (256, WIDTH), "attn.to_out.weight": (24, 128)},
    **{f"ff.{name}": shape for name, shape in FEED_FORWARD.items()},
    **{"attn_gate": (1,), "ff_gate": (1,)},
}
RESAMPLER_LAYER = {
    **{f"0.{norm}.{x}": (WIDTH,) for norm in ("norm_media", "norm_latents") for x in ("weight", "bias")},
    **{"0.to_q.weight": (128, WIDTH), "0.to_kv.weight": (256, WIDTH), "0.to_out.weight": (WIDTH, 128)},
    **{"1.0.weight": (WIDTH,), "1.0.bias": (WIDTH,), "1.1.weight": (128, WIDTH), "1.3.weight": (WIDTH, 128)},
}
TOWER_LAYER = {
    **{f"{norm}.{x}": (WIDTH,) for norm in ("ln_1", "ln_2") for x in ("weight", "bias")},
    **{"attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,)},
    **{"attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,)},
    **{"mlp.c_fc.weight": (80, WIDTH), "mlp.c_fc.bias": (80,)},
    **{"mlp.c_proj.weight": (WIDTH, 80), "mlp.c_proj.bias": (WIDTH,)},
}
TOWER = {
    **{"class_embedding": (WIDTH,), "positional_embedding": (10, WIDTH), "conv1.weight": (WIDTH, 3, 4, 4)},
    **{f"{norm}.{x}": (WIDTH,) for norm in ("ln_pre", "ln_post") for x in ("weight", "bias")},
    **{f"transformer.resblocks.{i}.{name}": shape for i in range(2) for name, shape in TOWER_LAYER.items()},
}


def random_state(shapes: dict[str, tuple[int, ...]], prefix: str) -> State:
    return {f"{prefix}{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def tower() -> State:
    torch.manual_seed(5)
    return random_state(TOWER, "")


def saved(path: Path, state: State, nested: bool = False) -> Path:
    """As published, or as the training saves it."""
    prefixed = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 3, "model_state_dict": prefixed, "optimizer_state_dict": {}} if nested else state, path)
    return path


def bridge(path: str, blocks: int) -> State:
    """The resampler, and a gated block with shut gates before every second of the language model's blocks, which lie at ``path``."""
    torch.manual_seed(11)
    state = random_state({"latents": (3, WIDTH), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}, "perceiver.")
    for i in range(2):
        state |= random_state(RESAMPLER_LAYER, f"perceiver.layers.{i}.")
    for i in range(blocks // 2):
        gated = random_state(GATED, f"lang_encoder.{path}.{2 * i + 1}.gated_cross_attn_layer.")
        state |= {key: x * 0 if key.endswith("_gate") else x for key, x in gated.items()}
    return state
