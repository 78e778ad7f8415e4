"""The probability that people would name something in a photo, from BLIP-2's contrast (ITC) and matching (ITM) and ``text.consensus``.

A cosine means little by itself: some photos are close to every text. So it is standardised against the cosines of the same photo
with nouns of everyday photos (``everyday.txt``). The probability is a logistic function of that score, of ITM's logit and, where the
consensus knows the thing, of the logit of its presence (Platt 1999).

The weights were fitted with `blip2` on validation photos of Flickr8k and COCO (``eval tags``): a noun counts as right if two of a photo's
captions have it, as wrong if none has. As captions leave much unsaid, the probabilities are low ones.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError
from triptych.evidence import Floats


class NamingWeights(NamedTuple):
    """The weights of what ``naming_probability`` adds up."""

    cosine: float
    match: float
    presence: float
    bias: float


NAMED_WITH_PRESENCE = NamingWeights(0.74, 0.15, 0.87, -1.67)
NAMED_WITHOUT_PRESENCE = NamingWeights(1.3, 0.3, 0.0, -4.2)
MOST_LOGIT = 8.0  # of matching: beyond it, a probability in 32 bits says little


@cache
def everyday_words() -> tuple[str, ...]:
    """Nouns of everyday photos."""
    text = (files("triptych.tasks") / "everyday.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def standard_scores(cosines: Floats, background: Floats) -> Floats:
    """``cosines [..., T]`` of a photo with texts as standard scores of those with the everyday words, ``background [..., V]``."""
    spread = background.std(-1, keepdims=True) + 1e-6
    scores: Floats = (cosines - background.mean(-1, keepdims=True)) / spread
    return scores


def match_logits(itm_prob: NDArray[Any]) -> NDArray[np.float64]:
    """Logits of matching, at most ``MOST_LOGIT`` from zero."""
    likely = np.clip(np.asarray(itm_prob, np.float64), 1e-12, 1 - 1e-12)
    return np.clip(np.log(likely) - np.log1p(-likely), -MOST_LOGIT, MOST_LOGIT)


def naming_probability(scores: Floats, itm_prob: NDArray[Any], presence: Floats) -> NDArray[np.float64]:
    """The probability that people would name it, for standard scores, ITM's probabilities and logits of presence (NaN = unknown) of one
    shape."""
    match, known = match_logits(itm_prob), ~np.isnan(presence)
    logits = [
        weights.cosine * scores + weights.match * match + weights.presence * np.where(known, presence, 0) + weights.bias
        for weights in (NAMED_WITHOUT_PRESENCE, NAMED_WITH_PRESENCE)
    ]
    return np.asarray(1 / (1 + np.exp(-np.where(known, logits[1], logits[0]))))


def check_probability(value: float) -> None:
    """Raises InputError: it is no probability below 1."""
    if not 0 <= value < 1:
        raise InputError(f"at_least is {value}: give a probability from 0 to below 1")
