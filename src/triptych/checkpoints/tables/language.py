"""Key tables and configs of language models (Llama-like, OPT, GPT-NeoX, MPT, GGUF).

A row reads ``our prefix: their prefixes``; ``*`` is a layer's number, and several of theirs are stacked into one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoints.format import LoadReport
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig

Table = Mapping[str, tuple[str, ...]]


LLAMA: Table = {
    "embedding": ("model.embed_tokens",),
    "blocks.*.attention_norm": ("model.layers.*.input_layernorm",),
    "blocks.*.attention.qkv": tuple(f"model.layers.*.self_attn.{x}_proj" for x in "qkv"),
    "blocks.*.attention.out": ("model.layers.*.self_attn.o_proj",),
    "blocks.*.ffn_norm": ("model.layers.*.post_attention_layernorm",),
    "blocks.*.ffn.up": ("model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"),
    "blocks.*.ffn.down": ("model.layers.*.mlp.down_proj",),
    "final_norm": ("model.norm",),
    "head": ("lm_head",),
}


OPT: Table = {
    "embedding": ("model.decoder.embed_tokens",),
    "position_embedding": ("model.decoder.embed_positions",),
    "project_in": ("model.decoder.project_in",),
    "blocks.*.attention_norm": ("model.decoder.layers.*.self_attn_layer_norm",),
    "blocks.*.attention.qkv": tuple(f"model.decoder.layers.*.self_attn.{x}_proj" for x in "qkv"),
    "blocks.*.attention.out": ("model.decoder.layers.*.self_attn.out_proj",),
    "blocks.*.ffn_norm": ("model.decoder.layers.*.final_layer_norm",),
    "blocks.*.ffn.up": ("model.decoder.layers.*.fc1",),
    "blocks.*.ffn.down": ("model.decoder.layers.*.fc2",),
    "final_norm": ("model.decoder.final_layer_norm",),
    "project_out": ("model.decoder.project_out",),
    "head": ("lm_head",),
}


GPT_NEOX: Table = {
    "embedding": ("gpt_neox.embed_in",),
    "blocks.*.attention_norm": ("gpt_neox.layers.*.input_layernorm",),
    "blocks.*.attention.qkv": ("gpt_neox.layers.*.attention.query_key_value",),
    "blocks.*.attention.out": ("gpt_neox.layers.*.attention.dense",),
    "blocks.*.ffn_norm": ("gpt_neox.layers.*.post_attention_layernorm",),
    "blocks.*.ffn.up": ("gpt_neox.layers.*.mlp.dense_h_to_4h",),
    "blocks.*.ffn.down": ("gpt_neox.layers.*.mlp.dense_4h_to_h",),
    "final_norm": ("gpt_neox.final_layer_norm",),
    "head": ("embed_out",),
}


MPT: Table = {
    "embedding": ("transformer.wte",),
    "blocks.*.attention_norm": ("transformer.blocks.*.norm_1",),
    "blocks.*.attention.qkv": ("transformer.blocks.*.attn.Wqkv",),
    "blocks.*.attention.out": ("transformer.blocks.*.attn.out_proj",),
    "blocks.*.ffn_norm": ("transformer.blocks.*.norm_2",),
    "blocks.*.ffn.up": ("transformer.blocks.*.ffn.up_proj",),
    "blocks.*.ffn.down": ("transformer.blocks.*.ffn.down_proj",),
    "final_norm": ("transformer.norm_f",),
    "head": ("lm_head",),
}


GGUF_LLAMA: Table = {
    "embedding": ("token_embd",),
    "blocks.*.attention_norm": ("blk.*.attn_norm",),
    "blocks.*.attention.qkv": ("blk.*.attn_q", "blk.*.attn_k", "blk.*.attn_v"),
    "blocks.*.attention.out": ("blk.*.attn_output",),
    "blocks.*.ffn_norm": ("blk.*.ffn_norm",),
    "blocks.*.ffn.up": ("blk.*.ffn_gate", "blk.*.ffn_up"),
    "blocks.*.ffn.down": ("blk.*.ffn_down",),
    "final_norm": ("output_norm",),
    "head": ("output",),
}


TABLES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "opt": OPT, "gpt_neox": GPT_NEOX, "mpt": MPT}


HEAD_BY_HEAD = ".query_key_value."  # in such keys the rows are q, k and v of the first head, of the second, ..


TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # the same function, computed in several ways


MPT_COVERED: dict[str, tuple[Any, ...]] = {
    "attn_type": ("multihead_attention",),
    "alibi": (True,),
    "clip_qkv": (None,),
    "softmax_scale": (None,),
    "qk_ln": (False,),
    "prefix_lm": (False,),
    "logit_scale": (None,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}


def translate(
    theirs: Mapping[str, Tensor], table: Table, config: DecoderConfig
) -> tuple[dict[str, Tensor], LoadReport]:
    """Their state dict as ours. Keys that the table does not name, and the head of a tied model, are ignored and reported."""
    ours, used = {}, []
    for target, sources in table.items():
        if target == "head" and config.tied:
            continue
        for layer in range(config.layers if "*" in target else 1):
            for kind in ("weight", "bias"):
                keys = [f"{source.replace('*', str(layer))}.{kind}" for source in sources]
                if all(key in theirs for key in keys):
                    stacked = [
                        part_by_part(theirs[key], config.heads, key) if HEAD_BY_HEAD in key else theirs[key]
                        for key in keys
                    ]
                    ours[f"{target.replace('*', str(layer))}.{kind}"] = (
                        torch.cat(stacked) if stacked[1:] else stacked[0]
                    )
                    used += keys
    return ours, LoadReport(tuple(used), (), tuple(theirs.keys() - set(used)))


def config_from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """The config of a transformers model (its config.json, or ``model.config.to_dict()``).

    InputError: a model type or a setting that the decoder does not cover, or a missing value.
    """
    kind = config.get("model_type")
    if kind not in TABLES:
        raise InputError(f"language models of the type {kind!r} are not covered: there are {', '.join(TABLES)}")
    try:
        return CONFIGS.get(kind, _llama_config)(config)
    except KeyError as error:
        raise InputError(f"the config of the language model has no {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the config of the language model makes no sense: {error}") from None


def _llama_config(config: Mapping[str, Any]) -> DecoderConfig:
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"a gated feed-forward with {config['hidden_act']!r} is not covered: only silu is")
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    qwen = config["model_type"] == "qwen2"
    window = config.get("sliding_window")
    if qwen and not config.get("use_sliding_window"):
        window = None
    elif qwen and window and config.get("max_window_layers", 0) > 0:
        raise InputError("a sliding window in some layers only is not covered")
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        ffn_dim=config["intermediate_size"],
        kv_heads=config.get("num_key_value_heads"),
        head_dim=width,
        max_positions=config["max_position_embeddings"],
        rope_theta=theta,
        rope_factors=rope_factors(rope, theta, width),
        window=window,
        eps=config["rms_norm_eps"],
        qkv_bias=qwen or bool(config.get("attention_bias")),
        out_bias=bool(config.get("attention_bias")),
        ffn_bias=bool(config.get("mlp_bias")),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _opt_config(config: Mapping[str, Any]) -> DecoderConfig:
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
        activation=config.get("activation_function", "relu"),
        gated=False,
        qkv_bias=config.get("enable_bias", True),
        out_bias=config.get("enable_bias", True),
        ffn_bias=config.get("enable_bias", True),
        tied=config.get("tie_word_embeddings", True),
    )


def _gpt_neox_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Black et al. 2022. Older configs have ``rotary_pct`` and ``rotary_emb_base`` in place of ``rope_parameters``."""
    heads, activation = config["num_attention_heads"], config.get("hidden_act", "gelu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rotary_emb_base") or 10000.0
    share = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    rotary_dim = int(config["hidden_size"] // heads * share)
    attention_bias = bool(config.get("attention_bias", True))
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        ffn_dim=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        rotary_dim=rotary_dim,
        rope_theta=theta,
        rope_factors=rope_factors(rope, theta, rotary_dim),
        norm="layer",
        parallel=bool(config.get("use_parallel_residual", True)),
        eps=config.get("layer_norm_eps", 1e-5),
        activation="gelu_tanh" if activation in TANH_GELUS else activation,
        gated=False,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn_bias=True,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _mpt_config(config: Mapping[str, Any]) -> DecoderConfig:
    """MosaicML's MPT (2023). Defaults as transformers has them; it always takes 8 for ``alibi_bias_max``, MosaicML's code what is said."""
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


CONFIGS = {"opt": _opt_config, "gpt_neox": _gpt_neox_config, "mpt": _mpt_config}  # all others are Llama-like


def rope_factors(rope: Mapping[str, Any], theta: float, width: int) -> tuple[float, ...] | None:
    """What each rotary frequency is divided by; None = by nothing. Llama 3's rule slows the long waves and blends into the short ones."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return (float(rope["factor"]),) * (width // 2)
    if kind != "llama3":
        raise InputError(f"rotary positions of the type {kind!r} are not covered: default, linear and llama3 are")
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = (
        rope["original_max_position_embeddings"]
        * theta ** -(torch.arange(0, width, 2).double() / width)
        / (2 * torch.pi)
    )
    short = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed by the whole factor, 1: left as it is
    return tuple((1 / ((1 - short) / factor + short)).tolist())


def half_split(stored: Tensor, heads: int, name: str) -> Tensor:
    """Rows of queries or keys ``[H * d, D]`` as rotary positions take them here: pairs (i, i + d/2) instead of (2i, 2i + 1)."""
    if len(stored) % (2 * heads):
        raise InputError(f"{name} has {len(stored)} rows, which are not {heads} heads of an even width")
    return stored.view(heads, len(stored) // heads // 2, 2, -1).transpose(1, 2).reshape(stored.shape)


def part_by_part(stored: Tensor, heads: int, name: str) -> Tensor:
    """Rows ``[H * 3 * d, ..]``, q, k and v of one head after another -> all of q, then of k, then of v."""
    rows = stored.shape[:1].numel()
    if rows % (3 * heads):
        raise InputError(f"{name} has {rows} rows, which are not q, k and v of {heads} heads")
    return stored.view(heads, 3, rows // (3 * heads), *stored.shape[1:]).transpose(0, 1).reshape(stored.shape)
