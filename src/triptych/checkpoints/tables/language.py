"""Language models of transformers: for each architecture a table of keys, and what else their tensors and configs need.

A row reads ``our prefix: their prefixes``; ``*`` is a layer's number, and several of theirs are stacked into one of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoints.place import LoadReport
from triptych.checkpoints.store import DerivedStore, Recipe, as_store, stacked_layout
from triptych.checkpoints.tables import language_configs as configs
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig, T5Config

KeyTable = dict[str, tuple[str, ...]]
LanguageModelConfig = DecoderConfig | T5Config
Change = Callable[[Tensor, Any, str], Tensor]  # their tensor, our config, its key -> as ours has it
NO_CHANGES: Mapping[str, Change] = {}


LLAMA: KeyTable = {
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
QK_NORM: KeyTable = {
    "blocks.*.attention.query_norm": ("model.layers.*.self_attn.q_norm",),
    "blocks.*.attention.key_norm": ("model.layers.*.self_attn.k_norm",),
}
POST_NORM: KeyTable = {
    "blocks.*.attention_post_norm": ("model.layers.*.post_attention_layernorm",),
    "blocks.*.ffn_post_norm": ("model.layers.*.post_feedforward_layernorm",),
}
PHI3: KeyTable = LLAMA | {
    "blocks.*.attention.qkv": ("model.layers.*.self_attn.qkv_proj",),
    "blocks.*.ffn.up": ("model.layers.*.mlp.gate_up_proj",),
}
OLMO2: KeyTable = {
    ours: theirs for ours, theirs in LLAMA.items() if not ours.startswith("blocks.") or "_norm" not in ours
}
OLMO2 = OLMO2 | QK_NORM | POST_NORM
GEMMA2: KeyTable = LLAMA | POST_NORM | {"blocks.*.ffn_norm": ("model.layers.*.pre_feedforward_layernorm",)}
GEMMA3: KeyTable = GEMMA2 | QK_NORM


OPT: KeyTable = {
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


GPT_NEOX: KeyTable = {
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


MPT: KeyTable = {
    "embedding": ("transformer.wte",),
    "blocks.*.attention_norm": ("transformer.blocks.*.norm_1",),
    "blocks.*.attention.qkv": ("transformer.blocks.*.attn.Wqkv",),
    "blocks.*.attention.query_norm": ("transformer.blocks.*.attn.q_ln",),
    "blocks.*.attention.key_norm": ("transformer.blocks.*.attn.k_ln",),
    "blocks.*.attention.out": ("transformer.blocks.*.attn.out_proj",),
    "blocks.*.ffn_norm": ("transformer.blocks.*.norm_2",),
    "blocks.*.ffn.up": ("transformer.blocks.*.ffn.up_proj",),
    "blocks.*.ffn.down": ("transformer.blocks.*.ffn.down_proj",),
    "final_norm": ("transformer.norm_f",),
    "head": ("lm_head",),
}


MOSAIC_GPT: KeyTable = MPT | {
    "blocks.*.attention_norm": ("transformer.blocks.*.ln_1",),
    "blocks.*.ffn_norm": ("transformer.blocks.*.ln_2",),
    "blocks.*.ffn.up": ("transformer.blocks.*.mlp.mlp_up",),
    "blocks.*.ffn.down": ("transformer.blocks.*.mlp.mlp_down",),
    "final_norm": ("transformer.ln_f",),
}


def t5_stack(stack: str, ups: Sequence[str], *, cross: bool) -> KeyTable:
    """The encoder or the decoder of a T5, whose blocks have two or three sublayers. ``ups``: into the feed-forward."""
    block, ffn = f"{stack}.block.*.layer", 2 if cross else 1
    rows: KeyTable = {
        f"{stack}.bias.table": (f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",),
        f"{stack}.blocks.*.attention_norm": (f"{block}.0.layer_norm",),
        f"{stack}.blocks.*.attention.qkv": tuple(f"{block}.0.SelfAttention.{x}" for x in "qkv"),
        f"{stack}.blocks.*.attention.out": (f"{block}.0.SelfAttention.o",),
        f"{stack}.blocks.*.ffn_norm": (f"{block}.{ffn}.layer_norm",),
        f"{stack}.blocks.*.ffn.up": tuple(f"{block}.{ffn}.DenseReluDense.{x}" for x in ups),
        f"{stack}.blocks.*.ffn.down": (f"{block}.{ffn}.DenseReluDense.wo",),
        f"{stack}.final_norm": (f"{stack}.final_layer_norm",),
    }
    if cross:
        rows |= {
            f"{stack}.blocks.*.cross_norm": (f"{block}.1.layer_norm",),
            f"{stack}.blocks.*.cross.query": (f"{block}.1.EncDecAttention.q",),
            f"{stack}.blocks.*.cross.key_value": tuple(f"{block}.1.EncDecAttention.{x}" for x in "kv"),
            f"{stack}.blocks.*.cross.out": (f"{block}.1.EncDecAttention.o",),
        }
    return rows


def t5(*ups: str) -> KeyTable:
    encoder, decoder = t5_stack("encoder", ups, cross=False), t5_stack("decoder", ups, cross=True)
    return {"embedding": ("shared",), **encoder, **decoder, "head": ("lm_head",)}


def part_by_part(stored: Tensor, config: DecoderConfig, name: str) -> Tensor:
    """Rows ``[H * 3 * d, ..]``, q, k and v of one head after another -> all of q, then of k, then of v (GPT-NeoX)."""
    rows, heads = stored.shape[:1].numel(), config.heads
    if rows % (3 * heads):
        raise InputError(f"{name} has {rows} rows, which are not q, k and v of {heads} heads")
    return stored.view(heads, 3, rows // (3 * heads), *stored.shape[1:]).transpose(0, 1).reshape(stored.shape)


def plus_one(stored: Tensor, config: DecoderConfig, name: str) -> Tensor:
    """Gemma stores its norms' weights less one."""
    return stored.float() + 1


