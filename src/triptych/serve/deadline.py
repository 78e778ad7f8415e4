"""The time that a request may take, for its pictures and its answer together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from triptych.serve.errors import ApiError


class Deadline:
    """``seconds`` from now on. Needs a running event loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ends = seconds, asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Cancel what runs in the block when the time is up. Raises ApiError: 504."""
        try:
            async with asyncio.timeout_at(self.ends):
                yield
        except TimeoutError:
            raise ApiError(504, f"no answer within {self.seconds:.0f} seconds", retry_after=10) from None


def deadline_of(request: Request) -> Deadline:
    """The deadline of ``request``, by the server's settings from the first call on."""
    if not hasattr(request.state, "deadline"):
        request.state.deadline = Deadline(request.app.state.settings.timeout)
    deadline: Deadline = request.state.deadline
    return deadline
