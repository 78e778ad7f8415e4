"""A model's queue of requests, bounded, and the threads that answer them.

With a ``SharedEngine`` each of several threads answers one request, and their steps are computed together. With any other engine a single
thread answers waiting requests of the same kind as a batch; if the batch fails, each is tried alone. Either way an answer does not depend
on the other requests, and a request whose client has gone stops at its next step. Requests with a ``key`` that are equal are answered
once (``answers``).
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from triptych.interruption import InterruptedGeneration, interruption
from triptych.serve.answers import AnswerMemory
from triptych.serve.deadline import Deadline
from triptych.serve.errors import SERVER_LOG, ApiError, as_api_error
from triptych.serve.scheduler import SharedEngine
from triptych.serve.settings import BATCH_LIMIT

STREAM_END = object()
LEAST_RETRY, MOST_RETRY = 2, 60  # seconds of Retry-After
RATE_OF = 32  # requests whose rate is taken


@dataclass(eq=False)
class Job:
    """Work for a model. Jobs of one ``kind`` may be run together.

    ``run``: payloads of jobs -> their results. ``stream``: instead, the pieces of one payload. ``key``: all that the result depends on;
    None = it is not remembered.
    """

    kind: Hashable
    payload: Any
    run: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    stream: Callable[[Any], Iterator[Any]] | None = None
    key: Hashable | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    results: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def put(self, result: Any) -> None:
        """Pass a result, a piece, an exception or STREAM_END to the event loop of the request."""
        try:
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)
        except RuntimeError:  # the loop is closed: the server is shutting down
            self.cancelled.set()


class Worker:
    """A model's queue and threads, and its last answers.

    ``waiting``: the length of the queue. ``observe``: called with the size of every batch; ``observe_remembered``: when an answer is used
    again.
    """

    def __init__(
        self,
        name: str,
        waiting: int,
        observe: Callable[[int], None] = lambda size: None,
        shared: SharedEngine[Any] | None = None,
        observe_remembered: Callable[[], None] = lambda: None,
    ) -> None:
        self.answers = AnswerMemory(observe=observe_remembered)
        self.name, self.observe, self.shared = name, observe, shared
        self.batch_limit = 1 if shared else BATCH_LIMIT
        self.queue: queue.Queue[Job | None] = queue.Queue(waiting)
        self.ended: deque[float] = deque(maxlen=RATE_OF)  # when the last requests were answered
        names = [f"model-{name}-{n}" for n in range(BATCH_LIMIT if shared else 1)]
        self.threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """Answer the waiting requests, then stop."""
        for _ in self.threads:
            self.queue.put(None)
        for thread in self.threads:
            thread.join(timeout=60)

    async def submit(self, job: Job, deadline: Deadline) -> Any:
        """The result of a job. Cancelling the waiting task stops the work.

        Raises ApiError: 429 if the queue is full, 504 after the ``deadline``, or the model's failure.
        """
        async with deadline.limit():
            if job.key is None:
                return await self._result(job)
            return await self.answers.get(job.key, partial(self._result, job))

    async def _result(self, job: Job) -> Any:
        self._enqueue(job)
        try:
            result = await job.results.get()
        finally:
            self._withdraw(job)
        if isinstance(result, Exception):
            raise as_api_error(result)
        return result

    async def pieces(self, job: Job, deadline: Deadline) -> AsyncGenerator[Any, None]:
        """The pieces of a streaming job as they are made. Raises as ``submit``, perhaps after some pieces."""
        self._enqueue(job)
        try:
            async with deadline.limit():
                while (piece := await job.results.get()) is not STREAM_END:
                    if isinstance(piece, Exception):
                        raise as_api_error(piece)
                    yield piece
        finally:
            self._withdraw(job)

    def check_room(self) -> None:
        """Raises ApiError: 429, the queue is full now; so a request can be refused before its pictures are read."""
        if self.queue.full():
            raise self._queue_full()

    def _enqueue(self, job: Job) -> None:
        try:
            self.queue.put_nowait(job)
        except queue.Full:
            raise self._queue_full() from None

    def _withdraw(self, job: Job) -> None:
        """Take a job whose client does not wait any more from the queue, with its pictures; if it runs, it stops at its next step."""
        job.cancelled.set()
        job.payload = None  # an exception's traceback may keep the job for a while, but not its pictures
        with self.queue.mutex:
            if job in self.queue.queue:
                self.queue.queue.remove(job)
                self.queue.not_full.notify()

    def _queue_full(self) -> ApiError:
        """``Retry-After``: about the time in which the waiting requests are answered, by the rate of the last ones."""
        ended = list(self.ended)
        seconds = self.queue.maxsize * (ended[-1] - ended[0]) / (len(ended) - 1) if len(ended) > 1 else 0.0
        again = math.ceil(min(max(seconds, LEAST_RETRY), MOST_RETRY))
        return ApiError(429, f"{self.queue.maxsize} requests are waiting: try again later", retry_after=again)

    def _work(self) -> None:
        while self._answer_next():
            interruption.set(None)

    def _answer_next(self) -> bool:
        """Answer the next job of the queue and those that follow it, of which nothing is kept; False: there are no more."""
        job = self.queue.get()
        while job is not None:
            following: list[Job | None] = []
            if not job.cancelled.is_set():
                batch = [job]
                if job.stream is not None:
                    self._run_stream(job, job.payload)
                else:
                    batch, following = self._batch_of(job)
                    self._run_batch(batch, [job.payload for job in batch])
                if self.shared is not None:
                    self.shared.leave()
                self.ended.extend([time.monotonic()] * len(batch))
            if not following:
                return True
            job = following[0]
        return False

    def _batch_of(self, job: Job) -> tuple[list[Job], list[Job | None]]:
        """The job with waiting ones of its kind; and the job of another kind that was taken from the queue, if any."""
        batch = [job]
        while len(batch) < self.batch_limit:
            try:
                other = self.queue.get_nowait()
            except queue.Empty:
                break
            if other is None or other.stream is not None or other.kind != job.kind:
                return batch, [other]
            if not other.cancelled.is_set():
                batch.append(other)
        return batch, []

    def _begin(self, batch: Sequence[Job]) -> None:
        if self.shared is None:
            self.observe(len(batch))
        interruption.set(lambda: all(job.cancelled.is_set() for job in batch))

    def _run_batch(self, jobs: Sequence[Job], given: Sequence[Any]) -> None:
        """``given``: the jobs' payloads, taken before it is known who still waits, because a job that is withdrawn loses its own."""
        waiting = [(job, payload) for job, payload in zip(jobs, given, strict=True) if not job.cancelled.is_set()]
        if not waiting:
            return
        batch, payloads = zip(*waiting, strict=True)
        self._begin(batch)
        run = batch[0].run
        assert run is not None
        try:
            results = run(payloads)
        except InterruptedGeneration:
            return
        except Exception as error:
            if len(batch) > 1:
                for job, payload in waiting:
                    self._run_batch([job], [payload])
                return
            if as_api_error(error).status >= 500:
                SERVER_LOG.exception("%s failed", self.name)
            batch[0].put(error)
            return
        for job, result in zip(batch, results, strict=True):
            job.put(result)

    def _run_stream(self, job: Job, payload: Any) -> None:
        if job.cancelled.is_set():
            return
        self._begin([job])
        assert job.stream is not None
        try:
            for piece in job.stream(payload):
                job.put(piece)
        except InterruptedGeneration:
            return
        except Exception as error:
            if as_api_error(error).status >= 500:
                SERVER_LOG.exception("%s failed", self.name)
            job.put(error)
            return
        job.put(STREAM_END)
