"""Requests through a model: a bounded queue and one thread a model, which answers waiting requests of the same kind together.

A batch answers exactly as its requests one by one, so who else is there changes no answer. A request that fails in a batch is tried
alone, so it fails alone. When nobody waits for a batch any more, decoding stops at the next step.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych.interruption import InterruptedGeneration, interruption
from triptych.serve.errors import SERVER_LOG, ApiError, as_api_error
from triptych.serve.settings import BATCH_LIMIT

STREAM_END = object()


@dataclass
class Job:
    """Work for a model. Jobs of one ``kind`` may be run together.

    ``run``: payloads of jobs -> their results. ``stream``: instead, the pieces of one payload.
    """

    kind: Hashable
    payload: Any
    run: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    stream: Callable[[Any], Iterator[Any]] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    results: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    queued: float = field(default_factory=time.monotonic)

    def put(self, result: Any) -> None:
        """Hand a result, a piece, an exception or STREAM_END to the client's side."""
        try:
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)
        except RuntimeError:  # the loop has gone: the server is shutting down
            self.cancelled.set()


class Worker:
    """One model's thread. ``observe`` is called with the kind and the size of every batch."""

    def __init__(self, name: str, waiting: int, observe: Callable[[str, int], None] = lambda name, size: None) -> None:
        self.name, self.observe = name, observe
        self.queue: queue.Queue[Job | None] = queue.Queue(waiting)
        self.thread = threading.Thread(target=self._work, name=f"model-{name}", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Finish what is waiting, then stop."""
        self.queue.put(None)
        self.thread.join(timeout=60)

    async def submit(self, job: Job, timeout: float) -> Any:
        """The result of a job. Cancelling the task that waits stops the work.

        Raises ApiError: 429 where the queue is full, 504 after ``timeout`` seconds, or what the model raised.
        """
        self._enqueue(job)
        try:
            async with asyncio.timeout(timeout):
                result = await job.results.get()
        except TimeoutError:
            raise ApiError(504, f"no answer within {timeout:.0f} seconds", retry_after=10) from None
        finally:
            job.cancelled.set()
        if isinstance(result, Exception):
            raise as_api_error(result)
        return result

    async def pieces(self, job: Job, timeout: float) -> AsyncIterator[Any]:
        """The pieces of a streaming job as they are made. Raises as ``submit``; an error may come after some pieces."""
        self._enqueue(job)
        try:
            async with asyncio.timeout(timeout):
                while (piece := await job.results.get()) is not STREAM_END:
                    if isinstance(piece, Exception):
                        raise as_api_error(piece)
                    yield piece
        except TimeoutError:
            raise ApiError(504, f"no answer within {timeout:.0f} seconds", retry_after=10) from None
        finally:
            job.cancelled.set()

    def _enqueue(self, job: Job) -> None:
        try:
            self.queue.put_nowait(job)
        except queue.Full:
            raise ApiError(429, f"{self.queue.maxsize} requests are waiting: try again later", retry_after=2) from None

    def _work(self) -> None:
        waiting: Job | None = None  # taken from the queue, but of another kind than the batch before it
        while (job := waiting or self.queue.get()) is not None:
            waiting = None
            if job.cancelled.is_set():
                continue
            if job.stream is not None:
                self._run_stream(job)
                continue
            batch = [job]
            stop = False
            while len(batch) < BATCH_LIMIT and not self.queue.empty():
                other = self.queue.get()
                if other is None:
                    stop = True
                    break
                if other.cancelled.is_set():
                    continue
                if other.stream is not None or other.kind != job.kind:
                    waiting = other
                    break
                batch.append(other)
            self._run_batch(batch)
            if stop:
                return

    def _run_batch(self, batch: list[Job]) -> None:
        self.observe(self.name, len(batch))
        interruption.set(lambda: all(job.cancelled.is_set() for job in batch))
        run = batch[0].run
        assert run is not None
        try:
            results = run([job.payload for job in batch])
        except InterruptedGeneration:
            return
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._run_batch([job])
                return
            if as_api_error(error).status >= 500:
                SERVER_LOG.exception("%s failed", self.name)
            batch[0].put(error)
            return
        for job, result in zip(batch, results, strict=True):
            job.put(result)

    def _run_stream(self, job: Job) -> None:
        self.observe(self.name, 1)
        interruption.set(job.cancelled.is_set)
        assert job.stream is not None
        try:
            for piece in job.stream(job.payload):
                job.put(piece)
        except InterruptedGeneration:
            return
        except Exception as error:
            if as_api_error(error).status >= 500:
                SERVER_LOG.exception("%s failed", self.name)
            job.put(error)
            return
        job.put(STREAM_END)
