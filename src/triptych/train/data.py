"""The photos of a run, from one data set or several, by split, with their features."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from accelerate import PartialState

from triptych.checkpoints.config import Card
from triptych.checkpoints.parts import home
from triptych.data import Photo, open_dataset
from triptych.data.reading import PhotoReader
from triptych.data.records import read_text
from triptych.errors import InputError
from triptych.evaluate.captioning import caption_metrics
from triptych.nn.encoder import VisionEncoder
from triptych.train.features import Features, JoinedFeatures, cached_features
from triptych.train.loop import has_fast_bf16
from triptych.train.processes import is_main_process, on_cpu
from triptych.train.recipe import Settings
from triptych.train.sampling import DataMix
from triptych.train.sources import Sources

FEATURES_TIMEOUT = timedelta(days=2)  # how long other processes wait while one computes the features
CAPTION_METRIC = re.compile(r"(?:^|/)(?:BLEU-[1-4]|METEOR|ROUGE-L|CIDEr-D)$")  # computed from 0 to 1 (CIDEr-D: 10)

HELD_OUT_EVERY = 10  # without a validation split, every tenth photo is used for validation


class PhotoSet(NamedTuple):
    """Photos of one split of one data set, and the features of each."""

    name: str
    photos: Sequence[Photo]
    features: Features


class WrittenCaption(msgspec.Struct):
    """A line of a file that ``eval caption --output`` wrote."""

    id: str
    caption: str


class Splits(NamedTuple):
    """One data set: its photos to train on and to validate with."""

    name: str
    train: list[Photo]
    validation: list[Photo]


@dataclass(frozen=True)
class TrainingData:
    """``shares``: see ``DataMix``. Training items are numbered over all data sets, one after another."""

    train: Sequence[PhotoSet]
    validation: Sequence[PhotoSet]
    shares: tuple[float, ...] | None = None

    @property
    def photos(self) -> list[Photo]:
        """The training photos of all data sets."""
        return [photo for each in self.train for photo in each.photos]

    @property
    def features(self) -> JoinedFeatures:
        """The features of ``photos``."""
        return JoinedFeatures(*(each.features for each in self.train))

    @property
    def mix(self) -> DataMix:
        return DataMix(tuple(len(each.photos) for each in self.train), self.shares)

    def check_captions(self, advice: str = "") -> None:
        """Raises InputError: a photo has no captions."""
        for each in (*self.train, *self.validation):
            for photo in each.photos:
                if not photo.captions:
                    raise InputError(f"{photo.name} has no captions: remove it from the data or give it some{advice}")

    def fingerprint(self, further: Iterable[Photo] = ()) -> str:
        """The sha256 of the ids and captions of all photos, and of ``further`` ones."""
        validation = [photo for each in self.validation for photo in each.photos]
        known: list[tuple[object, ...]] = [
            (photo.id, photo.captions) for photo in (*self.photos, *validation, *further)
        ]
        known += [(photo.id, photo.written) for photo in self.photos if photo.written]
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def card(self, recipe: Settings, record: Mapping[str, Any], drawings: PhotoSet | None = None) -> Card:
        """The card of a checkpoint: the recipe, the figures of a validation in percent, and the data sets."""
        names = [each.name for each in self.train]
        counts = {each.name: len(each.photos) for each in self.train}
        notes: dict[str, Any] = {"photos_of": counts} if len(names) > 1 else {}
        if self.shares:
            notes["shares"] = dict(zip(names, self.shares, strict=True))
        if count := sum(bool(photo.written) for photo in self.photos):
            notes["photos_with_written_captions"] = count
        return Card(
            recipe=asdict(recipe),  # type: ignore[call-overload]
            validation=in_percent(record),
            data=" + ".join(names),
            photos=sum(counts.values()),
            drawings_data=drawings.name if drawings else None,
            drawings=len(drawings.photos) if drawings else None,
            notes=notes,
        )


def in_percent(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a validation with BLEU, METEOR, ROUGE-L and CIDEr-D times 100, as cards and tables have them, and the rest as it is."""
    return {
        name: round(100 * value, 2) if CAPTION_METRIC.search(name) and isinstance(value, float) else value
        for name, value in record.items()
    }


def validate_each(sets: Sequence[PhotoSet], figures_of: Callable[[PhotoSet], dict[str, float]]) -> dict[str, float]:
    """The figures of each data set as ``name/figure``, and their means as ``figure``; for a single data set only its figures.

    The mean decides which state is the best, so that no data set is sacrificed for another.
    """
    per_set = [figures_of(each) for each in sets]
    if len(per_set) == 1:
        return per_set[0]
    apart = {
        f"{each.name}/{name}": value
        for each, figures in zip(sets, per_set, strict=True)
        for name, value in figures.items()
    }
    common = [name for name in per_set[0] if all(name in figures for figures in per_set)]
    return {name: sum(figures[name] for figures in per_set) / len(per_set) for name in common} | apart


