"""IDEFICS (Laurençon et al. 2023, *OBELICS*), an open Flamingo over a LLaMA, from a directory of transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoints.config import Card, CheckpointConfig, SearchSpec
from triptych.checkpoints.format import save_checkpoint
from triptych.checkpoints.language_models import LanguageModelFiles, decoder_only
from triptych.checkpoints.place import LoadReport, check_fit, unallocated
from triptych.checkpoints.quantize import stored_as
from triptych.checkpoints.store import DerivedStore, JoinedStore, Recipe, TensorStore, renamed, shaped
from triptych.checkpoints.tables.flamingo import IDEFICS, IDEFICS_GATED
from triptych.checkpoints.tables.keys import fitted, translated
from triptych.checkpoints.tables.language import config_from_hf, family_of
from triptych.checkpoints.tables.language import translated as translated_lm
from triptych.checkpoints.weight_files import check_settings, open_folder
from triptych.convert.architecture import IDEFICS_CLASS, check_output_layer
from triptych.convert.decoding import prompt_length, published_search
from triptych.convert.published import (
    StoredLM,
    heads_and_epsilon,
    known_layout,
    layers,
    published_pixels,
    section,
    stored_lm,
    vit_sizes,
    without_wrapper,
)
from triptych.errors import InputError
from triptych.models.encoders import vit_spec
from triptych.nn.configs import DecoderConfig, ViTConfig
from triptych.nn.vit import ViT
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo
from triptych.text.prompt import IDEFICS_CHAT, IDEFICS_INSTRUCT, IMAGE
from triptych.text.tokenizer import TextTokenizer

END_OF_UTTERANCE = "<end_of_utterance>"  # of the instructed models
IDEFICS_DEFAULTS = {  # what transformers takes for granted
    "vocab_size": 32000,
    "additional_vocab_size": 0,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 2,
    "cross_layer_interval": 1,
    "use_resampler": False,
    "qk_layer_norms": False,
}
IDEFICS_VISION = {"num_attention_heads": 16, "layer_norm_eps": 1e-5}
IDEFICS_RESAMPLER = {"resampler_n_heads": 16, "resampler_head_dim": 96, "qk_layer_norms_perceiver": False}
IDEFICS_SEARCH = SearchSpec(words_once=False, refill=True, answer_tokens=10)
MORE_ROWS = {  # rows of added tokens, which lie in tensors of their own
    "model.embed_tokens.weight": "model.embed_tokens.additional_embedding.weight",
    "lm_head.weight": "lm_head.additional_fc.weight",
}


def convert_idefics(source: Path, config: Mapping[str, Any], target: Path, dtype: torch.dtype | None) -> LoadReport:
    """A directory of transformers' with an ``IdeficsForVisionText2Text``.

    Raises:
        InputError: a file cannot be read or does not fit, or the model has no resampler.
    """
    check_settings(source, dict(config))
    settings = {**IDEFICS_DEFAULTS, **config}
    if not settings["use_resampler"]:
        raise InputError(f"{source} is an IDEFICS without a resampler, which is not covered")
    state = without_wrapper(open_folder(source), "lm_head.weight")
    check_output_layer(source, state, IDEFICS_CLASS)
    lm, image_id, used = idefics_language_model(source, settings, state)
    own, ignored = translated(state, IDEFICS, ignored_prefixes=("vision_encoder.norm_after",))
    with known_layout(source, "an IDEFICS"):
        vision = idefics_vision(source, settings, own.layouts())
        with unallocated():
            vit = ViT(vision, published_pixels(source, vision.image_size))
            network = decoder_only(lm.network)
            model = Flamingo(idefics_config(settings, own.layouts(), network.config, image_id), vit, network)
        gated, report = translated_lm(state, IDEFICS_GATED, replace(network.config, layers=len(model.xattn)))
        text = renamed(lm.tensors, {f"lm.{name}": name for name in lm.tensors})
        tensors = JoinedStore([fitted(JoinedStore([own, gated]), model), text])
        check_fit(model, tensors.layouts(), source)
    prompts = IDEFICS_CHAT if lm.spec.end_id == settings["eos_token_id"] else IDEFICS_INSTRUCT
    photo_tokens = 3 if prompts.around in lm.tokenizer.specials else 1
    checkpoint = CheckpointConfig(
        system="flamingo",
        model=model.config,
        encoder=vit_spec(vit),
        lm=lm.spec,
        search=published_search(source, IDEFICS_SEARCH, lm, prompt_length(lm.tokenizer, prompts.caption, photo_tokens)),
        prompts=prompts,
        card=Card(recipe=f"converted from {source.name}, an IDEFICS of transformers"),
    )
    save_checkpoint(target, config=checkpoint, tensors=stored_as(tensors, dtype), extra_files=lm.files)
    read = {*used, *report.mapped}
    return LoadReport(
        tuple(key for key in state if key not in ignored or key in read), (), tuple(k for k in ignored if k not in read)
    )


def idefics_config(
    settings: Mapping[str, Any], layouts: Mapping[str, Tensor], lm: DecoderConfig, image_id: int
) -> FlamingoConfig:
    latents, dim = layouts["resampler.latents"].shape
    resampler = section(settings, "perceiver_config", IDEFICS_RESAMPLER)
    return FlamingoConfig(
        dim,
        image_id,
        latents=latents,
        resampler_layers=layers(layouts, "resampler.layers"),
        heads=lm.heads,
        head_dim=lm.head_width,
        ffn_factor=len(layouts["resampler.layers.0.ffw.1.weight"]) // dim,
        every=settings["cross_layer_interval"],
        style="idefics",
        resampler_heads=resampler["resampler_n_heads"],
        resampler_head_dim=resampler["resampler_head_dim"],
        qk_norm=settings["qk_layer_norms"],
        resampler_qk_norm=resampler["qk_layer_norms_perceiver"],
        gate="vector" if layouts["xattn.0.attn_gate"].numel() > 1 else "scalar",
    )


def idefics_vision(source: Path, settings: Mapping[str, Any], layouts: Mapping[str, Tensor]) -> ViTConfig:
    """A CLIP without the norm behind it, whose class token is a feature too."""
    vision = section(settings, "vision_config", IDEFICS_VISION)
    heads, eps = heads_and_epsilon(source, vision, "gelu", "quick_gelu")
    activation = vision.get("hidden_act", "gelu")
    return ViTConfig(
        **vit_sizes(layouts), heads=heads, eps=eps, activation=activation, norm_after=False, class_token=True
    )


def idefics_language_model(
    source: Path, settings: Mapping[str, Any], state: TensorStore
) -> tuple[StoredLM, int, tuple[str, ...]]:
    """The LLaMA with its added tokens, the token of a picture, and which keys were used.

    Raises:
        InputError: the tokenizer has no token for pictures, or what is there does not fit together.
    """
    whole = with_added_rows(state)
    llama = {
        **settings,
        "model_type": "llama",
        "vocab_size": settings["vocab_size"] + settings["additional_vocab_size"],
    }
    config, family = config_from_hf(llama), family_of(llama)
    tensors, report = translated_lm(whole, family.table, config, family.changes)
    tokenizer = TextTokenizer.from_directory(source)
    if IMAGE not in tokenizer.specials:
        raise InputError(f"{source}: its tokenizer has no {IMAGE}, which stands for a picture")
    end_id = tokenizer.specials.get(END_OF_UTTERANCE, settings["eos_token_id"])
    files = LanguageModelFiles(config, tensors, tokenizer, report)
    added = tuple(more for key, more in MORE_ROWS.items() if key in report.mapped and more in state)
    stored = stored_lm(source, "llama", files, [end_id], end_id)
    return stored, tokenizer.specials[IMAGE], (*report.mapped, *added)


def with_added_rows(state: TensorStore) -> TensorStore:
    """The same with the rows of added tokens behind those of the words."""
    recipes = {
        key: Recipe((key, more), torch.cat, lambda x: shaped(x[0], (len(x[0]) + len(x[1]), *x[0].shape[1:])))
        for key, more in MORE_ROWS.items()
        if key in state and more in state
    }
    return JoinedStore([state, DerivedStore(state, recipes)])
