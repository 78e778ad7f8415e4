"""Guidance in self-critical training: to the log-probability of a word is added what a consensus of other photos expects of it
(``train.cross_fitting``), as in use, so that the model learns what the consensus does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.io.files import write_file
from triptych.models import SatModel
from triptych.models.encoders import published_classifier
from triptych.train.cross_fitting import ExpectedWords, cross_fit, pooled_features
from triptych.train.data import TrainingData

POOLED_FILE = "pooled.npy"  # in the run's folder: pooled features of all training photos, then of all validation photos


def expected_words(sat: SatModel, data: TrainingData, run: Path, weight: float, new: bool) -> ExpectedWords:
    """Fitted to the features of ``sat``, which are kept in ``run``: a run that is resumed (not ``new``) has the same guidance.

    Raises InputError: the features in ``run`` are missing, or of other photos.
    """
    if new:
        pooled = pooled_features(data, annotation_mean(sat))
        write_file(run / POOLED_FILE, lambda file: np.save(file, pooled))
    else:
        pooled = read_pooled(run / POOLED_FILE, sum(len(each.photos) for each in (*data.train, *data.validation)))
    expected = cross_fit(pooled, data, published_classifier(sat.model.encoder.name))
    return ExpectedWords(expected, sat.vocabulary.word_token, weight)


def read_pooled(path: Path, photos: int) -> Floats:
    """Raises InputError: the file is missing, damaged, or of other photos."""
    try:
        pooled: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        raise InputError(f"{path} is missing or damaged: start again with a new folder (--run)") from None
    if len(pooled) != photos:
        raise InputError(f"{path} has {len(pooled)} photos, expected {photos}: start again with a new folder (--run)")
    return pooled


def annotation_mean(sat: SatModel) -> Callable[[Tensor], Tensor]:
    """The mean of photos' annotations over the grid: maps of the trunk ``[B, C, h, w]`` -> ``[B, D]``."""
    encoder, device = sat.model.encoder, next(sat.model.parameters()).device
    return lambda maps: encoder.tail(maps.to(device)).mean(1)