def caption_figures(photos: Sequence[Photo], texts: Sequence[str]) -> dict[str, float]:
    """The figures of ``triptych eval caption`` for generated captions, without METEOR, which needs an external program."""
    validated = caption_metrics(
        {photo.id: text for photo, text in zip(photos, texts, strict=True)}, photos, meteor=False
    )
    return {name: value for name, value in validated.items() if value is not None}


def open_sources(sources: Sources, questions: bool = False) -> list[Splits]:
    """The photos of each data set; with several data sets, ids begin with the name of theirs.

    If no data set has a validation split, a part of each is used for validation; else data sets without one are for training only.
    ``questions``: photos with questions count, too, even without captions.

    Raises:
        InputError: a data set cannot be read, or has no photos to train on or to validate; ``sources.written`` belongs to no photo.
    """
    written = read_written(sources.written)
    opened = [photos_by_split(path, questions) for path in sources.data]
    hold_out = not any(validation for _, validation in opened)
    per_set = []
    for name, path, (train, validation) in zip(sources.names, sources.data, opened, strict=True):
        if not validation and hold_out:
            train, validation = split_off_validation(path, train)
        if not train or (not validation and hold_out):
            raise InputError(
                f"{path} has {len(train)} photos to train on and {len(validation)} to validate: give some of both"
            )
        if len(sources.data) > 1:
            train, validation = ([replace(p, id=f"{name}/{p.id}") for p in photos] for photos in (train, validation))
        per_set.append(Splits(name, with_written(train, written), validation))
    if sources.written and not any(photo.written for each in per_set for photo in each.train):
        raise InputError(
            f"{sources.written[0]}: none of its ids is a training photo's; write captions of the training split"
        )
    return per_set


def read_written(files: Sequence[Path]) -> dict[str, list[str]]:
    """Ids of photos -> captions that a model wrote of them.

    Raises InputError: a file cannot be read, or a line is not a JSON object with ``id`` and ``caption``.
    """
    written: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file; write it with triptych eval caption --output")
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if not line.strip():
                continue
            try:
                item = msgspec.json.decode(line, type=WrittenCaption)
            except msgspec.MsgspecError as error:
                raise InputError(f"{file}: line {number}: expected an object with id and caption ({error})") from None
            if (caption := " ".join(item.caption.split())) and caption not in written[item.id]:
                written[item.id].append(caption)
    return written


def with_written(photos: Sequence[Photo], written: Mapping[str, Sequence[str]]) -> list[Photo]:
    """The photos with their captions in ``written``, by their id with or without the name of the data set."""

    def captions_of(photo: Photo) -> tuple[str, ...]:
        return tuple(written.get(photo.id) or written.get(photo.id.partition("/")[2]) or ())

    return [replace(photo, written=captions_of(photo)) for photo in photos] if written else list(photos)


def photos_by_split(data: Path, questions: bool = False) -> tuple[list[Photo], list[Photo]]:
    """Training and validation photos with captions (``questions``: or with questions); test photos are never used."""
    photos = [photo for photo in open_dataset(data) if photo.captions or (questions and photo.extra.get("vqa"))]
    train, validation = ([photo for photo in photos if photo.split == split] for split in ("train", "val"))
    return train, validation


def split_off_validation(data: Path, photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Photos to train on, and every tenth for validation."""
    validation = list(photos[::HELD_OUT_EVERY])
    if is_main_process():
        print(f"{data} has no validation split: every tenth photo ({len(validation)}) is held out", file=sys.stderr)
    return [photo for i, photo in enumerate(photos) if i % HELD_OUT_EVERY], validation


class FeatureReader:
    """Computes the features of photos, in one process for all; ``report`` prints which photos were left out."""

    def __init__(self, encoder: VisionEncoder, strict: bool) -> None:
        self.encoder = encoder
        self.state = PartialState(cpu=on_cpu(), timeout=FEATURES_TIMEOUT)
        self.reader = PhotoReader(strict, self.say)

    def say(self, line: str) -> None:
        if self.state.is_main_process:
            print(line, file=sys.stderr)

    def photo_set(self, name: str, photos: Sequence[Photo]) -> PhotoSet:
        """The readable photos with their features, from the cache if it has them."""
        dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
        with self.state.local_main_process_first():  # the other processes read them from disk
            features = cached_features(photos, self.encoder, home() / "features", dtype, self.reader)
        return PhotoSet(name, [photos[row] for row in features.rows], features)

    def training_data(self, splits: Sequence[Splits], sources: Sources, validation_photos: int | None) -> TrainingData:
        """``validation_photos``: the most of each data set; None = all."""
        train = [self.photo_set(each.name, each.train) for each in splits]
        validation = [
            self.photo_set(each.name, each.validation[:validation_photos]) for each in splits if each.validation
        ]
        return TrainingData(train, validation, sources.shares or None)

    def report(self) -> None:
        """Print one line about the photos that were left out, if any."""
        if summary := self.reader.summary():
            self.say(summary)
