"""From a data set and a few choices to a training run: photos, encoder, cached features, vocabulary, model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from triptych.checkpoints.parts import home
from triptych.data import Photo, open_dataset
from triptych.errors import InputError
from triptych.models import load_sat, locate, published_encoder
from triptych.nn.encoder import VisionEncoder
from triptych.systems.configs import CHOICES, ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import SPECIALS, WordVocabulary
from triptych.train.features import Features, cached_features
from triptych.train.loop import LoopConfig, has_fast_bf16
from triptych.train.sat import SatRecipe, train

VARIANTS = ("paper", "tutorial")
FEATURES_TIMEOUT = timedelta(days=2)  # how long other processes wait while one computes the features
HELD_OUT = 10  # without a validation split, every tenth photo is held out for it


def split_photos(data: Path, asked: bool = False) -> tuple[list[Photo], list[Photo]]:
    """Training and validation photos with captions (``asked``: or with questions); test photos are never touched."""
    photos = [photo for photo in open_dataset(data) if photo.captions or (asked and photo.extra.get("vqa"))]
    train_photos = [photo for photo in photos if photo.split == "train"]
    val_photos = [photo for photo in photos if photo.split == "val"]
    if not val_photos:
        val_photos = train_photos[::HELD_OUT]
        train_photos = [photo for i, photo in enumerate(train_photos) if i % HELD_OUT]
        print(f"{data} has no validation split: every tenth photo ({len(val_photos)}) is held out", file=sys.stderr)
    if not train_photos or not val_photos:
        raise InputError(
            f"{data} has {len(train_photos)} photos to train on and {len(val_photos)} to validate: both are needed"
        )
    return train_photos, val_photos


def sat_run(
    *,
    data: Path,
    run: Path,
    objective: str = "xe",
    init: str | None = None,
    encoder: str = "efficientnet-lite2",
    encoder_weights: Path | None = None,
    cut: int | None = None,
    attention: str = "soft",
    variant: str = "paper",
    gate: str | None = None,
    hidden_dim: int = 512,
    embed_dim: int = 512,
    attention_dim: int = 256,
    epochs: int = 10,
    batch_size: int = 64,
    accumulation: int = 1,
    learning_rate: float = 1e-3,
    tail_rate: float = 0.05,
    patience: int = 4,
    validation_photos: int = 500,
    precision: str = "auto",
    seed: int = 0,
) -> dict[str, Any] | None:
    """``triptych train sat``: train on ``data`` in the folder ``run``.

    Returns the record of the best validation in the main process, None in the others.

    With ``init`` (a checkpoint, or ``sat``) the vocabulary, the sizes and the encoder are those of the checkpoint;
    only ``cut`` may move, down.
    """
    loop = LoopConfig(
        epochs, batch_size, accumulation, learning_rate, patience=patience, precision=precision, seed=seed
    )
    recipe = SatRecipe(objective, tail_rate=tail_rate, validation_photos=validation_photos, loop=loop)
    if objective == "scst" and init is None:
        raise InputError("self-critical training starts from a trained model: name one with --init")
    for name, value, known in (
        ("variant", variant, VARIANTS),
        ("attention", attention, CHOICES["attention"]),
        ("gate", gate, (None, *CHOICES["gate"])),
    ):
        if value not in known:
            raise InputError(f"unknown {name} {value!r}: choose {' or '.join(filter(None, known))}")
    state = PartialState(timeout=FEATURES_TIMEOUT)
    train_photos, val_photos = split_photos(data)
    whole_encoder = False
    if init is not None:
        loaded = load_sat(locate(init))
        model, vocabulary = loaded.model, loaded.vocabulary
        if cut is not None and not 0 < cut <= model.encoder.cut:
            raise InputError(
                f"--cut {cut}: {init} was trained after layer {model.encoder.cut}; name that one or one before it"
            )
        model.encoder.cut = cut or model.encoder.cut
        model.unfreeze()
        whole_encoder = loaded.config.encoder.stored
    else:
        torch.manual_seed(seed)
        vocabulary = WordVocabulary.build(caption for photo in train_photos for caption in photo.captions)
        if len(vocabulary) == len(SPECIALS):
            raise InputError(
                f"{data}: no word occurs five times in the training captions, so there is nothing to learn"
            )
        vision = published_encoder(encoder, cut, encoder_weights)
        choices = {"attention": attention, "gate": gate}
        sizes = {"hidden_dim": hidden_dim, "embed_dim": embed_dim, "attention_dim": attention_dim}
        model = ShowAttendTell(sat_config(variant, len(vocabulary), vision.dim, choices, sizes), vision)
    model.to(state.device)
    val_photos = val_photos[:validation_photos]
    with state.local_main_process_first():  # the other processes find the features on disk
        train_data, val_data = ((photos, features(photos, model.encoder)) for photos in (train_photos, val_photos))
    record = train(run, model, vocabulary, train_data, val_data, recipe, {"data": data.name}, whole_encoder)
    return record if state.is_main_process else None


def sat_config(
    variant: str, words: int, dim: int, choices: dict[str, str | None], sizes: dict[str, int]
) -> ShowAttendTellConfig:
    """The config of a new model: ``variant`` with the given choices (None = the variant's own) and sizes."""
    make = ShowAttendTellConfig.paper if variant == "paper" else ShowAttendTellConfig.tutorial
    return make(words, dim, **{name: value for name, value in choices.items() if value is not None}, **sizes)


def features(photos: Sequence[Photo], encoder: VisionEncoder) -> Features:
    return cached_features(photos, encoder, home() / "features", torch.bfloat16 if has_fast_bf16() else torch.float32)
