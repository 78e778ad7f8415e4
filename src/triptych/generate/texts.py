"""Texts that are written token by token, with the log-probability of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from triptych.logits import Likeliest

Texts = Sequence[Sequence[int]]  # the tokens of each


class Token(NamedTuple):
    """``guidance``: what was added to ``logprob`` in the comparison; ``likeliest``: the model's ``Search.top_logprobs`` most likely tokens
    at this position, before ``restrict``; None = not recorded."""

    id: int
    logprob: float
    likeliest: Likeliest | None = None
    guidance: float = 0.0


@dataclass(frozen=True)
class Hypothesis:
    """One generated text: ``ids`` without the end token; ``logprobs`` of each id, then of the end token if it was reached;
    ``likeliest``: ``Token.likeliest`` of each id, if recorded; ``guidance``: the sum of what its tokens got added."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    likeliest: tuple[Likeliest, ...] = ()
    guidance: float = 0.0

    @property
    def logprob(self) -> float:
        return sum(self.logprobs)

    def score(self, length_penalty: float) -> float:
        return (self.logprob + self.guidance) / len(self.logprobs) ** length_penalty


def to_hypothesis(tokens: Sequence[Token], eos: frozenset[int]) -> Hypothesis:
    finished = bool(tokens) and tokens[-1].id in eos
    text = tokens[:-1] if finished else tokens
    logprobs = tuple(token.logprob for token in tokens)
    recorded = tuple(token.likeliest for token in text if token.likeliest is not None)
    guidance = sum(token.guidance for token in tokens)
    return Hypothesis(tuple(token.id for token in text), logprobs, finished, recorded, guidance)
