"""BLIP-2 as published: transformers' directories (generation, retrieval, InstructBLIP) and LAVIS's ``.pth`` files.

Sizes are read off the tensors, so that none is made which the file does not fill; its config says what tensors do not show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.checkpoints.config import Card, CheckpointConfig, SearchSpec
from triptych.checkpoints.language_models import LanguageModelFiles, eos_ids, open_language_model
from triptych.checkpoints.locate import BUNDLED
from triptych.checkpoints.place import LoadReport, check_fit, unallocated
from triptych.checkpoints.store import JoinedStore, MemoryStore, TensorStore, renamed
from triptych.checkpoints.tables.blip2 import HF_BLIP2, LAVIS
from triptych.checkpoints.tables.keys import Table, fitted, translated
from triptych.checkpoints.tables.language import LanguageModelConfig, config_from_hf, family_of, with_head
from triptych.checkpoints.tables.language import translated as translated_lm
from triptych.checkpoints.weight_files import check_settings, open_file, open_folder, read_json
from triptych.convert.architecture import GENERATION, INSTRUCT, RETRIEVAL, architecture, check_output_layer
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
from triptych.models.blip2 import write_blip2
from triptych.models.encoders import vit_spec
from triptych.nn.configs import QFormerConfig, T5Config, ViTConfig
from triptych.nn.vit import ViT
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.text.prompt import BLIP2_OPT, BLIP2_T5, DEFAULT_PROMPTS, INSTRUCT_BLIP, Prompts
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import SPECIAL_PIECES, WordPieces

BERT_WORDS = BUNDLED / "blip2" / "vocab.txt"  # bert-base-uncased's and [DEC], which LAVIS's Q-Formers know
# What transformers takes for granted: published configs leave it out.
VISION = {"num_attention_heads": 16, "layer_norm_eps": 1e-6}
QFORMER = {"num_attention_heads": 12, "layer_norm_eps": 1e-12}
LANGUAGE: Mapping[str, Mapping[str, Any]] = {
    "opt": {
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "eos_token_id": 2,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 2,
    },
    "t5": {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "eos_token_id": 1,
    },
}
LAVIS_BLIP2: Table = {**LAVIS, "ln_vision": "vision_norm"}  # which LAVIS trains: it is no part of the frozen encoder
LAVIS_PROJECTIONS = {"opt_proj": "an OPT", "t5_proj": "a T5", "llm_proj": "a Vicuna"}
EVA_BLOCKS, CLIP_BLOCKS = 39, 23  # LAVIS leaves out the encoder's last block
EVA_HEAD, CLIP_HEAD, BERT_HEAD = 88, 64, 64  # widths of a head
# as transformers searches; short answers: BLIP-2 section 4.2
SEARCHED: dict[str, Any] = {"refill": True, "answer_tokens": 10, "answer_length_penalty": -1.0}
SEARCH = SearchSpec(beams=5, length_penalty=1.0, max_new_tokens=30, words_once=False, **SEARCHED)
INSTRUCT_SEARCH = SearchSpec(  # LAVIS's ``generate``
    beams=5, length_penalty=1.0, max_new_tokens=256, words_once=False, repetition_penalty=1.5, **SEARCHED
)
TEMPERATURE = 0.07


class Hyperparameters(NamedTuple):
    """What tensors do not show: heads, and the epsilon of the norms; the ``processor``'s folder (None = LAVIS's photos)."""

    vision: tuple[int, float]
    qformer: tuple[int, float]
    processor: Path | None = None


def convert_transformers(source: Path, config: dict[str, Any], target: Path, dtype: torch.dtype | None) -> LoadReport:
    """A directory of transformers' with config.json, tensors, and the files of its processor."""
    check_settings(source, config)
    state = without_wrapper(open_folder(source), "query_tokens")
    kind = architecture(source, config, state)
    settings = None if kind == RETRIEVAL else blip2_language_settings(config)
    check_output_layer(source, state, kind)
    hyperparameters = unseen_by_config(source, config)
    lm, used = language_model(source, settings, state) if settings else (None, ())
    blip2 = published_blip2(state, HF_BLIP2, hyperparameters, lm, source)
    words = None
    if blip2.config.qformer.vocab_size:
        words = word_pieces(source / "qformer_tokenizer" if kind == INSTRUCT else source)
    captioning = BLIP2_T5 if lm and lm.spec.t5 else BLIP2_OPT
    prompts = {GENERATION: captioning, RETRIEVAL: DEFAULT_PROMPTS, INSTRUCT: INSTRUCT_BLIP}[kind]
    search = INSTRUCT_SEARCH if kind == INSTRUCT else SEARCH
    if lm:
        photo = blip2.config.qformer.queries
        before = 1 if lm.spec.t5 else prompt_length(lm.tokenizer, prompts.caption, photo)
        search = published_search(source, search, lm, before)
    origin = f"{source.name}, a {kind} of transformers"
    write_converted_blip2(target, blip2, words, lm, GenerationSettings(prompts, search), origin, dtype)
    ignored = tuple(key for key in blip2.report.ignored if key not in {*used})
    return LoadReport((*blip2.report.mapped, *used), blip2.report.missing, ignored)


