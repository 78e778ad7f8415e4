"""Connections to clients: one whose next request does not arrive in time is closed.

h11 is the only protocol of uvicorn's that bounds the size of headers.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 75.0  # for the headers of a request, from the connection or the last answer; more than any Retry-After


class TimedConnection(H11Protocol):
    """uvicorn alone bounds only the time without any data, and only after a first request; so clients that send nothing, or a byte now
    and then, could hold all connections."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        self.loop.call_later(HEADER_SECONDS, self._close_if_idle, self.cycle)

    def _close_if_idle(self, last: object) -> None:
        """``last``: the request that was the last one when the time began."""
        if self.cycle is last and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
