"""BLEU-1..4: clipped n-gram precision times a brevity penalty (Papineni et al., 2002), as in `pycocoevalcap.bleu`."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.metrics.cider import ORDERS, Tokens, ngrams

GUARD = 1e-9  # the reference implementation's guards against division by zero, part of its figures
TINY = 1e-15


def bleu(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """BLEU-1..4 of the whole set, [4], and of each candidate alone, [len(candidates), 4]; each 0..1.

    The length of the references is that of the closest one, the shorter of two equally close.
    """
    counts = np.array(
        [ngram_matches(candidate, refs) for candidate, refs in zip(candidates, references, strict=True)],
        dtype=np.float64,
    )
    return _score(counts.sum(axis=0)), np.array([_score(row) for row in counts])


def ngram_matches(candidate: Tokens, references: Sequence[Tokens]) -> list[int]:
    """Candidate length, closest reference length, clipped matches of each order, n-grams of each order: 10 numbers."""
    most: Counter[tuple[object, ...]] = Counter()
    for reference in references:
        most |= Counter(ngrams(reference))
    correct = [0] * ORDERS
    for gram, count in Counter(ngrams(candidate)).items():
        correct[len(gram) - 1] += min(count, most[gram])
    length = len(candidate)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return [length, closest, *correct, *(max(0, length - order) for order in range(ORDERS))]


def _score(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    (length, closest), correct, guessed = counts[:2], counts[2 : 2 + ORDERS], counts[2 + ORDERS :]
    means = np.cumprod((correct + TINY) / (guessed + GUARD)) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + TINY) / (closest + GUARD)
    return means * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)
