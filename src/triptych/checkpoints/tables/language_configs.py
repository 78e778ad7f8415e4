"""The configs of transformers' language models as ours, one function for each architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from triptych.checkpoints.tables.rope import read_rope
from triptych.errors import InputError
from triptych.nn.configs import Activation, DecoderConfig, T5Config

Config = Mapping[str, Any]

HIDDEN_ACTS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",  # these three are the same function, computed in several ways
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
MPT_COVERED: dict[str, tuple[Any, ...]] = {
    "attn_type": ("multihead_attention",),
    "alibi": (True,),
    "clip_qkv": (None,),
    "softmax_scale": (None,),
    "prefix_lm": (False,),
    "logit_scale": (None,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}
MOSAIC_GPT_NAMES = {  # -> MPT's
    "mlp_ratio": "expansion_ratio",
    "attn_qk_ln": "qk_ln",
    "attn_clip_qkv": "clip_qkv",
}
GEMMA3_DEFAULTS = {  # what a Gemma 3 with pictures leaves out of its text_config
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def activation(name: str) -> Activation:
    if name not in HIDDEN_ACTS:
        raise InputError(f"the activation {name!r} is not covered: there are {', '.join(HIDDEN_ACTS)}")
    return HIDDEN_ACTS[name]


def llama_config(config: Config) -> DecoderConfig:
    """Llama-like models (Touvron et al. 2023); the other families change some of its fields."""
    config = {
        "max_position_embeddings": config.get("max_sequence_length", 2048),
        **config,
    }  # LLaMA's first conversions lack it
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    biases = bool(config.get("attention_bias"))
    rotary = int(width * rope_share(config))
    rope = read_rope(config, rotary)
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        ffn_dim=config["intermediate_size"],
        kv_heads=config.get("num_key_value_heads"),
        head_dim=width,
        max_positions=rope.max_positions or config["max_position_embeddings"],
        rotary_dim=None if rotary == width else rotary,
        rope_theta=rope.theta,
        rope_factors=rope.factors,
        rope_magnitude=rope.magnitude,
        eps=config["rms_norm_eps"],
        activation=activation(config.get("hidden_activation") or config.get("hidden_act") or "silu"),
        qkv_bias=biases,
        out_bias=biases,
        ffn_bias=bool(config.get("mlp_bias")),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def rope_share(config: Config, default: float = 1.0) -> float:
    """Of a head's components, those that are rotated."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or default)


def mistral_config(config: Config) -> DecoderConfig:
    """Mistral (Jiang et al. 2023) and Phi-3 (2024): the window holds for all layers."""
    return replace(llama_config(config), window=config.get("sliding_window"))


def qwen_config(config: Config) -> DecoderConfig:
    """Qwen2 (2024) and Qwen3 (2025): a window, where it is switched on, from ``max_window_layers`` on."""
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    ours = replace(llama_config(config), **local(config, window, lambda layer: layer >= first))
    if config["model_type"] == "qwen2":
        return replace(ours, qkv_bias=True, out_bias=False)
    return replace(ours, qk_norm="head")


def smollm3_config(config: Config) -> DecoderConfig:
    """SmolLM3 (2025): every fourth layer without positions."""
    ours = llama_config(config)
    interval, layers = config.get("no_rope_layer_interval", 4), range(ours.layers)
    rotated = config.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in layers]
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    return replace(
        ours,
        unrotated_layers=tuple(layer for layer in layers if not rotated[layer]),
        tied=bool(config.get("tie_word_embeddings", True)),
        **local(config, window, lambda layer: not rotated[layer]),
    )


def olmo2_config(config: Config) -> DecoderConfig:
    """OLMo 2 (OLMo team 2024): norms behind attention and feed-forward, and of all queries and all keys."""
    return replace(llama_config(config), qk_norm="all", pre_norm=False, post_norm=True)


def gemma_config(config: Config) -> DecoderConfig:
    """Gemma (2024): its config says "gelu" for the tanh approximation."""
    tanh = {"gelu": "gelu_pytorch_tanh"}
    name = config.get("hidden_activation") or config.get("hidden_act") or "gelu"
    settings = {**config, "hidden_activation": tanh.get(name, name)}
    tied = bool(config.get("tie_word_embeddings", True))
    return replace(llama_config(settings), embed_scale=math.sqrt(config["hidden_size"]), tied=tied)


def gemma2_config(config: Config) -> DecoderConfig:
    """Gemma 2 (2024): norms on both sides, capped scores and logits, a window in every second layer."""
    return replace(
        gemma_config(config),
        post_norm=True,
        attention_scale=config["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping"),
        logit_softcap=config.get("final_logit_softcapping"),
        **local(config, config.get("sliding_window"), lambda layer: layer % 2 == 0),
    )


def gemma3_config(config: Config) -> DecoderConfig:
    """Gemma 3 (2025): a window in five of six layers, which have rotary frequencies of their own; norms of queries and keys."""
    settings = {**GEMMA3_DEFAULTS, **config}
    if settings.get("use_bidirectional_attention"):
        raise InputError("a Gemma 3 that attends to later tokens (use_bidirectional_attention) is not covered")
    if not isinstance(settings.get("rope_parameters"), Mapping):
        settings["rope_theta"] = settings.get("rope_theta", 1e6)
    of_local = {"rope_theta": settings.get("rope_local_base_freq", 1e4)}
    if "rope_parameters" in settings:
        of_local = {"rope_parameters": settings["rope_parameters"]}
    ours = gemma2_config(settings)
    rope = read_rope(
        {**of_local, "max_position_embeddings": ours.max_positions}, ours.rotary_width, kind="sliding_attention"
    )
    if rope.factors is not None:
        raise InputError("a Gemma 3 whose local layers scale their rotary positions is not covered")
    period = settings.get("sliding_window_pattern", 6)
    return replace(
        ours,
        qk_norm="head",
        local_rope_theta=rope.theta,
        **local(settings, settings["sliding_window"], lambda layer: (layer + 1) % period != 0),
    )


