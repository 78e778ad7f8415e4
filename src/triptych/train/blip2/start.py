"""``train_blip2``: a run of BLIP-2 from its data sets and recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.parts import part_path
from triptych.checkpoints.place import load_strict
from triptych.checkpoints.store import load_tensors
from triptych.checkpoints.tables.blip2 import load_bert
from triptych.convert.opening import find_checkpoint
from triptych.errors import InputError
from triptych.models import (
    Blip2Model,
    blip2_search,
    encoder_spec,
    find_language_model,
    language_model_spec,
    load_blip2,
    vision_encoder,
)
from triptych.nn.configs import QFormerConfig
from triptych.nn.decoder import Decoder
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.text.wordpiece import WordPieces
from triptych.train.blip2.recipe import FIRST_STAGE, Blip2Recipe, Blip2Start
from triptych.train.blip2.trainer import Blip2Trainer
from triptych.train.data import FeatureReader, open_sources
from triptych.train.loop import fit
from triptych.train.recipe import recipe_with
from triptych.train.sources import Sources
from triptych.train.trainer import train_bridges

CONTRAST_WEIGHT = 40.0  # of models that begin here: of a few thousand photos matching learns less than contrast (docs/lab-notebook.md)


def train_blip2(sources: Sources, run: Path, recipe: Blip2Recipe) -> dict[str, Any] | None:
    """``triptych train blip2``: train in the folder ``run``; ``run/best`` is the checkpoint with the best validation.

    Stage 1 begins with MiniLM's weights; the later ones with a checkpoint (``init``) of an earlier stage.

    Returns:
        The record of the best validation in the main process, None in the others.

    Raises:
        InputError: the data, the recipe or the checkpoint to start from cannot be used.
    """
    if recipe.stage > 1 and recipe.start.init is None:
        raise InputError(f"stage {recipe.stage} goes on from an earlier one: name its checkpoint with --init")
    if recipe.rates.agreement and not recipe.terms.get("itc"):
        raise InputError("--agreement is part of contrast: give it a weight, such as --weight itc=1")
    if recipe.rates.guidance and not recipe.terms.get("caption"):
        raise InputError(
            "--guidance is part of captions by the language model: give them a weight, such as --weight caption=1"
        )
    splits = open_sources(sources, recipe.questions_only)
    torch.manual_seed(recipe.loop.seed)
    blip2, recipe = starting_model(recipe)
    train_bridges(blip2.model)
    reader = FeatureReader(blip2.model.vision_encoder, sources.strict)
    blip2.model.to(reader.state.device)
    data = reader.training_data(splits, sources, recipe.validation.validation_photos)
    record = fit(run, Blip2Trainer(blip2, data, recipe), recipe.loop)
    reader.report()
    return record if reader.state.is_main_process else None


def starting_model(recipe: Blip2Recipe) -> tuple[Blip2Model, Blip2Recipe]:
    """The model that the recipe starts from, and the recipe, without a warm start if the projection has been trained already.

    Raises InputError: the model lacks what a term of the loss trains.
    """
    init = recipe.start.init
    blip2 = new_blip2(recipe.start) if init is None else load_blip2(find_checkpoint(init))
    if blip2.model.lm is not None:
        recipe = recipe_with(recipe, {"word_epochs": 0})
    elif recipe.stage > 1:
        if recipe.terms.get("scst"):
            raise InputError("self-critical training starts from a model that captions: train its captions first")
        blip2 = with_lm(blip2, recipe.start.lm)
    heads = [name for name in sorted(FIRST_STAGE) if recipe.terms.get(name)]
    if blip2.model.heads is None and heads:
        raise InputError(
            f"{init} has no heads for {', '.join(heads)}: choose terms that it can learn, such as --stage 2 --weight caption=1"
        )
    if recipe.terms.get("itg") and not blip2.model.config.writes:
        raise InputError(
            f"{init} has lost the head that writes: choose terms that it can learn, such as --weight itg=0"
        )
    return blip2, recipe


def new_blip2(start: Blip2Start) -> Blip2Model:
    """A new model for the first stage: MiniLM's words and layers, new queries and cross-attention."""
    weights = None if start.encoder_weights is None else Path(start.encoder_weights)
    vision = vision_encoder(start.encoder, weights=weights, image_size=start.image_size)
    words = WordPieces.read(part_path("minilm-l6", "vocab.txt"))
    qformer = QFormerConfig(vision.dim, queries=start.queries)
    model = Blip2(Blip2Config(qformer, contrast_weight=CONTRAST_WEIGHT), vision, None)
    load_bert(model.qformer, load_tensors(part_path("minilm-l6")))
    config = CheckpointConfig(system="blip2", model=model.config, encoder=encoder_spec(vision))
    return Blip2Model(model, words, None, blip2_search(None), config)


def with_lm(blip2: Blip2Model, name: str) -> Blip2Model:
    """``blip2`` with a frozen language model behind a new projection."""
    lm = find_language_model(name)
    model = Blip2(blip2.model.config, blip2.model.vision_encoder, lm.model)
    load_strict(model, blip2.model.state_dict(), optional_prefixes=("lm.", "projection."))
    assert model.projection is not None
    scale = lm.model.config.embed_scale if isinstance(lm.model, Decoder) else 1.0
    as_words = float(lm.model.embedding.weight.std()) * scale / model.config.qformer.dim**0.5
    nn.init.normal_(model.projection.weight, std=as_words)  # soft prompts begin as large as words
    config = msgspec.structs.replace(blip2.config, lm=language_model_spec(name, lm))
    search = blip2_search(lm.tokenizer)
    return replace(blip2, model=model, tokenizer=lm.tokenizer, search=search, config=config)
