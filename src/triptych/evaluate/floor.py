"""Baselines in closed form: the figures that a photo's pooled features reach without training. A useful model must exceed them.

Retrieval: ridge regression from the encoder's features, pooled over the grid, to sentence vectors of the captions (MiniLM's, the mean over
tokens). Captions: among the captions of the nearest training photos in that space the one that agrees best with the others (the consensus
caption of Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.progress import batches
from triptych.evaluate.retrieval import PHOTOS_TOGETHER, recall
from triptych.evidence import Floats
from triptych.io.images import ImageSource
from triptych.metrics.tokenize import ptb_tokenize
from triptych.text.consensus import unit

NEIGHBOURS = 20
NGRAM_ORDERS = 4  # n-grams of 1 to 4 words
PENALTY = 1.0  # of the ridge regression, times the mean variance of the features

Gram = tuple[str, ...]
Embed = Callable[[Sequence[str]], Floats]


class Pools(Protocol):
    """A model with ``pooled``: the encoder's features of each photo, pooled over the grid, ``[B, D]``."""

    def pooled(self, images: Sequence[ImageSource]) -> Floats: ...


@dataclass(frozen=True)
class Ridge:
    """A linear map from pooled features to sentence vectors: ``(x - mean) @ weight``, for centred vectors."""

    mean: NDArray[np.float64]  # [D]
    weight: NDArray[np.float64]  # [D, E]
    text_mean: NDArray[np.float64]  # [E]

    @classmethod
    def fit(cls, features: Floats, vectors: Floats, penalty: float = PENALTY) -> Ridge:
        """Fit in closed form. ``features [N, D]`` and ``vectors [N, E]`` of the same photos."""
        x, y = features.astype(np.float64), vectors.astype(np.float64)
        mean, text_mean = x.mean(0), y.mean(0)
        x, y = x - mean, y - text_mean
        gram = x.T @ x
        gram[np.diag_indices_from(gram)] += penalty * len(x) * x.var(0).mean()
        return cls(mean, np.linalg.solve(gram, x.T @ y), text_mean)

    def photos(self, features: Floats) -> Floats:
        """Directions of photos in the space of the sentences, ``[N, E]``."""
        return unit((features - self.mean) @ self.weight)

    def texts(self, vectors: Floats) -> Floats:
        return unit(vectors - self.text_mean)


def retrieval_floor(model: Pools, embed: Embed, train: Sequence[Photo], photos: Sequence[Photo]) -> dict[str, float]:
    """``retrieval.recall`` over ``photos`` and their captions, by ridge regression on ``train``."""
    ridge = fit_ridge(embed, pool(model, train), train)
    texts = [caption for photo in photos for caption in photo.captions]
    owners = [i for i, photo in enumerate(photos) for _ in photo.captions]
    cosine = ridge.photos(pool(model, photos)) @ ridge.texts(embed(texts)).T
    return recall(cosine, cosine, owners)


def caption_floor(model: Pools, embed: Embed, train: Sequence[Photo], photos: Sequence[Photo]) -> dict[str, str]:
    """The consensus caption of the nearest training photos for each photo, by its id."""
    features = pool(model, train)
    ridge = fit_ridge(embed, features, train)
    nearness = ridge.photos(pool(model, photos)) @ ridge.photos(features).T
    nearest = np.argsort(-nearness, axis=1, kind="stable")[:, :NEIGHBOURS]
    rarity = Rarity([photo.captions for photo in train])
    return {
        photo.id: consensus([caption for i in row for caption in train[i].captions], rarity)
        for photo, row in zip(photos, nearest.tolist(), strict=True)
    }


class Rarity:
    """The rarity of n-grams among the captions of photos: CIDEr's inverse document frequency."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.photos = len(captions)
        self.counts = Counter(gram for each in captions for gram in {g for text in each for g in ngrams_of(text)})

    def weight(self, gram: Gram) -> float:
        return log(self.photos / max(1, self.counts[gram]))


def consensus(captions: Sequence[str], rarity: Rarity) -> str:
    """The caption with the highest mean similarity to the others: as in CIDEr the cosine of n-gram counts weighted by rarity, the mean
    over n."""
    counts = [Counter(ngrams_of(caption)) for caption in captions]
    similarity = np.zeros((len(captions),) * 2)
    for order in range(1, NGRAM_ORDERS + 1):
        grams = sorted({gram for each in counts for gram in each if len(gram) == order})
        weights = np.array([[each[gram] * rarity.weight(gram) for gram in grams] for each in counts])
        similarity += unit(weights) @ unit(weights).T / NGRAM_ORDERS
    np.fill_diagonal(similarity, 0)
    return captions[int(similarity.sum(1).argmax())]


def ngrams_of(caption: str) -> list[Gram]:
    tokens = ptb_tokenize(caption)
    return [tuple(tokens[i : i + n]) for n in range(1, NGRAM_ORDERS + 1) for i in range(len(tokens) - n + 1)]


def fit_ridge(embed: Embed, features: Floats, train: Sequence[Photo]) -> Ridge:
    """Ridge regression from ``features [N, D]`` to the mean vector of each photo's captions."""
    vectors = embed([caption for photo in train for caption in photo.captions])
    ends = np.cumsum([len(photo.captions) for photo in train])
    means = [part.mean(0) for part in np.split(unit(vectors), ends[:-1])]
    return Ridge.fit(features, np.stack(means).astype(np.float32))


def pool(model: Pools, photos: Sequence[Photo]) -> Floats:
    """The pooled features of photos, ``[N, D]``. Raises InputError: there are no photos."""
    if not photos:
        raise InputError("a floor needs captioned photos of the training split, and there are none: give some")
    parts = [model.pooled([photo.image() for photo in part]) for part in batches(photos, PHOTOS_TOGETHER, "floor")]
    return np.concatenate(parts)
