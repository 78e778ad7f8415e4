"""Log-probabilities of an answer's tokens, and of the likeliest at each place, in OpenAI's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triptych.tasks import TextEnd
from triptych.tasks.answer import WrittenToken

PART = "\N{REPLACEMENT CHARACTER}"  # of a character


def choice_logprobs(end: TextEnd, choice: int, top: int, cut: str | None = None) -> dict[str, Any] | None:
    """Of the text ``choice`` (0 = the best), as far as ``cut`` where it was cut at a stop; None where the model wrote no tokens.

    A question that is answered by scoring choices has one token, the answer, and the choices are the likeliest at its place.
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
    """The first token of a text, and those that could have stood in its place."""
    likeliest: Sequence[tuple[str, float]] = [(text.lstrip(), logprob) for text, logprob in token.likeliest]
    return WrittenToken(token.text.lstrip(), token.logprob, tuple(likeliest))


def as_entry(text: str, logprob: float) -> dict[str, Any]:
    """``bytes``: None for a part of a character."""
    return {"token": text, "logprob": logprob, "bytes": None if PART in text else list(text.encode())}
