"""Calibration: how well probabilities agree with accuracy."""

from collections.abc import Sequence
from math import exp

import numpy as np

from triptych.tasks import Answer

BINS = 10


def sureness(answer: Answer) -> float:
    """The probability of an answer."""
    return exp(min(0.0, answer.logprob))


def expected_calibration_error(probabilities: Sequence[float], right: Sequence[float]) -> float:
    """The mean gap between confidence and accuracy, in percent (Guo et al. 2017, eq. 3).

    ``probabilities``: that of each answer, 0 to 1, sorted into ten bins of equal width; ``right``: its mark, 0 to 1.
    """
    sure, marks = np.asarray(probabilities, float), np.asarray(right, float)
    if not len(sure):
        return 0.0
    which = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = (abs(sure[which == b].mean() - marks[which == b].mean()) * (which == b).mean() for b in np.unique(which))
    return round(100 * float(sum(gaps)), 1)
