"""``train_flamingo``: a run of Flamingo from its data sets and recipe."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from triptych.checkpoints.config import CheckpointConfig
from triptych.convert.opening import find_checkpoint
from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models import (
    FlamingoModel,
    encoder_spec,
    find_language_model,
    language_model_spec,
    load_flamingo,
    vision_encoder,
)
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo
from triptych.text.tokenizer import TextTokenizer
from triptych.train.data import FeatureReader, open_sources
from triptych.train.flamingo.recipe import REWARDED, FlamingoRecipe, FlamingoStart
from triptych.train.flamingo.trainer import FlamingoTrainer
from triptych.train.loop import fit
from triptych.train.recipe import recipe_with
from triptych.train.sources import Sources
from triptych.train.trainer import train_bridges

SPARE_TOKENS = ("<image>", "<file_sep>")  # special tokens of language models that may stand for a picture


def train_flamingo(sources: Sources, run: Path, recipe: FlamingoRecipe) -> dict[str, Any] | None:
    """``triptych train flamingo``: train in the folder ``run``; ``run/best`` is the checkpoint with the best validation.

    Returns:
        The record of the best validation in the main process, None in the others.

    Raises:
        InputError: the data, the recipe or the checkpoint to start from cannot be used.
    """
    if recipe.start.init is not None and recipe.start.add_tokens:
        raise InputError("--add-tokens is for a new model, and --init keeps that of its checkpoint: leave out one")
    splits = open_sources(sources)
    torch.manual_seed(recipe.loop.seed)
    init = recipe.start.init
    if init is None:
        if recipe.shares.get(REWARDED):
            raise InputError("self-critical training starts from a trained model: name one with --init")
        flamingo = new_flamingo(recipe.start)
    else:
        flamingo = load_flamingo(find_checkpoint(init))
        recipe = recipe_with(recipe, {"word_epochs": 0})
    train_bridges(flamingo.model)
    reader = FeatureReader(flamingo.model.vision_encoder, sources.strict)
    flamingo.model.to(reader.state.device)
    drawings = None
    if sources.drawings is not None:
        drawings = reader.photo_set(sources.drawings.name, open_dataset(sources.drawings, "train"))
    data = reader.training_data(splits, sources, None)
    record = fit(run, FlamingoTrainer(flamingo, data, recipe, drawings), recipe.loop)
    reader.report()
    return record if reader.state.is_main_process else None


def new_flamingo(start: FlamingoStart) -> FlamingoModel:
    """A model with new trained parts, its gates closed, between frozen ones."""
    weights = None if start.encoder_weights is None else Path(start.encoder_weights)
    vision = vision_encoder(start.encoder, weights=weights, image_size=start.image_size)
    language = find_language_model(start.lm)
    if start.add_tokens and start.image_token:
        raise InputError("--add-tokens adds a token for pictures: leave out --image-token")
    if not language.tokenizer.eos_ids:
        raise InputError(f"{start.lm} has no token that ends a text: name one in its tokenizer's files")
    eos = min(language.tokenizer.eos_ids)
    if start.add_tokens:
        end_id = language.decoder.vocab_size  # OpenFlamingo's order
        image_id, added = end_id + 1, 2
    else:
        end_id, image_id, added = eos, spare_token(start, language.tokenizer), 0
    spec = language_model_spec(start.lm, language, end_id, added)
    tokenizer = replace(language.tokenizer, eos_ids=frozenset({end_id})) if added else language.tokenizer
    if added:
        language.decoder.add_tokens([eos, None])
    config = FlamingoConfig(vision.dim, image_id, **asdict(start.network))
    search = Search(frozenset({end_id}), max_new_tokens=25, banned=frozenset({image_id}))
    own = CheckpointConfig(system="flamingo", model=config, encoder=encoder_spec(vision), lm=spec)
    return FlamingoModel(Flamingo(config, vision, language.decoder), tokenizer, search, own)


def spare_token(start: FlamingoStart, tokenizer: TextTokenizer) -> int:
    """The special token of the language model that stands for a picture. Raises InputError: there is none, or it ends a text."""
    specials = tokenizer.specials
    token = start.image_token or next((token for token in SPARE_TOKENS if token in specials), "")
    if token not in specials:
        known = ", ".join(sorted(specials)[:12])
        raise InputError(
            f"{start.lm} has no spare token for a picture: add one with --add-tokens, or name one of {known}... with --image-token"
        )
    if specials[token] in tokenizer.eos_ids:
        raise InputError(f"{token} ends a text: choose another --image-token, or --add-tokens")
    return specials[token]
