"""Logits -> the log-probabilities by which tokens are chosen, and what guidance adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from triptych.generate.search import Search
from triptych.generate.texts import Texts
from triptych.logits import (
    Ints,
    Likeliest,
    Scores,
    completing_tokens,
    likeliest_tokens,
    log_softmax,
    penalise,
    repeating_tokens,
    to_numpy,
)


class Guidance(NamedTuple):
    """What is added to the log-probabilities of N tokens wherever texts or tokens are compared, for each of B inputs (shallow fusion,
    Gulcehre et al. 2015). The texts keep the model's own log-probabilities."""

    tokens: Ints  # [N]
    weights: Scores  # [B, N]

    def added(self, logprobs: Scores, inputs: Sequence[int]) -> Scores:
        """``logprobs [len(inputs) * K, V]`` with the weights of each row's input added."""
        added = np.zeros((len(inputs), 1, logprobs.shape[-1]), np.float32)
        added[:, 0, self.tokens] = self.weights[list(inputs)]
        return (logprobs.reshape(len(inputs), -1, logprobs.shape[-1]) + added).reshape(logprobs.shape)


def score_next(logits: Any, texts: Texts, search: Search, prompts: Texts) -> tuple[Sequence[Likeliest | None], Scores]:
    """``logits [rows, V]`` behind the ``texts``, as ``search`` takes them: the likeliest tokens, and the log-probabilities of those that
    may follow. ``prompts``: of the inputs, each of which has as many rows."""
    counted = texts
    if search.counts_prompt:
        rows, vocabulary = len(texts) // len(prompts), logits.shape[-1]
        known = [[token for token in prompt if token < vocabulary] for prompt in prompts]
        counted = [[*known[i // rows], *text] for i, text in enumerate(texts)]
    if search.beams > 1:
        logprobs = penalise(log_softmax(logits, search.banned), counted, search.repetition_penalty)
    else:
        logprobs = log_softmax(penalise(to_numpy(logits), counted, search.repetition_penalty), search.banned)
    return likeliest_tokens(logprobs, search.top_logprobs), restrict(logprobs, texts, counted, search)


def restrict(logprobs: Scores, texts: Texts, counted: Texts, search: Search) -> Scores:
    """``logprobs [rows, V]`` with minus infinity for the tokens that may not follow the ``texts`` so far (``Search``).

    They are not normalised again, so the log-probabilities stay the model's, as in transformers. ``counted``: the texts, perhaps behind
    their prompts (``Search.counts_prompt``).
    """
    if not (search.once or search.no_repeat_ngrams or search.min_new_tokens or search.banned_sequences):
        return logprobs
    allowed = logprobs.copy()
    for row, text, whole in zip(allowed, texts, counted, strict=True):
        refused = repeating_tokens(whole, search.no_repeat_ngrams)
        refused |= completing_tokens(whole, search.banned_sequences)
        if search.once:
            refused = refused.union(*map(search.once, text))
        if len(text) < search.min_new_tokens:
            refused |= search.eos
        row[sorted(refused)] = -np.inf
    return allowed
