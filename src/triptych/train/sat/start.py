"""``train_sat``: a run of Show, Attend and Tell from its data sets and recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from triptych.convert.opening import find_checkpoint
from triptych.errors import InputError
from triptych.models import SatModel, load_sat, published_encoder
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import SPECIALS, WordVocabulary
from triptych.train.data import FeatureReader, Splits, open_sources
from triptych.train.loop import fit
from triptych.train.sat.new_words import with_new_words
from triptych.train.sat.objective import validation_search
from triptych.train.sat.recipe import SatNetwork, SatRecipe
from triptych.train.sat.trainer import SatTrainer
from triptych.train.sources import Sources


def train_sat(sources: Sources, run: Path, recipe: SatRecipe) -> dict[str, Any] | None:
    """``triptych train sat``: train in the folder ``run``; ``run/best`` is the checkpoint with the best validation.

    Returns:
        The record of the best validation in the main process, None in the others.

    Raises:
        InputError: the data, the recipe or the checkpoint to start from cannot be used.
    """
    if recipe.objective == "scst" and recipe.start.init is None:
        raise InputError("self-critical training starts from a trained model: name one with --init")
    if recipe.guidance and recipe.objective != "scst":
        raise InputError("--guidance is part of self-critical training: choose --objective scst")
    splits = open_sources(sources)
    sat = new_sat(splits, recipe) if recipe.start.init is None else started_sat(recipe.start.init, recipe.start.cut)
    if recipe.start.new_words is not None:
        if recipe.start.init is None:
            raise InputError("--new-words adds to the words of a checkpoint: name one with --init")
        sat = with_new_words(sat, training_captions(splits), recipe.start.new_words)
    reader = FeatureReader(sat.model.encoder, sources.strict)
    sat.model.to(reader.state.device)
    data = reader.training_data(splits, sources, recipe.validation.validation_photos)
    record = fit(run, SatTrainer(sat, data, recipe), recipe.loop)
    reader.report()
    return record if reader.state.is_main_process else None


def training_captions(splits: Sequence[Splits]) -> Iterator[str]:
    """The captions of all training photos."""
    return (text for each in splits for photo in each.train for text in photo.captions)


def started_sat(init: str, cut: int | None) -> SatModel:
    """A checkpoint's model, ready for training. ``cut``: an earlier layer to train the encoder from; None = the checkpoint's."""
    sat = load_sat(find_checkpoint(init))
    encoder = sat.model.encoder
    if cut is not None and not 0 < cut <= encoder.cut:
        raise InputError(f"--cut is {cut}, expected 1 to {encoder.cut}: {init} was trained after layer {encoder.cut}")
    encoder.cut = cut or encoder.cut
    sat.model.unfreeze()
    spec = msgspec.structs.replace(sat.config.encoder, cut=encoder.cut)
    return replace(sat, config=msgspec.structs.replace(sat.config, encoder=spec))


def new_sat(splits: Sequence[Splits], recipe: SatRecipe) -> SatModel:
    """A decoder with random weights over a published encoder, with the words of the training captions."""
    torch.manual_seed(recipe.loop.seed)
    vocabulary = WordVocabulary.build(training_captions(splits))
    if len(vocabulary) == len(SPECIALS):
        names = ", ".join(each.name for each in splits)
        raise InputError(f"{names}: no word occurs five times in the training captions: give more photos")
    start = recipe.start
    weights = None if start.encoder_weights is None else Path(start.encoder_weights)
    vision = published_encoder(start.encoder, start.cut, weights)
    model = ShowAttendTell(sat_config(start.network, len(vocabulary), vision.dim), vision)
    return SatModel.new(model, vocabulary, validation_search(recipe))


def sat_config(network: SatNetwork, words: int, dim: int) -> ShowAttendTellConfig:
    """The config of a new model; a gate of None = that of the variant."""
    make = ShowAttendTellConfig.paper if network.variant == "paper" else ShowAttendTellConfig.tutorial
    choices = {name: value for name, value in asdict(network).items() if name != "variant" and value is not None}
    return make(words, dim, **choices)
