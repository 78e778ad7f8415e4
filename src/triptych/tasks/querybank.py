"""Querybank normalisation (Bogolin et al. 2022, "Cross Modal Retrieval with Querybank Normalisation").

Some photos are close to almost every text, and some texts to almost every photo; they would crowd out the right ones. So a search takes off
a part of how close a photo is to the texts of a bank, and a text to its photos. The bank is a few hundred captioned training photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.io.arrays import array_bytes, read_arrays
from triptych.text.consensus import Consensus, unit
from triptych.text.vocabulary import split_words

QUERYBANK_FILE = "querybank.npz"  # in a checkpoint
MAX_ITEMS = 10_000
SHARPNESS = 10.0  # of the soft maximum over the bank: by the closest items more than by the mean
OFFSET_WEIGHT = 0.4  # of the similarity that is taken off


@dataclass(frozen=True)
class Querybank:
    """N photos with Q queries each, M captions; E features for contrast, D pooled features. Unit vectors are stored as 8-bit integers."""

    photos: NDArray[np.int8]  # [N, Q, E]
    pooled: NDArray[np.float16]  # [N, D]
    texts: NDArray[np.int8]  # [M, E]
    words: NDArray[np.int32]  # the known words of all captions in order, by their columns in the consensus
    ends: NDArray[np.int32]  # [M]: where each caption ends in ``words``

    def __post_init__(self) -> None:
        """Raises InputError: the arrays do not fit together."""
        shapes = [getattr(self, field.name).shape for field in fields(self)]
        if [len(shape) for shape in shapes] != [3, 2, 2, 1, 1] or not 0 < max(shapes[0][0], shapes[2][0]) <= MAX_ITEMS:
            raise InputError(f"a querybank with arrays {shapes} does not fit")
        if (shapes[0][0], shapes[0][2], shapes[4][0]) != (shapes[1][0], shapes[2][1], shapes[2][0]):
            raise InputError(f"a querybank with arrays {shapes} does not fit")
        starts = np.concatenate([[0], self.ends])
        if self.photos.dtype != np.int8 or self.texts.dtype != np.int8 or not np.isfinite(self.pooled).all():
            raise InputError(
                "a querybank has int8 and finite features; fit this one anew with triptych train consensus"
            )
        if (np.diff(starts) < 0).any() or starts[-1] != len(self.words) or (self.words < 0).any():
            raise InputError(
                "the ends of a querybank's captions do not rise; fit it anew with triptych train consensus"
            )

    @classmethod
    def of(
        cls, photos: Floats, pooled: Floats, texts: Floats, captions: Sequence[str], consensus: Consensus
    ) -> Querybank:
        """Of photos ``[N, Q, E]`` and ``[N, D]``, and ``captions`` whose features are ``texts [M, E]``."""
        columns = consensus.columns
        known = [sorted({columns[word] for word in split_words(caption) if word in columns}) for caption in captions]
        words = np.array([column for row in known for column in row], np.int32)
        ends = np.cumsum([len(row) for row in known]).astype(np.int32)
        return cls(to_int8(photos), pooled.astype(np.float16), to_int8(texts), words, ends)

    @cached_property
    def photo_features(self) -> Floats:
        return self.photos.astype(np.float32) / np.float32(127)

    @cached_property
    def text_features(self) -> Floats:
        return self.texts.astype(np.float32) / np.float32(127)

    def directions(self, consensus: Consensus) -> Floats:
        """The directions of the bank's captions, as ``Consensus.vectors``: ``[M, V]``."""
        vectors = np.zeros((len(self.ends), len(consensus.words)), np.float32)
        for row, columns in enumerate(np.split(self.words, self.ends[:-1])):
            vectors[row, columns] = consensus.rarity[columns]
        return unit(np.where(vectors.any(1, keepdims=True), unit(vectors) - consensus.mean, 0))

    def to_bytes(self) -> bytes:
        """As ``read_querybank`` reads it."""
        return array_bytes({field.name: getattr(self, field.name) for field in fields(self)})


class Offsets:
    """What a search takes off the similarity (cosine of contrast and agreement) of photos and texts."""

    def __init__(self, bank: Querybank, consensus: Consensus) -> None:
        self.bank = bank
        if bank.words.max(initial=-1) >= len(consensus.words):
            raise InputError(
                "the querybank has words that the consensus lacks: fit both anew with triptych train consensus"
            )
        self.photo_directions = consensus.expected(bank.pooled.astype(np.float32))
        self.text_directions = bank.directions(consensus)

    def of_photos(self, features: Floats, directions: Floats) -> Floats:
        """Of photos with ``features [B, Q, E]`` for contrast and ``directions [B, V]`` of the captions to expect: ``[B]``."""
        cosines = (features @ self.bank.text_features.T).max(1)
        return offsets(cosines + directions @ self.text_directions.T)

    def of_texts(self, features: Floats, directions: Floats) -> Floats:
        """Of texts with ``features [K, E]`` for contrast and ``directions [K, V]`` (``Consensus.vectors``): ``[K]``."""
        cosines = features @ self.bank.photo_features.reshape(-1, features.shape[1]).T
        closest = cosines.reshape(len(features), *self.bank.photos.shape[:2]).max(2)
        return offsets(closest + directions @ self.photo_directions.T)


def offsets(similarity: Floats) -> Floats:
    """A soft maximum of ``similarity [..., items]`` over the items of the bank, ``OFFSET_WEIGHT`` times."""
    return np.asarray(OFFSET_WEIGHT * np.log(np.exp(SHARPNESS * similarity).mean(-1)) / SHARPNESS, np.float32)


def to_int8(unit_vectors: Floats) -> NDArray[np.int8]:
    return np.round(127 * unit_vectors).astype(np.int8)


def read_querybank(path: Path) -> Querybank:
    """Raises InputError: it cannot be read, or is no querybank."""
    return read_arrays(path, lambda stored: Querybank(*(stored[field.name] for field in fields(Querybank))))
