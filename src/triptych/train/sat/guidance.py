"""Guidance in self-critical training: to the log-probability of a word is added what a consensus of other photos expects of it
(``train.cross_fitting``), as in use, so that the model learns what the consensus does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.io.files import write_file
from triptych.logits import to_numpy
from triptych.models import SatModel
from triptych.models.encoders import published_classifier
from triptych.train.cross_fitting import ExpectedWords, cross_fit, photo_sets
from triptych.train.data import TrainingData
from triptych.train.features import Features

POOLED_FILE = "pooled.npy"  # in the run's folder: pooled features of all training photos, then of all validation photos
BATCH = 64


def expected_words(sat: SatModel, data: TrainingData, run: Path, weight: float, new: bool) -> ExpectedWords:
    """Fitted to the features of ``sat``, which are kept in ``run``: a run that is resumed (not ``new``) has the same guidance.

    Raises InputError: the features in ``run`` are missing, or of other photos.
    """
    sets = [each.features for each in photo_sets(data)]
    if new:
        pooled = np.concatenate([pooled_features(sat, each) for each in sets])
        write_file(run / POOLED_FILE, lambda file: np.save(file, pooled))
    else:
        pooled = read_pooled(run / POOLED_FILE, sum(map(len, sets)))
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


@torch.inference_mode()
def pooled_features(sat: SatModel, features: Features) -> Floats:
    """The mean of each photo's annotations over the grid: ``[N, D]``."""
    encoder = sat.model.encoder
    device = next(sat.model.parameters()).device
    batches = (range(first, min(first + BATCH, len(features))) for first in range(0, len(features), BATCH))
    return np.concatenate(
        [to_numpy(encoder.tail(features[rows, [0] * len(rows)].to(device)).mean(1)) for rows in batches]
    )
