"""What a model answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.evidence import Evidence


@dataclass(frozen=True)
class Answer:
    """A produced text. ``logprob`` is of the whole text with its end; ``tokens`` are its words, each with its log-probability.

    ``scores``: of a question with choices, the log-probability of each; ``text`` is the likeliest.
    """

    text: str
    model: str
    logprob: float
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    evidence: Evidence | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Match:
    """How well a photo and a text fit. ``image``, ``text``: their places in what was given.

    ``itc_cosine``: of the best query, -1 to 1. ``itc_scaled``: over the temperature. ``itm_prob``: that they match, 0 to 1.
    ``rerank``: logit of a match + cosine, what retrieval sorts by. ``evidence``: for each word of the text where the photo was looked at.
    """

    image: int
    text: int
    itc_cosine: float
    itc_scaled: float
    itm_prob: float
    rerank: float
    evidence: Evidence | None = None
