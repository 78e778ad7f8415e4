"""What the captions of photos agree on (``text.consensus``), fitted to a training split in closed form, and the photos and captions that a
search compares with (``tasks.querybank``). Nothing here needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.floor import Ridge
from triptych.evaluate.progress import progress
from triptych.evidence import Floats
from triptych.tasks.matching import Blip2Matching
from triptych.tasks.querybank import Querybank
from triptych.text.consensus import MAX_WORDS, Consensus, QuantizedLinear, unit, with_labels
from triptych.text.vocabulary import split_words

MIN_PHOTOS = 5  # whose captions have a word: rarer ones are left out
BANK_PHOTOS, BANK_CAPTIONS = 400, 2  # of all data sets together; of each photo
# Times the mean variance of the features: without the classifier's labels, and with them (docs/lab-notebook.md).
RIDGE_PENALTY, PENALTY_WITH_LABELS = 0.1, 0.3


class CaptionVectors(NamedTuple):
    """The V words that captions of N photos share, and each photo's mean vector of its captions."""

    words: tuple[str, ...]
    rarity: Floats  # [V]
    photos: Floats  # [N, V]


def fit_consensus(pooled: Floats, photos: Sequence[Photo], classifier: QuantizedLinear | None = None) -> Consensus:
    """A ridge regression from pooled features ``[N, D]``, and the labels that a ``classifier`` gives them, to the mean vector of each
    photo's captions by people.

    Raises InputError: the captions have no word in common.
    """
    return regress(pooled, caption_vectors_of(photos), classifier)


def caption_vectors_of(photos: Sequence[Photo]) -> CaptionVectors:
    """Raises InputError: the captions have no word in common."""
    counts = [Counter(word for caption in photo.captions for word in {*split_words(caption)}) for photo in photos]
    having = Counter(word for count in counts for word in count)
    words = sorted(word for word, n in having.most_common(MAX_WORDS) if n >= MIN_PHOTOS)
    if not words:
        raise InputError(f"no word is in the captions of {MIN_PHOTOS} photos or more: give more photos")
    columns = {word: i for i, word in enumerate(words)}
    rarity = np.array([np.log(len(photos) / having[word]) for word in words], np.float32)
    vectors = np.zeros((len(photos), len(words)), np.float32)
    for row, count in enumerate(counts):
        for word, n in count.items():
            if word in columns:
                vectors[row, columns[word]] = n * rarity[columns[word]]
    return CaptionVectors(tuple(words), rarity, unit(vectors))


def regress(pooled: Floats, captions: CaptionVectors, classifier: QuantizedLinear | None) -> Consensus:
    """Of photos with pooled features ``[N, D]`` and ``captions``."""
    penalty = RIDGE_PENALTY if classifier is None else PENALTY_WITH_LABELS
    ridge = Ridge.fit(with_labels(pooled, classifier), captions.photos, penalty)
    rounded = QuantizedLinear.of(ridge.weight.T, np.zeros(len(captions.words)))
    regression = replace(rounded, bias=(-ridge.mean @ rounded.dense).astype(np.float32))
    return Consensus(captions.words, captions.rarity, captions.photos.mean(0), regression, classifier)


def collect_querybank(model: Blip2Matching, data_sets: Sequence[Sequence[Photo]], consensus: Consensus) -> Querybank:
    """A bank of as many photos from each data set, spread over it."""
    share = max(1, BANK_PHOTOS // len(data_sets))
    photos = [photo for each in data_sets for photo in each[:: max(1, len(each) // share)][:share]]
    captions = [caption for photo in photos for caption in photo.captions[:BANK_CAPTIONS]]
    features = [model.itc_images([photo.image()])[0] for photo in progress(photos, "querybank")]
    pooled = [model.pooled([photo.image()])[0] for photo in photos]
    return Querybank.of(np.stack(features), np.stack(pooled), model.itc_texts(captions), captions, consensus)
