"""Contrast that learns what a consensus of other photos does not know (``train.cross_fitting``): as in use, the agreement of photo and
caption stands beside the cosine from the start, and only what is left is to be learnt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from triptych.evidence import Floats
from triptych.models import Blip2Model
from triptych.models.encoders import published_classifier
from triptych.train.blip2.batches import Agreement
from triptych.train.crops import cells_of
from triptych.train.cross_fitting import ExpectedCaptions, cross_fit, pooled_features
from triptych.train.data import PhotoSet, TrainingData


def expected_captions(blip2: Blip2Model, data: TrainingData) -> ExpectedCaptions:
    """Raises InputError: the captions have no word in common."""
    pooled = pooled_features(data, lambda features: cells_of(features).mean(1))
    return cross_fit(pooled, data, published_classifier(blip2.model.vision_encoder.name))


def training_agreement(expected: ExpectedCaptions, rows: Sequence[int], captions: Sequence[str]) -> Agreement:
    """Of training photos, by their numbers, with the ``captions`` of a batch."""
    directions = expected.directions[list(rows)]
    return Agreement(torch.from_numpy(directions), torch.from_numpy(expected.consensus.vectors(captions)))


def validation_agreement(expected: ExpectedCaptions, data: PhotoSet, photos: int) -> Floats:
    """Of the first ``photos`` of a validation set with all their captions: ``[P, K]``."""
    captions = [caption for photo in data.photos[:photos] for caption in photo.captions]
    return expected.of_set(data)[:photos] @ expected.consensus.vectors(captions).T
