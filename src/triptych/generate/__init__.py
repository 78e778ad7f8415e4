"""Turning logits into text: greedy, sampling, beam search, streaming; batched, with the log-probability of every token.

This package knows no model. It needs three functions (``StepModel``): ``prefill`` reads the inputs and returns the logits of the
first token, ``step`` takes one token for each row, and ``state.reorder`` lets rows continue others. The search runs in NumPy; a model
whose logits are torch's gets torch's tensors, on its device.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from triptych.errors import InputError
from triptych.generate.beams import beam_search
from triptych.generate.sampling import decode
from triptych.generate.scores import Guidance
from triptych.generate.search import MAX_NEW_TOKENS, TOP_LOGPROBS, EarlyStopping, Search
from triptych.generate.steps import Inputs, State, StateT, StepModel
from triptych.generate.texts import Hypothesis, Texts, Token, to_hypothesis
from triptych.logits import without_gradients

__all__ = [
    "MAX_NEW_TOKENS",
    "TOP_LOGPROBS",
    "EarlyStopping",
    "Guidance",
    "Hypothesis",
    "Search",
    "State",
    "StateT",
    "StepModel",
    "Token",
    "beam_search",
    "generate",
    "stream",
    "to_hypothesis",
]


def generate(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    seeds: Sequence[int] | None = None,
    guidance: Guidance | None = None,
    prompts: Texts = (),
) -> list[list[Hypothesis]]:
    """The ``n_best`` texts of each input, best first (samples: in the order drawn).

    ``seeds``: one for each input, if the draws of different inputs must be independent; None = ``search.seed`` for all. ``prompts``: the
    tokens of each input, for ``Search.counts_prompt``.
    """
    with without_gradients():
        if search.beams > 1:
            return beam_search(model, inputs, search, guidance, prompts)
        texts: list[list[list[Token]]] = []
        for tokens in decode(model, inputs, search, seeds, guidance, prompts):
            if not texts:
                texts = [[[] for _ in row] for row in tokens]
            for text_row, token_row in zip(texts, tokens, strict=True):
                for text, token in zip(text_row, token_row, strict=True):
                    if token is not None:
                        text.append(token)
    return [[to_hypothesis(text, search.eos) for text in row] for row in texts]


def stream(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    guidance: Guidance | None = None,
    prompt: Sequence[int] = (),
) -> Generator[Token, None, bool]:
    """Yields the tokens of a single input without the end token; returns whether the end token was reached.

    Raises:
        InputError: several beams or texts.
    """
    if search.beams > 1 or search.n_best > 1:
        raise InputError("streaming writes one text token by token: use beams = 1 and n_best = 1")
    tokens = decode(model, inputs, search, guidance=guidance, prompts=[prompt])
    while True:
        with without_gradients():  # entered for each token, so that it is off in the caller's code
            [[token]] = next(tokens, [[None]])
        if token is None or token.id in search.eos:
            return token is not None
        yield token
