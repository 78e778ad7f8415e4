"""CIDEr-D: how much a caption agrees with its references, weighing n-grams by how rare they are in the corpus.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (2015), section 5. It gives the
figures of `pycocoevalcap.cider`, quickly enough to be the reward of self-critical training.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from triptych.errors import InputError

ORDERS = 4
SIGMA = 6.0

Tokens = Sequence[Hashable]
Ngram = tuple[Hashable, ...]


class Vector(NamedTuple):
    """One caption: TF-IDF weights and their Euclidean norm for each n-gram order, and its number of tokens."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


class CiderD:
    """Scores captions against references, with the document frequencies of a whole corpus of references.

    `references[i]` holds the tokenized references of item i (a photo). A token is anything hashable: words or ids.
    A score is a float from 0 to 10, by convention printed as it is (1.0) or as a percentage (100).
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        if not references:
            raise InputError("CIDEr-D needs the references of at least one photo")
        self.references = references
        frequency = Counter(chain.from_iterable(set(chain.from_iterable(map(ngrams, refs))) for refs in references))
        self.rarest = math.log(len(references))  # the weight of an n-gram in one document, or in none
        self.idf = {gram: self.rarest - math.log(count) for gram, count in frequency.items() if count > 1}

    def score(
        self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]] | None = None
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Score of each candidate against the references at the same place, [len(candidates)]; the corpus by default.

        The score of the whole set is the mean. Raises InputError where the counts differ or a photo has no reference.
        """
        references = self.references if references is None else references
        if len(candidates) != len(references):
            raise InputError(f"{len(candidates)} candidates for the references of {len(references)} photos")
        return np.array(
            [
                self._mean_similarity(candidate, self._vectors(refs))
                for candidate, refs in zip(candidates, references, strict=True)
            ]
        )

    def score_items(
        self, candidates: Sequence[Tokens], items: Sequence[int]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Score of each candidate against item `items[k]` of the corpus, [len(candidates)].

        An item may come many times (several samples of one photo); its references are weighed once.
        """
        if len(candidates) != len(items):
            raise InputError(f"{len(candidates)} candidates for {len(items)} items")
        references = {item: self._vectors(self.references[item]) for item in set(items)}
        return np.array(
            [
                self._mean_similarity(candidate, references[item])
                for candidate, item in zip(candidates, items, strict=True)
            ]
        )

    def _vectors(self, captions: Sequence[Tokens]) -> list[Vector]:
        if not captions:
            raise InputError("CIDEr-D needs at least one reference for each photo")
        return [self._vector(caption) for caption in captions]

    def _vector(self, tokens: Tokens) -> Vector:
        weights: list[dict[Ngram, float]] = [{} for _ in range(ORDERS)]
        for gram, count in Counter(ngrams(tokens)).items():
            weights[len(gram) - 1][gram] = count * self.idf.get(gram, self.rarest)
        return Vector(weights, [math.hypot(*w.values()) for w in weights], len(tokens))

    def _mean_similarity(self, candidate: Tokens, references: Sequence[Vector]) -> float:
        vector = self._vector(candidate)
        return 10 * sum(similarity(vector, reference) for reference in references) / len(references)


def check_tokens(tokens: Tokens) -> None:
    """Raises InputError for a text, whose tokens would be its letters."""
    if isinstance(tokens, str):
        raise InputError(f"expected a list of tokens, found the text {tokens!r:.40}: split it with ptb_tokenize")


def ngrams(tokens: Tokens) -> list[Ngram]:
    """All n-grams of one to four tokens, repeats included. Raises InputError for a text that was not split into tokens."""
    check_tokens(tokens)
    return [tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1)]


def similarity(candidate: Vector, reference: Vector) -> float:
    """CIDEr-D of one candidate and one reference, 0..1: mean over the orders, less if lengths differ."""
    total = 0.0
    for mine, theirs, my_norm, their_norm in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        dot = 0.0
        for gram, weight in mine.items():
            if gram in theirs:
                other = theirs[gram]
                dot += (weight if weight < other else other) * other
        if dot:
            total += dot / (my_norm * their_norm)
    # The reference implementation counts bigrams for the length, so an empty caption is as long as a single word.
    delta = max(candidate.length, 1) - max(reference.length, 1)
    return total / ORDERS * math.exp(-(delta**2) / (2 * SIGMA**2))