def convert_lavis(
    source: Path, state: TensorStore, target: Path, dtype: torch.dtype | None, vision: Path | None, lm: Path | None
) -> LoadReport:
    """A checkpoint of LAVIS's first stage, or of its second with OPT, T5 or Vicuna (InstructBLIP's, too).

    Args:
        state: the state dict in ``source``.
        vision: LAVIS's ``eva_vit_g.pth`` or ``clip_vit_L.pth``, where the checkpoint leaves its image encoder out.
        lm: the directory of the language model that the second stage was trained with.
    """
    check_left_out(source, state, vision, lm)
    if vision is not None:
        state = JoinedStore([state, lavis_encoder(vision)])
    stored = None
    if lm is not None:
        stored = lavis_language_model(source, state, lm)
    clip = "visual_encoder.class_embedding" in state
    try:
        names = (f"visual_encoder.{'class_embedding' if clip else 'cls_token'}", "query_tokens")
        vision_width, width = (state.layout(name).shape[-1] for name in names)
    except (KeyError, IndexError):
        raise InputError(f"{source}: its image encoder is neither EVA's ViT nor CLIP's") from None
    encoder = (vision_width // CLIP_HEAD, 1e-5) if clip else (vision_width // EVA_HEAD, 1e-6)
    hyperparameters = Hyperparameters(encoder, (width // BERT_HEAD, 1e-12))
    blip2 = published_blip2(state, LAVIS_BLIP2, hyperparameters, stored, source)
    words = WordPieces.read(BERT_WORDS) if blip2.config.qformer.vocab_size else None
    prompts = DEFAULT_PROMPTS
    if stored is not None:
        prompts = INSTRUCT_BLIP if words else BLIP2_T5 if stored.spec.t5 else BLIP2_OPT
    generation = GenerationSettings(prompts, INSTRUCT_SEARCH if prompts.whole else SEARCH)
    origin = f"{source.name}, a BLIP-2 checkpoint of LAVIS"
    write_converted_blip2(target, blip2, words, stored, generation, origin, dtype)
    return blip2.report


class GenerationSettings(NamedTuple):
    """How a published model is asked, and how it writes."""

    prompts: Prompts
    search: SearchSpec


class PublishedBlip2(NamedTuple):
    """A published model under our names; its tensors are still in their files."""

    config: Blip2Config
    vit: ViT  # without memory
    tensors: TensorStore
    report: LoadReport


def published_blip2(
    state: TensorStore, table: Table, hyperparameters: Hyperparameters, lm: StoredLM | None, source: Path
) -> PublishedBlip2:
    """The model of a published state dict, and what became of its keys. Raises InputError: it does not fit together."""
    translation, ignored = translated(state, table)
    layouts = translation.layouts()
    with known_layout(source, "a BLIP-2"):
        vision, qformer = published_vit_config(layouts, hyperparameters), qformer_config(layouts, hyperparameters)
        head = layouts.get("heads.vision_proj.weight")
        config = Blip2Config(
            qformer,
            feature_dim=None if head is None else len(head),
            normalise="vision_norm.weight" in layouts,
            instructed=bool(lm and qformer.vocab_size),
            writes="heads.lm_bias" in layouts,
        )
        with unallocated():
            folder = hyperparameters.processor
            vit = ViT(vision, None if folder is None else published_pixels(folder, vision.image_size))
            model = Blip2(config, vit, lm.network if lm else None)
    parts: list[TensorStore] = [fitted(translation, model)]
    if lm:
        parts.append(renamed(lm.tensors, {f"lm.{name}": name for name in lm.tensors}))
    missing: tuple[str, ...] = ()
    if config.feature_dim and "heads.temperature" not in layouts:  # transformers' files have lost it
        parts.append(MemoryStore({"heads.temperature": torch.tensor(TEMPERATURE)}))
        missing = ("heads.temperature",)
    tensors = JoinedStore(parts)
    check_fit(model, tensors.layouts(), source)
    left = set(ignored)
    report = LoadReport(tuple(key for key in state if key not in left), missing, ignored)
    return PublishedBlip2(config, vit, tensors, report)


def published_vit_config(layouts: Mapping[str, Tensor], hyperparameters: Hyperparameters) -> ViTConfig:
    """EVA's, or CLIP's, which has a norm before its blocks and, as LAVIS takes it, none after them."""
    heads, eps = hyperparameters.vision
    if "vision_encoder.norm_before.weight" in layouts:
        sizes = vit_sizes(layouts)
        return ViTConfig(**sizes, heads=heads, eps=eps, activation="quick_gelu", norm_after=False, class_token=True)
    return ViTConfig.blip2(
        **vit_sizes(layouts),
        heads=heads,
        eps=eps,
        norm_after="vision_encoder.norm_after.weight" in layouts,
    )


def qformer_config(layouts: Mapping[str, Tensor], hyperparameters: Hyperparameters) -> QFormerConfig:
    queries, dim = layouts["qformer.query_tokens"].shape[-2:]
    depth = layers(layouts, "qformer.layers")
    looking = [i for i in range(depth) if f"qformer.layers.{i}.cross_attention.norm.weight" in layouts]
    places = layouts.get("qformer.position_embeddings.weight")
    return QFormerConfig(
        image_dim=layouts["qformer.layers.0.cross_attention.attention.key.weight"].shape[1],
        dim=dim,
        layers=depth,
        heads=hyperparameters.qformer[0],
        mlp_dim=len(layouts["qformer.layers.0.query_mlp.up.weight"]),
        queries=queries,
        cross_attn_every=looking[1] if looking[1:] else depth,
        vocab_size=len(layouts.get("qformer.word_embeddings.weight", ())),
        max_positions=512 if places is None else len(places),
        eps=hyperparameters.qformer[1],
    )


def write_converted_blip2(
    target: Path,
    blip2: PublishedBlip2,
    words: WordPieces | None,
    lm: StoredLM | None,
    generation: GenerationSettings,
    origin: str,
    dtype: torch.dtype | None,
) -> None:
    known = blip2.config.qformer.vocab_size
    if words and len(words) - 1 > known:  # [DEC] may be one more, where nothing is written with it
        raise InputError(f"{origin}: {len(words)} word pieces, but its Q-Former knows {known}")
    config = CheckpointConfig(
        system="blip2",
        model=blip2.config,
        encoder=vit_spec(blip2.vit),
        lm=lm.spec if lm else None,
        search=generation.search,
        prompts=generation.prompts,
        card=Card(recipe=f"converted from {origin}"),
    )
    words = words or WordPieces(SPECIAL_PIECES)
    write_blip2(target, config, blip2.tensors, words, lm.files if lm else {}, dtype=dtype)


# Language models


def blip2_language_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model within BLIP-2's, complete. Raises InputError: it is of a kind that is not covered."""
    text = section(config, "text_config", {"model_type": "opt"})
    settings = {"eos_token_id": None, **LANGUAGE.get(str(text["model_type"]), {}), **text}
    config_from_hf(settings)
    return settings


def language_model(source: Path, settings: Mapping[str, Any], state: TensorStore) -> tuple[StoredLM, tuple[str, ...]]:
    """The language model within a state dict of transformers, and which keys it took."""
    prefix, family = "language_model.", family_of(settings)
    theirs = renamed(state, {key.removeprefix(prefix): key for key in state if key.startswith(prefix)})
    config = with_head(config_from_hf(settings), theirs)
    tensors, report = translated_lm(theirs, family.table, config, family.changes)
    tokenizer = TextTokenizer.from_directory(source)
    files = LanguageModelFiles(config, tensors, tokenizer, report)
    stored = stored_lm(source, settings["model_type"], files, eos_ids(source, settings, tokenizer))
    return stored, tuple(f"{prefix}{key}" for key in report.mapped)


# Files of transformers


def unseen_by_config(source: Path, config: Mapping[str, Any]) -> Hyperparameters:
    parts = section(config, "vision_config", VISION), section(config, "qformer_config", QFORMER)
    vision, qformer = (heads_and_epsilon(source, part, "gelu") for part in parts)
    return Hyperparameters(vision, qformer, source)


def word_pieces(directory: Path) -> WordPieces:
    """The Q-Former's words, from vocab.txt or tokenizer.json. Raises InputError: neither is there, or holds them."""
    if (directory / "vocab.txt").exists():
        return WordPieces.read(directory / "vocab.txt")
    path = directory / "tokenizer.json"
    if not path.exists():
        raise InputError(
            f"{directory} has no vocab.txt or tokenizer.json with the Q-Former's word pieces: copy it from the model that it was made of"
        )
    try:
        ids = read_json(path)["model"]["vocab"]
        if sorted(ids.values()) == list(range(len(ids))):
            return WordPieces(sorted(ids, key=ids.__getitem__))
    except (KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path} holds no vocabulary of word pieces")


# Files of LAVIS


def lavis_language_model(source: Path, state: TensorStore, directory: Path) -> StoredLM:
    """The language model that a checkpoint of the second stage goes with. LAVIS ends OPT's texts with a line, has an exact GELU in T5, and
    begins Vicuna's texts with </s>.

    Raises:
        InputError: it is of another kind or width than in training.
    """
    files = open_language_model(directory)
    projection = next(name for name in LAVIS_PROJECTIONS if f"{name}.weight" in state)
    width, kind = len(state.layout(f"{projection}.weight")), LAVIS_PROJECTIONS[projection]
    if language_kind(files.config) != kind or files.config.embed_width != width:
        raise InputError(f"{source} goes with {kind} of width {width}: give its directory with --lm")
    if isinstance(files.config, T5Config):
        exact = files._replace(config=replace(files.config, activation="gelu"))
        return stored_lm(directory, directory.name, exact, [files.config.end_id])
    if kind == "an OPT":
        return stored_lm(directory, directory.name, files, files.tokenizer.encode("\n")[:1])
    stored = stored_lm(directory, directory.name, files, sorted(files.tokenizer.eos_ids))
    end = next((name for name, i in files.tokenizer.specials.items() if i in files.tokenizer.eos_ids), None)
    settings = read_json(directory / "tokenizer_config.json", optional=True)
    begins = json.dumps(settings | {"bos_token": end, "add_bos_token": True}).encode()
    return stored._replace(files={**stored.files, "tokenizer_config.json": begins})


def language_kind(config: LanguageModelConfig) -> str:
    """As messages call it."""
    return "a T5" if isinstance(config, T5Config) else "a Vicuna" if config.positions == "rotary" else "an OPT"


def check_left_out(source: Path, state: TensorStore, vision: Path | None, lm: Path | None) -> None:
    """Raises InputError: a frozen part that the checkpoint leaves out is not given, or one is that it has or needs not."""
    has_encoder = any(key.startswith("visual_encoder.") for key in state)
    needs_lm = any(f"{name}.weight" in state for name in LAVIS_PROJECTIONS)
    if has_encoder and vision:
        raise InputError(f"{source} has its own image encoder: leave out --vision")
    if not has_encoder and not vision:
        raise InputError(
            f"{source} leaves out its image encoder: give LAVIS's eva_vit_g.pth or clip_vit_L.pth with --vision"
        )
    if lm and not needs_lm:
        raise InputError(f"{source} is of the first stage, which has no language model: leave out --lm")
    if needs_lm and not (lm and lm.is_dir()):
        raise InputError(
            f"{source} leaves out its language model: give the directory of that OPT, T5 or Vicuna with --lm"
        )


def lavis_encoder(path: Path) -> TensorStore:
    """The image encoder that LAVIS keeps in a file of its own, under the names that it has within a checkpoint."""
    store, block = open_file(path), re.compile(r"(?:transformer\.res)?blocks\.(\d+)\.")
    blocks = CLIP_BLOCKS if "class_embedding" in store else EVA_BLOCKS
    names = [key for key in store if not (match := block.match(key)) or int(match[1]) < blocks]
    return renamed(store, {f"visual_encoder.{key}": key for key in names})
