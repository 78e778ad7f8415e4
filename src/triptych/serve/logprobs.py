"""Log-probabilities of an answer's tokens, and of the most likely ones at each position, in OpenAI's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triptych.tasks import TextEnd
from triptych.tasks.answer import WrittenToken

PART = "\N{REPLACEMENT CHARACTER}"  # of a character


def choice_logprobs(end: TextEnd, choice: int, top: int, cut: str | None = None) -> dict[str, Any] | None:
    """The log-probabilities of the text ``choice`` (0 = the best); ``cut``: the text up to a stop; None if there are no tokens.

    The answer to a question with choices is a single token, and the choices are the most likely tokens at its position.
    """
    if choice >= len(end.tokens):
        return None
    tokens: list[dict[str, Any]] = []
    length = 0
    for token in end.tokens[choice]:
        if cut is not None and length >= len(cut):
            break
        token = token if tokens else without_space(token)
        length += len(token.text.rstrip(PART))
        likeliest = [as_entry(text, logprob) for text, logprob in token.likeliest[:top]]
        tokens.append(as_entry(token.text, token.logprob) | {"top_logprobs": likeliest})
    return {"content": tokens, "refusal": None}


def without_space(token: WrittenToken) -> WrittenToken:
    """The first token of a text and its alternatives, without leading spaces."""
    likeliest: Sequence[tuple[str, float]] = [(text.lstrip(), logprob) for text, logprob in token.likeliest]
    return WrittenToken(token.text.lstrip(), token.logprob, tuple(likeliest))


def as_entry(text: str, logprob: float) -> dict[str, Any]:
    """An entry of OpenAI's list; ``bytes`` is None for a part of a character."""
    return {"token": text, "logprob": logprob, "bytes": None if PART in text else list(text.encode())}
