"""Texts up to the first of the client's stop texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from triptych.serve.errors import ApiError
from triptych.tasks import TextEnd

STOP_LIMIT = 4


def check_stops(stop: str | Sequence[str] | None, param: str) -> list[str]:
    """The stop texts of a request that are not empty. Raises ApiError: too many."""
    texts = [text for text in ([stop] if isinstance(stop, str) else stop or []) if text]
    if len(texts) > STOP_LIMIT:
        raise ApiError(400, f"{param} has {len(texts)} texts: {STOP_LIMIT} at most", param=param)
    return texts


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


class StreamEnd(NamedTuple):
    """How a stream ended. ``cut``: its text, if a stop ended it."""

    text_end: TextEnd
    cut: str | None


async def until_stop(
    pieces: AsyncGenerator[str | TextEnd, None], stops: Sequence[str], count: bool
) -> AsyncIterator[str | StreamEnd]:
    """The pieces without leading space, up to the first stop, and how the text ended. Characters that may begin a stop wait for the next
    piece. At a stop the model is interrupted, unless its tokens are to be counted as those of a whole answer: ``count``."""
    margin = max((len(stop) for stop in stops), default=1) - 1
    text, sent = "", 0
    cut: str | None = None
    end = TextEnd()
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, TextEnd):
                end = piece
            elif cut is None:
                text = f"{text}{piece}" if sent else f"{text}{piece}".lstrip()
                if (shortened := cut_at_stop(text, stops)) != text:
                    cut = text = shortened
                until = len(text) if cut is not None else max(sent, len(text) - margin)
                if until > sent:
                    yield text[sent:until]
                    sent = until
            if cut is not None and not count:
                break
    if len(text) > sent:
        yield text[sent:]
    yield StreamEnd(end, cut)
