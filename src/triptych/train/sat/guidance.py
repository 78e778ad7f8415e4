"""Guidance in self-critical training: to the log-probability of a word is added what a consensus (``text.consensus``) expects of it, as in
use, so that the model learns what the consensus does not know.

A consensus expects more of the photos it was fitted to than of new ones. So the training photos form ``FOLDS`` parts, and each part is
guided by a consensus of the others (cross-fitting). All are fitted to the features of the model that the run starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.generate import Guidance
from triptych.io.files import write_file
from triptych.logits import to_numpy
from triptych.models import SatModel
from triptych.models.encoders import published_classifier
from triptych.text.consensus import Consensus, tokens_of_words
from triptych.text.vocabulary import WordVocabulary
from triptych.train.consensus import fit_consensus
from triptych.train.data import PhotoSet, TrainingData
from triptych.train.features import Features

FOLDS = 4
POOLED_FILE = "pooled.npy"  # in the run's folder: pooled features of all training photos, then of all validation photos
BATCH = 64


class ExpectedWords:
    """What consensuses expect of photos' words. ``pooled [N, D]``: of the P training photos, then of others."""

    def __init__(
        self, vocabulary: WordVocabulary, consensuses: Sequence[Consensus], pooled: Floats, training: int, weight: float
    ) -> None:
        """``consensuses``: the i-th one has not been fitted to the training photos i, i + FOLDS, ..."""
        self.words, self.consensuses, self.pooled = len(vocabulary), consensuses, pooled
        self.training, self.weight = training, weight
        self.tokens = [tokens_of_words(consensus.columns, vocabulary.word_token) for consensus in consensuses]

    def guidance(self, rows: Sequence[int]) -> Guidance:
        """Of photos by their number: training photos from 0 on, then the others."""
        weights = np.zeros((len(rows), self.words), np.float32)
        folds = [row % FOLDS if row < self.training else 0 for row in rows]
        for fold in {*folds}:
            places = [place for place, own in enumerate(folds) if own == fold]
            tokens, columns = self.tokens[fold]
            expected = self.consensuses[fold].expected_words(self.pooled[[rows[place] for place in places]])
            weights[np.array(places)[:, None], tokens] = self.weight * expected[:, columns]
        return Guidance(np.arange(self.words), weights)

    def of_set(self, sets: Sequence[PhotoSet], photos: PhotoSet) -> range:
        """The numbers of the photos of one of ``sets``, which lie behind the training photos in this order."""
        place = next(i for i, each in enumerate(sets) if each is photos)
        first = self.training + sum(len(each.photos) for each in sets[:place])
        return range(first, first + len(photos.photos))


def expected_words(sat: SatModel, data: TrainingData, run: Path, weight: float, new: bool) -> ExpectedWords:
    """Fitted to the features of ``sat``, which are kept in ``run``: a run that is resumed (not ``new``) has the same guidance.

    Raises InputError: the features in ``run`` are missing, or of other photos.
    """
    sets = [each.features for each in (*data.train, *data.validation)]
    if new:
        pooled = np.concatenate([pooled_features(sat, each) for each in sets])
        write_file(run / POOLED_FILE, lambda file: np.save(file, pooled))
    else:
        pooled = read_pooled(run / POOLED_FILE, sum(map(len, sets)))
    classifier = published_classifier(sat.model.encoder.name)
    photos = data.photos
    consensuses = []
    for fold in range(FOLDS):
        others = [row for row in range(len(photos)) if row % FOLDS != fold]
        consensuses.append(fit_consensus(pooled[others], [photos[row] for row in others], classifier))
    return ExpectedWords(sat.vocabulary, consensuses, pooled, len(photos), weight)


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
