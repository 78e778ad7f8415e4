"""BLIP-2 out again: a folder that transformers opens, with the same ids (``Blip2ForConditionalGeneration``, InstructBLIP).

The tables of keys are those that read such folders (``checkpoints.tables``), run the other way.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.format import load_typed
from triptych.checkpoints.store import DerivedStore, Recipe, TensorStore, shaped, write_tensors
from triptych.checkpoints.tables.blip2 import HF_BLIP2
from triptych.checkpoints.tables.keys import Table
from triptych.checkpoints.tables.language import FAMILIES
from triptych.errors import InputError, TriptychError
from triptych.nn.configs import DecoderConfig, ViTConfig
from triptych.systems.configs import Blip2Config
from triptych.text.prompt import IMAGE
from triptych.text.tokenizer import TextTokenizer

WITH_BATCH = {  # theirs: how many axes of length 1 stand in front
    "query_tokens": 1,
    "vision_model.embeddings.position_embedding": 1,
    "vision_model.embeddings.class_embedding": 2,
}


class ExportKind(NamedTuple):
    """What the model becomes: a class of transformers', the type of its language model and that one's config."""

    architecture: str
    model_type: str
    family: str
    text: dict[str, Any]


def export_hf(directory: Path, target: Path) -> int:
    """Write the BLIP-2 in ``directory`` as a folder of transformers', in the dtypes that it is stored in.

    Returns:
        How many tensors were written.

    Raises:
        InputError: transformers has no class that computes what this model does (the message says why), or ``target`` is there.
        TriptychError: the disk is full or not writable.
    """
    config, tensors = load_typed(directory, "blip2", Blip2Config)
    vit, kind = exportable_vit(directory, config), exportable_lm(directory, config)
    tokenizer = TextTokenizer.from_directory(directory)
    if IMAGE not in tokenizer.specials:
        raise InputError(f"{directory}: its tokenizer has no {IMAGE}, which transformers puts where the photo stands")
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is there and is not empty: name another directory")
    theirs = exported(tensors, config, kind)
    eos = list(config.lm.eos or ()) if config.lm else []
    settings = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "vision_config": vision_config(vit),
        "qformer_config": exported_qformer(config.model, kind),
        "text_config": kind.text | {"eos_token_id": eos[0] if len(eos) == 1 else eos},
        "num_query_tokens": config.model.qformer.queries,
        "image_token_index": tokenizer.specials[IMAGE],
        "tie_word_embeddings": kind.text["tie_word_embeddings"],
    }
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in config.files:
            if name not in (config.weights, "vocab.txt"):
                shutil.copy(directory / name, target / name)
        for name, content in (
            ("config.json", settings),
            ("generation_config.json", {"eos_token_id": eos}),
            ("preprocessor_config.json", image_processor(config)),
            ("processor_config.json", processor(config, kind)),
        ):
            (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_tensors(target / "model.safetensors", theirs)
    except OSError as error:
        raise TriptychError(f"cannot write {target}: {error.strerror or error}") from None
    return len(theirs)


# What transformers can compute


def exportable_vit(directory: Path, config: CheckpointConfig[Blip2Config]) -> ViTConfig:
    vit = config.encoder.vit
    if vit is None:
        raise InputError(
            f"{directory} reads photos with the CNN {config.encoder.name}, for which transformers' BLIP-2 has no place"
        )
    sizes = {name: getattr(vit, name) for name in ("dim", "layers", "heads", "mlp_dim", "patch_size", "image_size")}
    if vit != ViTConfig.blip2(**sizes, eps=vit.eps, norm_after=True):
        raise InputError(f"{directory} reads photos with another vision transformer than BLIP-2's EVA")
    if config.model.normalise:
        raise InputError(f"{directory} norms the features once more, which transformers' BLIP-2 does not")
    return vit


def exportable_lm(directory: Path, config: CheckpointConfig[Blip2Config]) -> ExportKind:
    lm = config.lm
    if lm is None:
        raise InputError(f"{directory} has no language model: transformers' retrieval model is not written")
    if not lm.stored or lm.decoder is None:
        raise InputError(f"{directory} does not store a decoder-only language model, so that nothing stands behind it")
    instructed = bool(config.model.qformer.vocab_size)
    if instructed != config.prompts.whole or not config.prompts.published:
        raise InputError(f"{directory} is asked with prompts of its own, which transformers' classes do not make")
    kinds = (("opt", opt_text(lm.decoder)), ("llama", llama_text(lm.decoder)))
    for family, text in kinds:
        try:
            same = FAMILIES[family].config(text) == lm.decoder
        except InputError:
            same = False
        if same:
            names = ("InstructBlipForConditionalGeneration", "instructblip")
            if not instructed:
                names = ("Blip2ForConditionalGeneration", "blip-2")
            return ExportKind(*names, family, text)
    raise InputError(f"{directory}: its language model is neither an OPT nor a Llama, which are those that are written")


def opt_text(lm: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": lm.vocab_size,
        "hidden_size": lm.dim,
        "num_hidden_layers": lm.layers,
        "num_attention_heads": lm.heads,
        "ffn_dim": lm.ffn_dim,
        "word_embed_proj_dim": lm.embed_width,
        "max_position_embeddings": lm.max_positions,
        "do_layer_norm_before": lm.pre_norm,
        "activation_function": lm.activation,
        "enable_bias": lm.qkv_bias,
        "tie_word_embeddings": lm.tied,
    }


def llama_text(lm: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": lm.vocab_size,
        "hidden_size": lm.dim,
        "num_hidden_layers": lm.layers,
        "num_attention_heads": lm.heads,
        "num_key_value_heads": lm.groups,
        "head_dim": lm.head_width,
        "intermediate_size": lm.ffn_dim,
        "max_position_embeddings": lm.max_positions,
        "rms_norm_eps": lm.eps,
        "rope_theta": lm.rope_theta,
        "attention_bias": lm.qkv_bias,
        "mlp_bias": lm.ffn_bias,
        "tie_word_embeddings": lm.tied,
    }


def vision_config(vit: ViTConfig) -> dict[str, Any]:
    return {
        "hidden_size": vit.dim,
        "num_hidden_layers": vit.layers,
        "num_attention_heads": vit.heads,
        "intermediate_size": vit.mlp_dim,
        "patch_size": vit.patch_size,
        "image_size": vit.image_size,
        "layer_norm_eps": vit.eps,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }


def exported_qformer(config: Blip2Config, kind: ExportKind) -> dict[str, Any]:
    own = config.qformer
    settings = {
        "hidden_size": own.dim,
        "num_hidden_layers": own.layers,
        "num_attention_heads": own.heads,
        "intermediate_size": own.mlp_dim,
        "encoder_hidden_size": own.image_dim,
        "cross_attention_frequency": own.cross_attn_every,
        "layer_norm_eps": own.eps,
        "max_position_embeddings": own.max_positions,
    }
    return settings | ({"vocab_size": own.vocab_size} if kind.model_type == "instructblip" else {})


def image_processor(config: CheckpointConfig[Blip2Config]) -> dict[str, Any]:
    size = config.encoder.image_size
    return {
        "image_processor_type": "BlipImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": config.encoder.mean,
        "image_std": config.encoder.std,
    }


def processor(config: CheckpointConfig[Blip2Config], kind: ExportKind) -> dict[str, Any]:
    name = "InstructBlipProcessor" if kind.model_type == "instructblip" else "Blip2Processor"
    return {"processor_class": name, "num_query_tokens": config.model.qformer.queries}


# Tensors


def exported(tensors: TensorStore, config: CheckpointConfig[Blip2Config], kind: ExportKind) -> DerivedStore:
    """Our tensors under transformers' names.

    Raises:
        InputError: one of ours has no place there.
    """
    recipes = bridge_recipes(tensors, bridge_table(kind))
    assert config.lm is not None and config.lm.decoder is not None
    recipes |= language_recipes(tensors, FAMILIES[kind.family].table, config.lm.decoder)
    used = {source for recipe in recipes.values() for source in recipe.sources}
    if left := sorted(tensors.keys() - used):
        raise InputError(f"{left[0]} and {len(left) - 1} more have no place in transformers' {kind.architecture}")
    return DerivedStore(tensors, recipes)


def bridge_table(kind: ExportKind) -> Table:
    """The rows of ``HF_BLIP2`` that this class has: where the Q-Former reads text, its embeddings and their norm lie elsewhere."""
    text = ("qformer.embeddings.",) if kind.model_type == "instructblip" else ("qformer.layernorm",)
    others = ("embeddings.", "qformer.embeddings.", "qformer.layernorm")
    return {
        theirs: ours for theirs, ours in HF_BLIP2.items() if theirs.startswith(text) or not theirs.startswith(others)
    }


def bridge_recipes(tensors: TensorStore, table: Table) -> dict[str, Recipe]:
    recipes = {}
    for theirs, ours in table.items():
        names = (ours,) if isinstance(ours, str) else ours
        pattern = re.compile(re.escape(names[0]).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias|)")
        for name in tensors:
            if match := pattern.fullmatch(name):
                *number, leaf = match.groups()
                sources = tuple(own.replace("*", "".join(number)) + leaf for own in names)
                key = theirs.replace("*", "".join(number)) + leaf
                axes = (1,) * WITH_BATCH.get(theirs, 0)
                recipes[key] = Recipe(sources, partial(joined, axes), partial(joined_layout, axes))
    return recipes


def joined(axes: tuple[int, ...], tensors: list[Tensor]) -> Tensor:
    whole = torch.cat(tensors) if tensors[1:] else tensors[0]
    return whole.view(*axes, *whole.shape) if axes else whole


def joined_layout(axes: tuple[int, ...], layouts: list[Tensor]) -> Tensor:
    first = layouts[0]
    if layouts[1:]:
        return shaped(first, (sum(len(x) for x in layouts), *first.shape[1:]))
    return shaped(first, (*axes, *first.shape))


def language_recipes(
    tensors: TensorStore, table: Mapping[str, tuple[str, ...]], lm: DecoderConfig
) -> dict[str, Recipe]:
    """What was stacked is cut again: queries, keys and values by their heads, the rest into equal parts."""
    recipes = {}
    heads = [lm.heads * lm.head_width, *[lm.groups * lm.head_width] * 2]
    for ours, theirs in table.items():
        for layer in range(lm.layers if "*" in ours else 1):
            for leaf in (".weight", ".bias"):
                name = f"lm.{ours.replace('*', str(layer))}{leaf}"
                if name not in tensors:
                    continue
                rows = len(tensors.layout(name))
                sizes = heads if ours.endswith("attention.qkv") else [rows // len(theirs)] * len(theirs)
                for place, their in enumerate(theirs):
                    cut = partial(kept_rows, sum(sizes[:place]), sizes[place])
                    recipes[f"language_model.{their.replace('*', str(layer))}{leaf}"] = Recipe((name,), cut, cut)
    return recipes


def kept_rows(start: int, count: int, tensors: list[Tensor]) -> Tensor:
    return tensors[0].narrow(0, start, count)