def local(config: Config, window: int | None, has_window: Callable[[int], bool]) -> dict[str, Any]:
    """The window and the layers that it holds for: those that ``layer_types`` names, else where ``has_window(layer)``."""
    if window is None:
        return {"window": None, "local_layers": None}
    kinds = config.get("layer_types")
    layers = range(config["num_hidden_layers"])
    chosen = tuple(i for i in layers if (kinds[i] == "sliding_attention" if kinds else has_window(i)))
    return {"window": window, "local_layers": chosen} if chosen else {"window": None, "local_layers": None}


def t5_config(config: Config) -> T5Config:
    """T5 (Raffel et al. 2020) and Flan-T5 (Chung et al. 2022). Whether its output layer is tied is not in the config: see ``with_head``.

    Only models whose config says ``tie_word_embeddings``, the first ones, scale what that layer reads.
    """
    kind = config.get("feed_forward_proj", "relu")
    gated, _, name = kind.rpartition("-")
    name = config.get("dense_act_fn") or ("gelu_new" if kind == "gated-gelu" else name)
    tied = config.get("tie_word_embeddings", True)
    return T5Config(
        vocab_size=config["vocab_size"],
        dim=config["d_model"],
        layers=config["num_layers"],
        decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        ffn_dim=config["d_ff"],
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        eps=config.get("layer_norm_epsilon", 1e-6),
        activation=activation(name),
        gated=gated == "gated",
        scale_output=bool(config.get("scale_decoder_outputs", tied)),
        start_id=config.get("decoder_start_token_id") or config.get("pad_token_id") or 0,
        end_id=first(config.get("eos_token_id", 1)),
    )


def first(ids: Any) -> int:
    """An id, or the first of several."""
    return int(ids[0] if isinstance(ids, list) else ids)


def opt_config(config: Config) -> DecoderConfig:
    """OPT (Zhang et al. 2022)."""
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_dim=config["ffn_dim"],
        embed_dim=config.get("word_embed_proj_dim"),
        max_positions=config["max_position_embeddings"],
        positions="learned",
        norm="layer",
        pre_norm=config.get("do_layer_norm_before", True),
        activation=activation(config.get("activation_function", "relu")),
        gated=False,
        qkv_bias=config.get("enable_bias", True),
        out_bias=config.get("enable_bias", True),
        ffn_bias=config.get("enable_bias", True),
        tied=config.get("tie_word_embeddings", True),
    )


def gpt_neox_config(config: Config) -> DecoderConfig:
    """GPT-NeoX (Black et al. 2022). Older configs have ``rotary_pct`` and ``rotary_emb_base`` in place of ``rope_parameters``."""
    share = rope_share(config, config.get("rotary_pct", 0.25))
    rotary_dim = int(config["hidden_size"] // config["num_attention_heads"] * share)
    rope = read_rope(config, rotary_dim, config.get("rotary_emb_base") or 10000.0)
    attention_bias = bool(config.get("attention_bias", True))
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_dim=config["intermediate_size"],
        max_positions=rope.max_positions or config["max_position_embeddings"],
        rotary_dim=rotary_dim,
        rope_theta=rope.theta,
        rope_factors=rope.factors,
        rope_magnitude=rope.magnitude,
        norm="layer",
        parallel=bool(config.get("use_parallel_residual", True)),
        eps=config.get("layer_norm_eps", 1e-5),
        activation=activation(config.get("hidden_act", "gelu")),
        gated=False,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn_bias=True,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def mpt_config(config: Config) -> DecoderConfig:
    """MPT (MosaicML 2023). Defaults are transformers', which always takes 8 for ``alibi_bias_max``; MosaicML's code reads it."""
    settings = {**config, **(config.get("attn_config") or {})}
    for name, covered in MPT_COVERED.items():
        if (value := settings.get(name, covered[0])) not in covered:
            raise InputError(f"MPT with {name} = {value!r} is not covered: only {' or '.join(map(repr, covered))} is")
    biases = not config.get("no_bias", True)
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=config["d_model"],
        layers=config["n_layers"],
        heads=config["n_heads"],
        ffn_dim=int(config["d_model"] * config.get("expansion_ratio", 4)),
        max_positions=config["max_seq_len"],
        positions="alibi",
        alibi_bias_max=settings.get("alibi_bias_max", 8),
        qk_norm="all" if settings.get("qk_ln") else None,
        norm="layer",
        norm_bias=biases,
        eps=config.get("layer_norm_epsilon", 1e-5),
        activation="gelu",
        gated=False,
        qkv_bias=biases,
        out_bias=biases,
        ffn_bias=biases,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def mosaic_gpt_config(config: Config) -> DecoderConfig:
    """MPT as MosaicML first named it: a flat config, its defaults without ALiBi and with biases (OpenFlamingo-3B's)."""
    flat = {MOSAIC_GPT_NAMES.get(name, name): value for name, value in config.items()}
    return mpt_config({"alibi": False, "no_bias": False, **flat})
