"""Agreement of the model's probabilities of things (``tasks.probability``) with the nouns of captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.data import Photo
from triptych.data.interleaved import noun_counts
from triptych.errors import InputError
from triptych.evaluate.calibration import expected_calibration_error
from triptych.evaluate.progress import progress
from triptych.tasks import Matches
from triptych.tasks.probability import everyday_words, match_logits, naming_probability, standard_scores
from triptych.tasks.tagging import MATCHED_TAGS

AGREEING = 2  # captions that must name a thing for it to count as present
MOST_NOUNS = 300
WEIGHT_PENALTY = 1e-3  # on the squared weights
STEPS = 50


def naming_metrics(matcher: Matches, photos: Sequence[Photo], at_least: float) -> dict[str, Any]:
    """Precision, recall and calibration of the model's nouns for photos, in percent; and the weights that would fit best.

    The nouns are those of all the photos' captions. For a photo a noun is right if at least ``AGREEING`` of its captions have it, wrong
    if none has it, and left out otherwise. So a thing that the photo shows but no caption names counts as wrong.

    Raises:
        InputError: no noun is in two captions of a photo.
    """
    counts = [noun_counts(photo) for photo in photos]
    totals = Counter(noun for count in counts for noun in count)
    nouns = [noun for noun, _ in totals.most_common(MOST_NOUNS)]
    if not any(n >= AGREEING for count in counts for n in count.values()):
        raise InputError("no noun is in two captions of the same photo: give photos with several captions each")
    texts, everyday = matcher.itc_texts(nouns), matcher.itc_texts(everyday_words())
    scores: list[float] = []
    itm: list[float] = []
    presence: list[float] = []
    right: list[bool] = []
    named = 0
    for photo, count in progress(list(zip(photos, counts, strict=True)), "nouns"):
        image = photo.image()
        (features,) = matcher.itc_images([image])
        standard = standard_scores((features @ texts.T).max(0), (features @ everyday.T).max(0))
        agreed = [count.get(noun, 0) for noun in nouns]
        named += sum(n >= AGREEING for n in agreed)
        expected = matcher.presence_logits([image], nouns)[0]
        attainable = naming_probability(standard, np.ones_like(standard), expected)
        best = [i for i in np.argsort(-attainable)[:MATCHED_TAGS] if agreed[i] == 0 or agreed[i] >= AGREEING]
        scores += standard[best].tolist()
        presence += expected[best].tolist()
        itm += [match.itm_prob for match in matcher.match([image], [nouns[i] for i in best])]
        right += [agreed[i] >= AGREEING for i in best]
    inputs = np.array(scores), np.array(itm), np.array(presence)
    marks, probabilities = np.array(right), naming_probability(*inputs)
    chosen, known = probabilities >= at_least, ~np.isnan(inputs[2])
    fitted = np.stack([inputs[0], match_logits(inputs[1]), np.where(known, inputs[2], 0)], 1)
    return {
        "nouns": len(nouns),
        "at least": at_least,
        "tags a photo": round(float(chosen.sum()) / len(photos), 2),
        "precision": round(100 * float(marks[chosen].mean()), 1) if chosen.any() else None,
        "recall": round(100 * float(marks[chosen].sum()) / max(1, named), 1),
        "calibration error": expected_calibration_error(probabilities.tolist(), marks.astype(float).tolist()),
        "weights that fit": weights_that_fit(fitted[known], marks[known]),
        "weights that fit without presence": weights_that_fit(fitted[:, :2], marks),
    }


def weights_that_fit(inputs: NDArray[np.float64], right: NDArray[np.bool_]) -> list[float]:
    return [round(float(weight), 3) for weight in logistic_weights(inputs, right)]


def logistic_weights(inputs: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logistic regression by Newton's method: ``inputs [N, F]`` -> F weights and a bias."""
    columns = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    weights = np.zeros(columns.shape[1])
    for _ in range(STEPS):
        likely = 1 / (1 + np.exp(-columns @ weights))
        slope = columns.T @ (likely - right) + WEIGHT_PENALTY * weights
        curvature = (columns * (likely * (1 - likely))[:, None]).T @ columns + WEIGHT_PENALTY * np.eye(len(weights))
        weights -= np.linalg.solve(curvature, slope)
    return weights