@dataclass(frozen=True)
class Family:
    """One ``model_type`` of transformers. ``changes``: of tensors under the names of ours that end so."""

    table: KeyTable
    config: Callable[[Mapping[str, Any]], LanguageModelConfig]
    changes: Mapping[str, Change] = field(default_factory=dict)


OF_HEADS = {"attention.qkv": part_by_part}
OFFSET_NORMS = {"_norm": plus_one}
FAMILIES = {
    "llama": Family(LLAMA, configs.llama_config),
    "mistral": Family(LLAMA, configs.mistral_config),
    "qwen2": Family(LLAMA, configs.qwen_config),
    "qwen3": Family(LLAMA | QK_NORM, configs.qwen_config),
    "smollm3": Family(LLAMA, configs.smollm3_config),
    "phi3": Family(PHI3, configs.mistral_config),
    "olmo2": Family(OLMO2, configs.olmo2_config),
    "gemma": Family(LLAMA, configs.gemma_config, OFFSET_NORMS),
    "gemma2": Family(GEMMA2, configs.gemma2_config, OFFSET_NORMS),
    "gemma3_text": Family(GEMMA3, configs.gemma3_config, OFFSET_NORMS),
    "opt": Family(OPT, configs.opt_config),
    "gpt_neox": Family(GPT_NEOX, configs.gpt_neox_config, OF_HEADS),
    "mpt": Family(MPT, configs.mpt_config),
    "mosaic_gpt": Family(MOSAIC_GPT, configs.mosaic_gpt_config),
    "t5": Family(t5("wi_0", "wi_1"), configs.t5_config),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Raises InputError: the config's ``model_type`` is none that the decoder covers."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise InputError(f"language models of the type {kind!r} are not covered: there are {', '.join(FAMILIES)}")
    if kind == "t5" and not str(config.get("feed_forward_proj", "relu")).startswith("gated-"):
        return replace(FAMILIES[kind], table=t5("wi"))  # the first ones
    return FAMILIES[kind]


def config_from_hf(config: Mapping[str, Any]) -> LanguageModelConfig:
    """The config of a transformers model (its config.json, or ``model.config.to_dict()``).

    Raises:
        InputError: a model type or a setting that the decoder does not cover, or a missing value.
    """
    try:
        return family_of(config).config(config)
    except KeyError as error:
        raise InputError(f"the config of the language model has no {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the config of the language model is invalid: {error}") from None


def with_head(config: LanguageModelConfig, theirs: Mapping[str, Tensor]) -> LanguageModelConfig:
    """The config of a T5 does not say whether its output layer is tied: it is, unless a tensor of its own is there."""
    if not isinstance(config, T5Config):
        return config
    own, shared = theirs.get("lm_head.weight"), theirs.get("shared.weight")
    return replace(config, tied=own is None or (shared is not None and torch.equal(own, shared)))


def translated(
    theirs: Mapping[str, Tensor],
    table: KeyTable,
    config: LanguageModelConfig,
    changes: Mapping[str, Change] = NO_CHANGES,
) -> tuple[DerivedStore, LoadReport]:
    """Their tensors as ours, each translated when it is asked for. Keys that the table does not name, and the head of a tied model, are
    ignored and reported.

    ``changes``: of the tensors under names of ours that end so, before they are stacked.
    """
    recipes: dict[str, Recipe] = {}
    for target, sources in table.items():
        if target == "head" and config.tied:
            continue
        if target == "embedding":
            sources = (stored_embedding(theirs, table, config),)
        change = next((change for end, change in changes.items() if target.endswith(end)), None)
        decoder = isinstance(config, T5Config) and target.startswith("decoder.")
        layers = config.decoder_layers if isinstance(config, T5Config) and decoder else config.layers
        for layer in range(layers if "*" in target else 1):
            for kind in ("weight", "bias"):
                keys = tuple(f"{source.replace('*', str(layer))}.{kind}" for source in sources)
                if all(key in theirs for key in keys):
                    name = f"{target.replace('*', str(layer))}.{kind}"
                    recipes[name] = Recipe(keys, partial(stacked, keys, change, config), stacked_layout)
    used = tuple(key for recipe in recipes.values() for key in recipe.sources)
    report = LoadReport(used, (), tuple(theirs.keys() - set(used)))
    return DerivedStore(as_store(theirs), recipes), report


def stored_embedding(theirs: Mapping[str, Tensor], table: KeyTable, config: LanguageModelConfig) -> str:
    """The name of the word embeddings. Files hold one of several tied tensors, which may be the output layer or one stack's of a T5."""
    others = table["head"] if config.tied else ()
    if isinstance(config, T5Config):
        others = ("encoder.embed_tokens", "decoder.embed_tokens", *others)
    names = (*table["embedding"], *others)
    return next((name for name in names if f"{name}.weight" in theirs), names[0])


def stacked(
    keys: Sequence[str], change: Change | None, config: LanguageModelConfig, tensors: Sequence[Tensor]
) -> Tensor:
    parts = [change(x, config, key) for x, key in zip(tensors, keys, strict=True)] if change else list(tensors)
    return torch.cat(parts) if parts[1:] else parts[0]
