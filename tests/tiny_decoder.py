"""Tiny random decoders, one of each kind."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from triptych.checkpoints.tables.language import FAMILIES
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.nn.t5 import T5

LLAMA = DecoderConfig(vocab_size=50, dim=24, layers=2, heads=6, ffn_dim=40, kv_heads=2, max_positions=64)
CONFIGS = {
    "llama": LLAMA,
    "window": DecoderConfig(
        vocab_size=50, dim=24, layers=2, heads=2, ffn_dim=40, window=4, tied=False, max_positions=64
    ),
    "opt": DecoderConfig(
        vocab_size=50,
        dim=24,
        layers=2,
        heads=3,
        ffn_dim=40,
        embed_dim=16,
        positions="learned",
        norm="layer",
        pre_norm=False,
        activation="relu",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        max_positions=64,
    ),
    "gpt_neox": DecoderConfig(
        vocab_size=50,
        dim=24,
        layers=2,
        heads=3,
        ffn_dim=40,
        rotary_dim=2,
        norm="layer",
        parallel=True,
        activation="gelu",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        tied=False,
        max_positions=64,
    ),
    "mpt": DecoderConfig(
        vocab_size=50,
        dim=24,
        layers=2,
        heads=6,
        ffn_dim=40,
        positions="alibi",
        norm="layer",
        norm_bias=False,
        activation="gelu",
        gated=False,
        max_positions=64,
    ),
    "gemma": replace(
        LLAMA,
        layers=3,
        head_dim=6,
        window=4,
        local_layers=(0, 2),
        local_rope_theta=50.0,
        rope_factors=(2.0, 2.0, 2.0),
        embed_scale=5.0,
        qk_norm="head",
        attention_scale=0.3,
        attention_softcap=2.0,
        logit_softcap=3.0,
        post_norm=True,
        activation="gelu_tanh",
    ),
    "olmo2": replace(LLAMA, qk_norm="all", pre_norm=False, post_norm=True, unrotated_layers=(1,), rope_magnitude=1.2),
    "alibi, window, grouped": replace(LLAMA, positions="alibi", window=4, alibi_bias_max=3),
}


def random_decoder(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.data = torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
    return decoder


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(seed))


def as_transformers(model: Decoder | T5, kind: str = "llama") -> dict[str, Tensor]:
    """The tensors of a Llama-like model or a T5 by transformers' names, the fused ones cut apart."""
    c, own = model.config if isinstance(model.config, DecoderConfig) else model.config.block, model.state_dict()
    heads = [c.heads * c.head_width, c.groups * c.head_width, c.groups * c.head_width]
    theirs = {}
    for target, sources in FAMILIES[kind].table.items():
        for layer in range(c.layers if "*" in target else 1):
            if (name := f"{target.replace('*', str(layer))}.weight") in own:
                sizes = heads if target.endswith("qkv") else [len(own[name]) // len(sources)] * len(sources)
                for source, part in zip(sources, own[name].split(sizes), strict=True):
                    theirs[f"{source.replace('*', str(layer))}.weight"] = part.contiguous()
    return theirs
