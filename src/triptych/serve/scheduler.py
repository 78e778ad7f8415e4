"""Continuous batching: requests run in threads of their own, and the steps that they take are computed together.

A request reads its prompt while the others wait between two steps, joins them at the next, and leaves when its text ends. Each chooses its
own tokens (greedy, sampled or with beams), so its text does not depend on the others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

from triptych.engines.interface import Array, JointSteps
from triptych.generate import Ints, StateT, StepModel

PATIENCE = 0.02  # seconds that a step waits for a request that chooses its next token


class OneAtATime:
    """All that ``engine`` has; each method is called through ``compute``."""

    def __init__(self, engine: object, compute: Callable[..., Any]) -> None:
        self._engine, self._compute = engine, compute

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        if hasattr(value, "prefill"):  # a step model within the engine: the writer of BLIP-2
            return OneAtATime(value, self._compute)
        return partial(self._compute, value) if callable(value) else value


@dataclass
class PendingStep(Generic[StateT]):
    """One step of a request's text; ``outcome``: its result or what it failed with, None = not yet."""

    ids: Ints
    state: StateT
    outcome: tuple[Array, StateT] | Exception | None = None
    thread: int = field(default_factory=threading.get_ident)


class SharedEngine(OneAtATime, Generic[StateT]):
    """An engine for many threads: one computation at a time, and the steps of all texts together."""

    def __init__(
        self,
        engine: StepModel[Any, StateT],
        joint: JointSteps[StateT],
        observe: Callable[[int], None] = lambda requests: None,
    ) -> None:
        """``observe`` is called with the number of requests in each step."""
        super().__init__(engine, self._run_alone)
        self._joint, self._observe = joint, observe
        self._changed = threading.Condition()
        self._turns: deque[object] = deque()  # the computation that runs, and those that wait, first come first served
        self._waiting: list[PendingStep[StateT]] = []
        self._choosing: set[int] = set()  # threads that have the logits of a step and will soon want the next
        self._stepping = False

    def _run_alone(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.leave()
        with self._turn():
            return function(*arguments, **named)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        own = object()
        with self._changed:
            self._turns.append(own)
            while self._turns[0] is not own:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._turns.popleft()
                self._changed.notify_all()

    def leave(self) -> None:
        """The text of this thread has ended, or something else comes before its next step."""
        with self._changed:
            self._choosing.discard(threading.get_ident())
            self._changed.notify_all()

    def step(self, ids: Ints, state: StateT) -> tuple[Array, StateT]:
        """``StepModel.step``, together with the steps of other threads. One of them computes it for all."""
        step = PendingStep(ids, state)
        with self._changed:
            self._waiting.append(step)
            self._choosing.discard(step.thread)
            self._changed.notify_all()
            while self._stepping and step.outcome is None:
                self._changed.wait()
            computes = step.outcome is None
            self._stepping = self._stepping or computes
        if computes:
            self._run_steps()
        if isinstance(step.outcome, Exception):
            raise step.outcome
        assert step.outcome is not None
        return step.outcome

    def _run_steps(self) -> None:
        with self._turn():
            with self._changed:
                while self._choosing and self._changed.wait(PATIENCE):
                    pass
                steps, self._waiting = self._waiting, []
            self._observe(len(steps))
            outcomes = self._compute_steps(steps)
            with self._changed:
                for step, outcome in zip(steps, outcomes, strict=True):
                    step.outcome = outcome
                self._choosing = {step.thread for step in steps}
                self._stepping = False
                self._changed.notify_all()

    def _compute_steps(self, steps: Sequence[PendingStep[StateT]]) -> Sequence[tuple[Array, StateT] | Exception]:
        """The outcome of each. Where they fail together, each is tried by itself, so that one does not spoil the others."""
        try:
            return self._joint.step([step.ids for step in steps], [step.state for step in steps])
        except Exception as error:
            if len(steps) == 1:
                return [error]
        return [outcome for step in steps for outcome in self._compute_steps([step])]
