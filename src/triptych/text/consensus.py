"""What the captions of a photo agree on, and how much of it a caption says.

A ridge regression maps a photo's pooled features, and the labels that the image encoder's own classifier gives it, to the words of its
captions, each weighed by its rarity as in CIDEr. Of several captions that a model wrote, the one whose own words point the same way as the
expected ones agrees best with people: consensus re-ranking (Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image
Captioning") in closed form. Fitted by ``train.consensus``; used by ``tasks.reranking``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.io.arrays import array_bytes, read_arrays
from triptych.text.vocabulary import number_forms, split_words

FILE = "consensus.npz"  # in a checkpoint
CLASSIFIER = "classifier_"  # before those of the classifier
MAX_WORDS = 50_000
REMEMBERED_RESULTS, REMEMBERED_PHOTOS = 32, 8  # results of ``Consensus.expected``, and photos of one
LABEL_SCALE = 8.0  # of the labels beside the features, whose spread is near 1
LEAST_PRESENCE = 0.003  # probability; its logit bounds how much a consensus says
KINDS_OF = {
    general: tuple(kinds.split())
    for general, kinds in {
        "person": "person people man men woman women boy girl child children kid player",
        "people": "person people man men woman women boy girl child children kid player",
        "animal": "animal dog cat horse cow sheep bird elephant giraffe zebra bear",
        "animals": "animal dog cat horse cow sheep bird elephant giraffe zebra bear",
        "child": "child children kid boy girl baby",
        "children": "child children kid boy girl baby",
        "vehicle": "vehicle car truck bus train motorcycle bike boat airplane",
        "bicycle": "bicycle bike",
        "motorbike": "motorbike motorcycle",
        "sofa": "sofa couch",
        "tv": "tv television",
    }.items()
}
"""What captions call a thing that a question names more generally, or by another word."""


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear map from D to N numbers whose weight is stored as 8-bit integers with a scale for each row."""

    weight: NDArray[np.int8]  # [N, D]
    scale: Floats  # [N]
    bias: Floats  # [N]

    def __post_init__(self) -> None:
        """Raises InputError: the arrays do not fit together."""
        rows = self.weight.shape[:1]
        if self.weight.ndim != 2 or (self.scale.shape, self.bias.shape) != (rows, rows):
            shapes = [self.weight.shape, self.scale.shape, self.bias.shape]
            raise InputError(f"a consensus with arrays {shapes} does not fit")
        vectors = (self.scale, self.bias)
        if self.weight.dtype != np.int8 or any(x.dtype != np.float32 or not np.isfinite(x).all() for x in vectors):
            raise InputError(
                "a consensus has int8 weights and finite float32 vectors; fit this one anew with triptych train consensus"
            )

    @classmethod
    def of(cls, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> QuantizedLinear:
        """``weight [N, D]`` rounded; ``bias [N]``."""
        scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12) / 127
        rounded = np.round(weight / scale).astype(np.int8)
        return cls(rounded, scale[:, 0].astype(np.float32), bias.astype(np.float32))

    @classmethod
    def from_arrays(cls, stored: Mapping[str, NDArray[Any]], prefix: str) -> QuantizedLinear:
        """Of the arrays whose names begin with ``prefix``."""
        return cls(*(stored[f"{prefix}{field.name}"] for field in fields(cls)))

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Its arrays by name, each name behind ``prefix``."""
        return {f"{prefix}{field.name}": getattr(self, field.name) for field in fields(self)}

    @cached_property
    def dense(self) -> Floats:
        """The weight in fp32, ``[D, N]``: kept, because it is needed for every photo."""
        return np.ascontiguousarray((self.weight * self.scale[:, None]).T)

    def __call__(self, x: Floats) -> Floats:
        return x.astype(np.float32) @ self.dense + self.bias


@dataclass(frozen=True)
class Consensus:
    """D pooled features, V words, C classes of the image encoder's own classifier (0: it is not used)."""

    words: tuple[str, ...]
    rarity: Floats  # [V] log of (photos / photos whose captions have the word)
    mean: Floats  # [V] of the vectors of captions
    regression: QuantizedLinear  # [V, D + C]
    classifier: QuantizedLinear | None = None  # [C, D]

    def __post_init__(self) -> None:
        """Raises InputError: the arrays do not fit together."""
        words, (rows, columns) = len(self.words), self.regression.weight.shape
        vectors = (self.rarity, self.mean)
        if not 0 < words <= MAX_WORDS or {rows, *(len(x) for x in vectors if x.ndim == 1)} != {words}:
            raise InputError(
                f"a consensus of {words} words with arrays of {rows} and {[x.shape for x in vectors]} does not fit"
            )
        if any(x.shape != (words,) or x.dtype != np.float32 or not np.isfinite(x).all() for x in vectors):
            raise InputError("a consensus has finite float32 vectors; fit this one anew with triptych train consensus")
        if self.classifier is not None and sum(self.classifier.weight.shape) != columns:
            raise InputError(
                f"a consensus with {columns} features and a classifier {self.classifier.weight.shape} does not fit"
            )

    @cached_property
    def columns(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def regressed(self, pooled: Floats) -> Floats:
        """Photos ``[B, D]`` -> the mean vectors of their captions ``[B, V]`` by least squares, around the mean caption."""
        return self.regression(with_labels(pooled, self.classifier))

    def expected(self, pooled: Floats) -> Floats:
        """Photos ``[B, D]`` -> the directions of the captions to expect ``[B, V]``, of length 1 around the mean caption; read-only.

        The last results for few photos are remembered: the search for words and the choice among beams both need them.
        """
        if len(pooled) > REMEMBERED_PHOTOS:
            return unit(self.regressed(pooled))
        return self._directions(pooled.astype(np.float32).tobytes(), len(pooled))

    @cached_property
    def _directions(self) -> Callable[[bytes, int], Floats]:
        """``expected`` of photos ``[B, D]``, given as bytes and B."""

        @lru_cache(REMEMBERED_RESULTS)
        def directions(pooled: bytes, photos: int) -> Floats:
            expected = unit(self.regressed(np.frombuffer(pooled, np.float32).reshape(photos, -1)))
            expected.setflags(write=False)
            return expected

        return directions

    def expected_words(self, pooled: Floats) -> Floats:
        """How much each word adds to the agreement of a caption with a photo ``[B, D]``, but for the caption's length: ``[B, V]``."""
        return self.rarity * self.expected(pooled)

    def vectors(self, captions: Sequence[str]) -> Floats:
        """The directions of captions ``[K, V]``, of length 1 around the mean caption; 0 of those without a word that is known."""
        vectors = caption_vectors(captions, self.columns, self.rarity)
        return unit(np.where(vectors.any(1, keepdims=True), vectors - self.mean, 0))

    def presence_logits(self, pooled: Floats, names: Sequence[str]) -> Floats:
        """The logit of the probability that captions of each photo ``[B, D]`` name each of K things, by least squares: ``[B, K]``; NaN
        where a word of the name is unknown.

        Captions name a kind of the thing just as well (``KINDS_OF``). Of several words the least likely counts.
        """
        expected = self.regressed(pooled)
        share = np.exp(-self.rarity)  # of photos whose captions have the word
        present = np.clip(share * (1 + expected / np.maximum(self.mean, 1e-9)), 0, 1)
        probabilities = np.full((len(pooled), len(names)), np.nan, np.float32)
        for column, name in enumerate(names):
            kinds = [[self.forms(kind) for kind in KINDS_OF.get(word, (word,))] for word in split_words(name)]
            known = [[forms for forms in each if forms] for each in kinds]
            if known and all(known):
                absent = [np.prod([1 - present[:, forms].max(1) for forms in each], 0) for each in known]
                probabilities[:, column] = 1 - np.max(absent, 0)
        bounded = np.clip(probabilities, LEAST_PRESENCE, 1 - LEAST_PRESENCE)
        return np.asarray(np.log(bounded / (1 - bounded)), np.float32)

    def forms(self, word: str) -> list[int]:
        """The columns of a word, its singular and its plural, as far as they are known."""
        return [self.columns[form] for form in number_forms(word) if form in self.columns]

    def agreement(self, pooled: Floats, captions: Sequence[str]) -> Floats:
        """The cosine of each photo ``[B, D]`` with each caption: ``[B, K]``."""
        return self.expected(pooled) @ self.vectors(captions).T

    def to_bytes(self) -> bytes:
        """As ``read_consensus`` reads it."""
        arrays: dict[str, Any] = {"words": np.array(self.words), "rarity": self.rarity, "mean": self.mean}
        arrays |= self.regression.arrays("")
        return array_bytes(arrays | (self.classifier.arrays(CLASSIFIER) if self.classifier else {}))

    @classmethod
    def from_arrays(cls, stored: Mapping[str, NDArray[Any]]) -> Consensus:
        """As ``to_bytes`` writes them. Raises KeyError: an array is missing. Raises InputError: they do not fit together."""
        classifier = QuantizedLinear.from_arrays(stored, CLASSIFIER) if f"{CLASSIFIER}weight" in stored else None
        words, regression = tuple(map(str, stored["words"].tolist())), QuantizedLinear.from_arrays(stored, "")
        return cls(words, stored["rarity"], stored["mean"], regression, classifier)


def with_labels(pooled: Floats, classifier: QuantizedLinear | None) -> Floats:
    """Pooled features ``[B, D]``, and behind them the roots of the classifier's probabilities, ``LABEL_SCALE`` times: ``[B, D + C]``."""
    if classifier is None:
        return pooled
    logits = classifier(pooled)
    roots = np.exp((logits - logits.max(-1, keepdims=True)) / 2)
    return np.concatenate([pooled, LABEL_SCALE * unit(roots)], -1)


def tokens_of_words(
    columns: Mapping[str, int], word_token: Callable[[str], int | None]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens that are one of the words, and the words' columns: ``[N]`` each. ``word_token``: a word -> its token, None = it has no
    single one."""
    tokens = {column: word_token(word) for word, column in columns.items()}
    known = {token: column for column, token in tokens.items() if token is not None}
    return np.array([*known], np.int64), np.array([*known.values()], np.int64)


def read_consensus(path: Path) -> Consensus:
    """Raises InputError: it cannot be read, or is no consensus."""
    return read_arrays(path, Consensus.from_arrays)


def caption_vectors(captions: Iterable[str], columns: dict[str, int], rarity: Floats) -> Floats:
    """Which words each caption has, by their rarity: ``[K, V]``, of length 1."""
    texts = [set(split_words(caption)) for caption in captions]
    vectors = np.zeros((len(texts), len(columns)), np.float32)
    for row, words in enumerate(texts):
        here = [columns[word] for word in words if word in columns]
        vectors[row, here] = rarity[here]
    return unit(vectors)


def unit(x: NDArray[np.floating]) -> Floats:
    """Rows of length 1."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9), np.float32)
