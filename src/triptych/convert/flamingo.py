"""OpenFlamingo's checkpoints (``checkpoint.pt``), versions 1 and 2 over OPT, LLaMA, GPT-NeoX and MPT.

They hold what was trained: the resampler, the gated blocks, mostly the word embeddings. The frozen parts come from other files.
Sizes are read off the tensors, and tensors are taken over as they are, so that none is made which the files do not fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.checkpoints.config import Card, CheckpointConfig, SearchSpec
from triptych.checkpoints.format import save_checkpoint
from triptych.checkpoints.language_models import decoder_only, open_language_model, unfilled
from triptych.checkpoints.place import LoadReport, check_fit, unallocated
from triptych.checkpoints.quantize import stored_as
from triptych.checkpoints.store import DerivedStore, JoinedStore, Recipe, TensorStore, renamed, shaped
from triptych.checkpoints.tables.flamingo import translated_flamingo
from triptych.checkpoints.tables.keys import CLIP_VISION, OPEN_CLIP_VISION, Table, fitted, translated
from triptych.checkpoints.tables.language import family_of
from triptych.checkpoints.tables.language import translated as translated_lm
from triptych.checkpoints.weight_files import open_file, open_folder, read_json
from triptych.convert.published import (
    StoredLM,
    heads_and_epsilon,
    known_layout,
    layers,
    published_pixels,
    section,
    stored_lm,
    vit_sizes,
)
from triptych.errors import InputError
from triptych.io.pixels import PixelSpec
from triptych.models.encoders import vit_spec
from triptych.models.frozen import FROZEN
from triptych.nn.configs import ViTConfig
from triptych.nn.vit import CLIP_MEAN, CLIP_STD, ViT
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo
from triptych.text.prompt import END, IMAGE, OPEN_FLAMINGO
from triptych.text.tokenizer import TextTokenizer

TOWER, LM = "vision_encoder.", "lang_encoder."  # of their keys
HEAD_WIDTH = 64  # width of a head, of OpenFlamingo's and of OpenAI's CLIP
WIDEST = 1024  # of OpenAI's towers; open_clip's wider ones have other heads
CLIP_DEFAULTS = {
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}  # what transformers leaves out


class Encoder(NamedTuple):
    vit: ViT  # without memory
    tensors: TensorStore
    used: tuple[str, ...]  # their keys


class FlamingoLM(NamedTuple):
    """The language model, the tokens that were added to it, and which keys of the checkpoint it took."""

    lm: StoredLM
    end_id: int
    image_id: int
    used: tuple[str, ...]


def convert_openflamingo(
    source: Path, state: TensorStore, target: Path, dtype: torch.dtype | None, vision: Path | None, lm: Path | None
) -> LoadReport:
    """A checkpoint of OpenFlamingo.

    Args:
        state: the state dict in ``source``.
        vision: OpenAI's CLIP, where the checkpoint leaves its image encoder out: a directory of transformers', or a state dict of
            open_clip.
        lm: the directory of the language model that it was trained over.
    """
    own = renamed(state, {f"visual.{key.removeprefix(TOWER)}": key for key in state if key.startswith(TOWER)})
    if own and vision:
        raise InputError(f"{source} has its own image encoder: leave out --vision")
    if not own and not vision:
        raise InputError(f"{source} leaves out its image encoder: give OpenAI's CLIP with --vision")
    if not (lm and lm.is_dir()):
        raise InputError(
            f"{source} leaves out its language model: give its directory, as transformers saves it, with --lm"
        )
    with known_layout(vision or source, "a CLIP"):
        encoder = image_encoder(vision) if vision else open_clip_encoder(source, own)
    with known_layout(source, "an OpenFlamingo"):
        ours, every, left = translated_flamingo(state)
        written = flamingo_language_model(source, state, lm)
        config = flamingo_config(ours.layouts(), every, written.image_id)
        if config.image_dim != encoder.vit.dim:
            raise InputError(
                f"{source} looks at features {config.image_dim} wide, and the image encoder's are {encoder.vit.dim}: "
                "give the CLIP that it was trained over with --vision"
            )
        with unallocated():
            model = Flamingo(config, encoder.vit, decoder_only(written.lm.network))
        own_lm = renamed(written.lm.tensors, {f"lm.{name}": name for name in written.lm.tensors})
        vit = renamed(encoder.tensors, {f"vision_encoder.{name}": name for name in encoder.tensors})
        tensors = JoinedStore([fitted(ours, model), vit, own_lm])
        check_fit(model, tensors.layouts(), f"{source}, over the language model in {lm},")
    checkpoint = CheckpointConfig(
        system="flamingo",
        model=config,
        encoder=vit_spec(encoder.vit),
        lm=written.lm.spec,
        search=SearchSpec(
            beams=3, length_penalty=0.0, max_new_tokens=20, words_once=False, refill=True, answer_tokens=5
        ),
        prompts=OPEN_FLAMINGO,
        card=Card(recipe=f"converted from {source.name}, a checkpoint of OpenFlamingo"),
    )
    save_checkpoint(target, config=checkpoint, tensors=stored_as(tensors, dtype), extra_files=written.lm.files)
    used = {*written.used, *(key.replace("visual.", TOWER, 1) for key in encoder.used if own)}
    mapped = tuple(key for key in state if key not in left or key in used)
    return LoadReport(mapped, (), tuple(key for key in left if key not in used))


def flamingo_config(tensors: Mapping[str, Tensor], every: int, image_id: int) -> FlamingoConfig:
    """It was trained with ``only_attend_immediate_media``: text looks at the last picture."""
    latents, dim = tensors["resampler.latents"].shape
    first = "resampler.layers.0"
    return FlamingoConfig(
        dim,
        image_id,
        latents=latents,
        resampler_layers=layers(tensors, "resampler.layers"),
        heads=len(tensors[f"{first}.attention.query.weight"]) // HEAD_WIDTH,
        head_dim=HEAD_WIDTH,
        ffn_factor=len(tensors[f"{first}.ffw.1.weight"]) // dim,
        every=every,
        max_pictures=len(tensors.get("resampler.picture_embeddings", ())) or None,
        max_frames=len(tensors.get("resampler.frame_embeddings", ())) or None,
    )


# The image encoder


def image_encoder(path: Path) -> Encoder:
    """A CLIP of transformers, or a state dict of open_clip."""
    if path.is_dir():
        config = read_json(path / "config.json")
        if (kind := config.get("model_type")) not in ("clip", "clip_vision_model"):
            raise InputError(f"{path} holds a model of the type {kind!r}: give a CLIP with --vision")
        settings = section(config, "vision_config", CLIP_DEFAULTS) if kind == "clip" else CLIP_DEFAULTS | config
        heads, eps = heads_and_epsilon(path, settings, "quick_gelu", "gelu")
        hyperparameters = {"heads": heads, "eps": eps, "activation": settings["hidden_act"]}
        return encoder_of(path, open_folder(path), CLIP_VISION, hyperparameters, path)
    return open_clip_encoder(path, open_file(path))


def open_clip_encoder(source: Path, state: TensorStore) -> Encoder:
    """OpenAI's weights under open_clip's names."""
    width = state.layout("visual.class_embedding").shape[-1] if "visual.class_embedding" in state else 0
    if width % HEAD_WIDTH or not 0 < width <= WIDEST:
        raise InputError(
            f"{source}: its image encoder is none of OpenAI's CLIP: give a directory of transformers' with --vision"
        )
    return encoder_of(source, state, OPEN_CLIP_VISION, {"heads": width // HEAD_WIDTH, "activation": "quick_gelu"})


def encoder_of(
    source: Path, state: TensorStore, table: Table, hyperparameters: Mapping[str, Any], processor: Path | None = None
) -> Encoder:
    """``hyperparameters``: what tensors do not show. ``processor``: the folder that says how photos are brought to it; None = as
    open_clip does: resampled to the size of their shorter side, the middle cut out."""
    # The published checkpoints were trained with open_clip 2.16, which normed the class token only, not the patch tokens
    tensors, ignored = translated(state, table, ignored_prefixes=(f"{FROZEN[0]}norm_after",))
    with unallocated():
        config = ViTConfig(**vit_sizes(tensors.layouts()), **hyperparameters, norm_after=False)
        vit = ViT(config, clip_pixels(config.image_size, processor))
    own = fitted(renamed(tensors, {name.removeprefix(FROZEN[0]): name for name in tensors}), vit)
    check_fit(vit, own.layouts(), source)
    return Encoder(vit, own, tuple(state.keys() - {*ignored}))


def clip_pixels(image_size: int, processor: Path | None) -> PixelSpec:
    """Of OpenFlamingo's photos, which CLIP's processor cuts to a square."""
    if processor is not None:
        return published_pixels(processor, image_size, shortest_side=image_size)
    return PixelSpec(image_size, CLIP_MEAN, CLIP_STD, shortest_side=image_size)


# The language model


def flamingo_language_model(source: Path, state: TensorStore, directory: Path) -> FlamingoLM:
    """The language model in ``directory``, with what the checkpoint has of it."""
    base = open_language_model(directory)
    decoder_only(unfilled(base.config))
    family = family_of(read_json(directory / "config.json"))
    blocks = family.table["blocks.*.attention_norm"][0].partition("*")[0]
    names = {  # a layer may go by several: as it lies in the wrapper of version 2, or in version 1's list
        key: key.removeprefix(LM).replace("old_decoder_blocks.", blocks).replace(".decoder_layer.", ".")
        for key in state
        if key.startswith(LM)
    }
    theirs = renamed(state, {name: key for key, name in names.items()})
    trained, report = translated_lm(theirs, family.table, base.config, family.changes)
    tensors = JoinedStore([base.tensors, trained])
    rows, width = tensors.layout("embedding.weight").shape
    if width != base.config.embed_width:
        raise InputError(
            f"{source} has word embeddings {width} wide, and the language model in {directory} {base.config.embed_width}: "
            "give the one that it was trained over with --lm"
        )
    end_id, image_id = added_tokens(base.tokenizer, "embedding.weight" in trained, source, directory)
    if max(end_id, image_id) >= rows:
        raise InputError(
            f"{source} has {rows} word embeddings, too few for the tokenizer in {directory} with {END} and {IMAGE}: "
            "give the language model that it was trained over with --lm"
        )
    if not base.config.tied and "head.weight" not in trained:
        more = rows - base.config.vocab_size
        pad = Recipe(
            ("head.weight",),
            lambda x: F.pad(x[0], (0, 0, 0, more)),
            lambda x: shaped(x[0], (len(x[0]) + more, *x[0].shape[1:])),
        )
        padded = {"head.weight": pad}
        tensors = JoinedStore([tensors, DerivedStore(tensors, padded)])
    used = {*report.mapped}
    whole = base._replace(config=replace(base.config, vocab_size=rows), tensors=tensors)
    return FlamingoLM(
        stored_lm(directory, directory.name, whole, [end_id], end_id),
        end_id,
        image_id,
        tuple(key for key, name in names.items() if name in used),
    )


def added_tokens(tokenizer: TextTokenizer, embedded: bool, source: Path, directory: Path) -> tuple[int, int]:
    """What ends an example and what stands for a picture: the tokenizer's own, else added behind its words in this order.

    ``embedded``: whether the checkpoint has word embeddings, and so such added ones.
    """
    if {END, IMAGE} <= tokenizer.specials.keys():
        return tokenizer.specials[END], tokenizer.specials[IMAGE]
    if not embedded:
        raise InputError(
            f"{source} has no word embeddings: give with --lm the language model whose tokenizer has {END} and {IMAGE}; "
            f"{directory} has not"
        )
    return len(tokenizer), len(tokenizer) + 1
