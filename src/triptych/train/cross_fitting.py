"""What consensuses (``text.consensus``) expect of the captions of training photos, so that a model learns what they do not know.

A consensus expects more of the photos it was fitted to than of new ones. So the training photos form ``FOLDS`` parts, and a consensus of
the other parts speaks for each (cross-fitting); one of all training photos speaks for those of validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.evidence import Floats
from triptych.generate import Guidance
from triptych.logits import to_numpy
from triptych.text.consensus import Consensus, QuantizedLinear, tokens_of_words
from triptych.train.consensus import caption_vectors_of, regress
from triptych.train.data import PhotoSet, TrainingData

FOLDS = 4
POOLED_TOGETHER = 64  # photos


@dataclass(frozen=True)
class ExpectedCaptions:
    """``consensus``: of all training photos, with V words; ``directions [N, V]``: of the captions to expect of each photo, first the
    training photos, then those of each validation set."""

    consensus: Consensus
    directions: Floats
    data: TrainingData

    def of_set(self, photos: PhotoSet) -> Floats:
        """The directions of one of the validation sets."""
        place = next(i for i, each in enumerate(self.data.validation) if each is photos)
        first = len(self.data.photos) + sum(len(each.photos) for each in self.data.validation[:place])
        return self.directions[first : first + len(photos.photos)]


class ExpectedWords:
    """What is expected of the words that a model writes, ``weight`` times: guidance, as in use (``tasks.reranking``)."""

    def __init__(self, expected: ExpectedCaptions, word_token: Callable[[str], int | None], weight: float) -> None:
        """``word_token``: a word -> the model's token, None = it has no single one."""
        self.expected = expected
        self.tokens, self.columns = tokens_of_words(expected.consensus.columns, word_token)
        self.scale = weight * expected.consensus.rarity[self.columns]

    def guidance(self, directions: Floats) -> Guidance:
        """Of photos whose captions have these ``directions [B, V]``."""
        return Guidance(self.tokens, self.scale * directions[:, self.columns])

    def of_training_photos(self, rows: Sequence[int]) -> Guidance:
        return self.guidance(self.expected.directions[list(rows)])

    def of_validation_photos(self, photos: PhotoSet, count: int) -> Guidance:
        """Of the first ``count`` of a set."""
        return self.guidance(self.expected.of_set(photos)[:count])


def cross_fit(pooled: Floats, data: TrainingData, classifier: QuantizedLinear | None) -> ExpectedCaptions:
    """``pooled [N, D]``: features of all training photos, then of all validation photos.

    Raises InputError: the captions have no word in common.
    """
    photos = data.photos
    captions = caption_vectors_of(photos)
    training, validation = pooled[: len(photos)], pooled[len(photos) :]
    directions = np.empty((len(pooled), len(captions.words)), np.float32)
    part = np.arange(len(photos)) % FOLDS
    for fold in range(FOLDS):
        others = captions._replace(photos=captions.photos[part != fold])
        consensus = regress(training[part != fold], others, classifier)
        directions[: len(photos)][part == fold] = consensus.expected(training[part == fold])
    whole = regress(training, captions, classifier)
    directions[len(photos) :] = whole.expected(validation)
    return ExpectedCaptions(whole, directions, data)


@torch.inference_mode()
def pooled_features(data: TrainingData, pool: Callable[[Tensor], Tensor]) -> Floats:
    """As ``cross_fit`` takes them. ``pool``: what the encoder's trunk gives of B photos -> ``[B, D]``."""
    pooled = []
    for features in (each.features for each in (*data.train, *data.validation)):
        parts = (
            range(first, min(first + POOLED_TOGETHER, len(features)))
            for first in range(0, len(features), POOLED_TOGETHER)
        )
        pooled += [to_numpy(pool(features[rows, [0] * len(rows)])) for rows in parts]
    return np.concatenate(pooled)
