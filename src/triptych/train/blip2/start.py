"""From a data set and a few choices to a BLIP-2 run: photos, frozen parts, cached features, model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import PartialState
from torch import nn

from triptych.checkpoints.config import CheckpointConfig, LanguageModelSpec
from triptych.checkpoints.parts import part_path
from triptych.checkpoints.place import load_strict
from triptych.checkpoints.store import load_tensors
from triptych.checkpoints.tables.blip2 import load_bert
from triptych.errors import InputError
from triptych.models import (
    Blip2Model,
    blip2_search,
    encoder_spec,
    find_language_model,
    language_model_fingerprint,
    load_blip2,
    locate,
    vision_encoder,
)
from triptych.nn.configs import QFormerConfig
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.text.wordpiece import WordPieces
from triptych.train.blip2.objective import Blip2Recipe, train
from triptych.train.start import FEATURES_TIMEOUT, features, split_photos

IMAGE_SIZE = 320  # pixels; 10 x 10 cells of EfficientNet-Lite2


def blip2_run(
    *,
    data: Path,
    run: Path,
    recipe: Blip2Recipe,
    init: str | None = None,
    encoder: str = "efficientnet-lite2",
    encoder_weights: Path | None = None,
    image_size: int | None = None,
    lm: str = "smollm2-135m",
    queries: int = 16,
) -> dict[str, Any] | None:
    """``triptych train blip2``: train on ``data`` in the folder ``run``.

    Stage 1 begins with MiniLM's weights; the later ones with a checkpoint (``init``) of an earlier stage.
    Returns the record of the best validation in the main process, None in the others.
    """
    if recipe.stage > 1 and init is None:
        raise InputError(f"stage {recipe.stage} goes on from an earlier one: name its checkpoint with --init")
    state = PartialState(timeout=FEATURES_TIMEOUT)
    train_photos, val_photos = split_photos(data, recipe.questions_alone)
    torch.manual_seed(recipe.loop.seed)
    blip2 = new_blip2(encoder, encoder_weights, image_size, queries) if init is None else load_blip2(locate(init))
    if blip2.model.lm is not None:
        recipe = replace(recipe, word_epochs=0)  # its projection has begun
    elif recipe.stage > 1:
        if recipe.terms.get("scst"):
            raise InputError("self-critical training starts from a model that captions: train its captions first")
        blip2 = with_lm(blip2, lm)
    model = blip2.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("vision_encoder.", "lm.")))
    model.to(state.device)
    val_photos = val_photos[: recipe.validation_photos]
    with state.local_main_process_first():  # the other processes find the features on disk
        train_data, val_data = (
            (photos, features(photos, model.vision_encoder)) for photos in (train_photos, val_photos)
        )
    record = train(run, blip2, train_data, val_data, recipe, {"data": data.name})
    return record if state.is_main_process else None


def new_blip2(encoder: str, weights: Path | None, image_size: int | None, queries: int) -> Blip2Model:
    """The first stage before training: MiniLM's words and layers, fresh queries and cross-attention."""
    vision = vision_encoder(encoder, weights=weights, image_size=image_size)
    words = WordPieces.read(part_path("minilm-l6", "vocab.txt"))
    model = Blip2(Blip2Config(QFormerConfig(vision.dim, queries=queries)), vision, None)
    load_bert(model.qformer, load_tensors(part_path("minilm-l6")))
    config = CheckpointConfig(system="blip2", model=model.config, encoder=encoder_spec(vision))
    return Blip2Model(model, words, None, blip2_search(None), config)


def with_lm(blip2: Blip2Model, name: str) -> Blip2Model:
    """The same with a frozen language model behind a fresh projection."""
    lm = find_language_model(name)
    model = Blip2(blip2.model.config, blip2.model.vision_encoder, lm.decoder)
    load_strict(model, blip2.model.state_dict(), optional_prefixes=("lm.", "projection."))
    assert model.projection is not None
    as_words = float(lm.decoder.embedding.weight.std()) / model.config.qformer.dim**0.5
    nn.init.normal_(model.projection.weight, std=as_words)  # soft prompts begin as large as words
    spec = LanguageModelSpec(name, stored=False, sha256=language_model_fingerprint(name, lm))
    config = msgspec.structs.replace(blip2.config, lm=spec)
    search = blip2_search(lm.tokenizer)
    return replace(blip2, model=model, tokenizer=lm.tokenizer, search=search, config=config)
