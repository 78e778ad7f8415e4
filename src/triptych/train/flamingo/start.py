"""From a data set and a few choices to a Flamingo run: photos, drawings, frozen parts, cached features, model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from triptych.checkpoints.config import CheckpointConfig, LanguageModelSpec
from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models import (
    FlamingoModel,
    encoder_spec,
    find_language_model,
    language_model_fingerprint,
    load_flamingo,
    locate,
    vision_encoder,
)
from triptych.nn.cnn import ConvNet
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo
from triptych.train.flamingo.batches import REWARDED
from triptych.train.flamingo.objective import FlamingoRecipe, train
from triptych.train.start import FEATURES_TIMEOUT, features, split_photos

IMAGE_SIZE = 320  # pixels; 10 x 10 cells of EfficientNet-Lite2
SPARE = ("<image>", "<file_sep>")  # a token that a picture may have, of those that language models know


def flamingo_run(
    *,
    data: Path,
    run: Path,
    recipe: FlamingoRecipe,
    drawings: Path | None = None,
    init: str | None = None,
    encoder: str = "efficientnet-lite2",
    encoder_weights: Path | None = None,
    image_size: int | None = None,
    lm: str = "smollm2-135m",
    image_token: str | None = None,
    sizes: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """``triptych train flamingo``: train on ``data`` in the folder ``run``.

    Args:
        drawings: a data set of named pictures, of which the training split is used.
        init: a checkpoint to go on from.
        image_token: the special token of the language model that stands for a picture; None = the first of ``SPARE`` that it has.
        sizes: of the trained parts, as in ``FlamingoConfig``.

    Returns:
        The record of the best validation in the main process, None in the others.
    """
    state = PartialState(timeout=FEATURES_TIMEOUT)
    photos, val_photos = split_photos(data)
    torch.manual_seed(recipe.loop.seed)
    if init is None:
        if recipe.shares.get(REWARDED):
            raise InputError("self-critical training starts from a trained model: name one with --init")
        flamingo = new_flamingo(encoder, encoder_weights, image_size or IMAGE_SIZE, lm, image_token, sizes or {})
    else:
        flamingo = load_flamingo(locate(init))
        if not isinstance(flamingo.model.vision_encoder, ConvNet):
            raise InputError(f"{init} looks with a vision transformer: training goes on from models with a CNN")
        recipe = replace(recipe, word_epochs=0)
    model = flamingo.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("vision_encoder.", "lm.")))
    model.to(state.device)
    named = open_dataset(drawings, "train") if drawings else []
    with state.local_main_process_first():  # the other processes find the features on disk
        train_data, val_data = ((x, features(x, model.vision_encoder)) for x in (photos, val_photos))
        drawn = (named, features(named, model.vision_encoder)) if named else None
    notes = {"data": data.name, "drawings_data": drawings.name if drawings else None}
    record = train(run, flamingo, train_data, val_data, drawn, recipe, notes)
    return record if state.is_main_process else None


def new_flamingo(
    encoder: str, weights: Path | None, image_size: int, lm: str, image_token: str | None, sizes: dict[str, Any]
) -> FlamingoModel:
    """Fresh trained parts, their gates shut, between frozen ones."""
    vision = vision_encoder(encoder, weights=weights, image_size=image_size)
    language = find_language_model(lm)
    specials = language.tokenizer.specials
    token = image_token or next((token for token in SPARE if token in specials), "")
    if token not in specials:
        known = ", ".join(sorted(specials)[:12])
        raise InputError(f"name a token that can stand for a picture with --image-token: {lm} has {known}...")
    if not language.tokenizer.eos_ids:
        raise InputError(f"{lm} has no token that ends a text: its tokenizer must name one")
    if specials[token] in language.tokenizer.eos_ids:
        raise InputError(f"{token} ends a text: choose another --image-token")
    config = FlamingoConfig(vision.dim, specials[token], **sizes)
    end_id = min(language.tokenizer.eos_ids)
    search = Search(frozenset({end_id}), max_new_tokens=25, banned=frozenset({config.image_id}))
    spec = LanguageModelSpec(lm, stored=False, sha256=language_model_fingerprint(lm, language), end_id=end_id)
    own = CheckpointConfig(system="flamingo", model=config, encoder=encoder_spec(vision), lm=spec)
    return FlamingoModel(Flamingo(config, vision, language.decoder), language.tokenizer, search, own)
