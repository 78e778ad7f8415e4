"""Answers to whole requests, remembered: one that is sent again, or by several clients at the same time, is computed once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

REMEMBERED_ANSWERS = 512  # of each model; a few kilobytes each


class AnswerMemory:
    """The last ``limit`` answers by key, for one event loop. ``observe``: called when one is used again."""

    def __init__(self, limit: int = REMEMBERED_ANSWERS, observe: Callable[[], None] = lambda: None) -> None:
        self.limit, self.observe = limit, observe
        self._answers: OrderedDict[Hashable, Any] = OrderedDict()
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def get(self, key: Hashable, compute: Callable[[], Awaitable[Any]]) -> Any:
        """The answer to the request ``key``. Raises what ``compute`` raises, in all that wait for it.

        When the task that computes it is cancelled, because its client has gone or its time is up, another one computes it.
        """
        while True:
            if key in self._answers:
                self._answers.move_to_end(key)
                self.observe()
                return self._answers[key]
            running = self._running.get(key)
            if running is None:
                return await self._compute(key, compute)
            await asyncio.wait([running])
            if not running.cancelled():
                answer = running.result()
                self.observe()
                return answer

    async def _compute(self, key: Hashable, compute: Callable[[], Awaitable[Any]]) -> Any:
        running = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await compute()
        except asyncio.CancelledError:
            running.cancel()
            raise
        except Exception as error:
            running.set_exception(error)
            running.exception()  # else asyncio reports it if nobody waits
            raise
        finally:
            del self._running[key]
        running.set_result(answer)
        self._answers[key] = answer
        if len(self._answers) > self.limit:
            self._answers.popitem(last=False)
        return answer
