"""Texts up to the first of the client's stop texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

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


async def until_stop(pieces: AsyncGenerator[str | TextEnd, None], stops: Sequence[str]) -> AsyncIterator[str | TextEnd]:
    """The pieces without leading space, up to the first stop, and how the text ended. Characters that may begin a stop wait for the next
    piece; the model is interrupted at a stop."""
    margin = max((len(stop) for stop in stops), default=1) - 1
    text = ""
    sent, count, end = 0, 0, None
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, TextEnd):
                end = piece
                continue
            count += 1
            text += piece
            text = text if sent else text.lstrip()
            cut = cut_at_stop(text, stops)
            until = len(cut) if len(cut) < len(text) else max(sent, len(text) - margin)
            if until > sent:
                yield text[sent:until]
                sent = until
            if len(cut) < len(text):
                break
        else:
            if len(text) > sent:
                yield text[sent:]
    yield end or TextEnd(new_tokens=count)
