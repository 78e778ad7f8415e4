"""ROUGE-L: the longest common subsequence of a caption and its references (Lin, 2004), as in `pycocoevalcap`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.metrics.cider import Tokens, check_tokens

BETA = 1.2  # recall weighs more than precision


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> NDArray[np.float64]:
    """ROUGE-L of each candidate, [len(candidates)], 0..1; the score of the whole set is the mean.

    F-measure of the best precision and the best recall over the references, which may be of two different ones.
    """
    return np.array([_score(candidate, refs) for candidate, refs in zip(candidates, references, strict=True)])


def _score(candidate: Tokens, references: Sequence[Tokens]) -> float:
    for tokens in (candidate, *references):
        check_tokens(tokens)
    common = [longest_common_subsequence(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True) if reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    """Length of the longest sequence of tokens that both have in this order, gaps allowed."""
    row = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if token == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]
