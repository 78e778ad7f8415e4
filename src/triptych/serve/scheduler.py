"""Continuous batching: each request runs in its own thread, and the steps of all are computed together.

A request reads its prompt while the others continue to write, joins them at their next step, and leaves when its text ends. Each chooses
its own tokens (greedy, sampled or with beams), so its text does not depend on the others. Texts are written in groups, one for each of
``LANES`` processor cores, and as many prompts and pictures are read at a time: with several rows the products of a model are bound by
arithmetic, so two computations at a time on two cores take half as long as one after the other. For the same reason a text waits, first
come first served, until a group has fewer rows than ``JointSteps.enough_rows``: more would only slow down those that are written.
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
from triptych.generate import StateT, StepModel
from triptych.interruption import check_interruption
from triptych.logits import Ints

LANES = 2  # groups, at most: with more, each step has fewer rows
PATIENCE = 0.02  # seconds that a step waits for a request that is choosing its next token


class EngineProxy:
    """Has the attributes of ``engine``; methods are called through ``compute``."""

    def __init__(self, engine: object, compute: Callable[..., Any]) -> None:
        self._engine, self._compute = engine, compute

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        if hasattr(value, "prefill"):  # a step model in the engine: BLIP-2's writer
            return EngineProxy(value, self._compute)
        return partial(self._compute, value) if callable(value) else value


class Turns:
    """Lets ``count`` callers run at a time; the others wait, first come first served."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock:
            ticket = None if self._free else threading.Event()
            if ticket is None:
                self._free -= 1
            else:
                self._waiting.append(ticket)
        if ticket is not None:
            ticket.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1


@dataclass
class PendingStep(Generic[StateT]):
    """One step of a request's text. ``ready`` is set when it has its ``outcome`` (a result or an exception), or when its thread shall
    compute the next step of its group (``leads``)."""

    ids: Ints
    state: StateT
    thread: int = field(default_factory=threading.get_ident)
    outcome: tuple[Array, StateT] | Exception | None = None
    leads: bool = False
    ready: threading.Event = field(default_factory=threading.Event)


class StepGroup(Generic[StateT]):
    """Texts whose steps are computed together, by the thread of one of them."""

    def __init__(self, joint: JointSteps[StateT], observe: Callable[[int], None]) -> None:
        self._joint, self._observe = joint, observe
        self._changed = threading.Condition()  # the leading thread waits for it
        self._waiting: list[PendingStep[StateT]] = []
        self._choosing: set[int] = set()  # threads that have the logits of a step and will soon request the next
        self._has_leader = False

    def is_enough(self, rows: int) -> bool:
        """Whether it saves little to compute further rows in the same step."""
        return rows >= self._joint.enough_rows

    def leave(self, thread: int) -> None:
        """Do not wait for this thread: its text has ended, or it does something else before its next step."""
        with self._changed:
            self._choosing.discard(thread)
            self._changed.notify()

    def step(self, ids: Ints, state: StateT) -> tuple[Array, StateT]:
        """``StepModel.step``, together with the steps of other threads."""
        step = PendingStep(ids, state)
        with self._changed:
            self._waiting.append(step)
            self._choosing.discard(step.thread)
            step.leads = not self._has_leader
            self._has_leader = True
            self._changed.notify()
        if not step.leads:
            step.ready.wait()
        if step.leads:
            self._lead()
        if isinstance(step.outcome, Exception):
            raise step.outcome
        assert step.outcome is not None
        return step.outcome

    def _lead(self) -> None:
        """Compute all waiting steps; the first that arrived meanwhile leads the next ones."""
        with self._changed:
            while self._choosing and not self.is_enough(sum(len(step.ids) for step in self._waiting)):
                if not self._changed.wait(PATIENCE):
                    break
            steps, self._waiting = self._waiting, []
        self._observe(len(steps))
        outcomes = self._compute(steps)
        with self._changed:
            self._choosing = {step.thread for step in steps}
            leader = self._waiting[0] if self._waiting else None
            self._has_leader = leader is not None
        for step, outcome in zip(steps, outcomes, strict=True):
            step.outcome = outcome
            step.ready.set()
        if leader is not None:
            leader.leads = True
            leader.ready.set()

    def _compute(self, steps: Sequence[PendingStep[StateT]]) -> Sequence[tuple[Array, StateT] | Exception]:
        """The outcome of each step. If they fail together, each is tried alone, so that a faulty one does not affect the others."""
        try:
            return self._joint.step([step.ids for step in steps], [step.state for step in steps])
        except Exception as error:
            if len(steps) == 1:
                return [error]
        return [outcome for step in steps for outcome in self._compute([step])]


class SharedEngine(EngineProxy, Generic[StateT]):
    """An engine for many threads: computes the steps of their texts in ``lanes`` groups, and at most ``lanes`` other calls at a time."""

    def __init__(
        self,
        engine: StepModel[Any, StateT],
        joint_steps: Callable[[], JointSteps[StateT]],
        observe: Callable[[int], None] = lambda requests: None,
        lanes: int = 1,
    ) -> None:
        """``observe``: called with the number of requests in each step."""
        super().__init__(engine, self._run_alone)
        self._turns = Turns(lanes)
        self._groups = [StepGroup(joint_steps(), observe) for _ in range(lanes)]
        # Of each thread that writes a text: its group, and its rows.
        self._members: dict[int, tuple[StepGroup[StateT], int]] = {}
        self._joining: deque[int] = deque()  # threads that wait for room in a group
        self._changed = threading.Condition()

    def _run_alone(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.leave()
        with self._turns.turn():
            check_interruption()
            return function(*arguments, **named)

    def leave(self) -> None:
        """Take this thread out of its group: its text has ended, or it does something else before its next step."""
        thread = threading.get_ident()
        with self._changed:
            group, _ = self._members.pop(thread, (None, 0))
            self._changed.notify_all()
        if group is not None:
            group.leave(thread)

    def step(self, ids: Ints, state: StateT) -> tuple[Array, StateT]:
        """``StepModel.step``, together with the steps of other threads."""
        thread = threading.get_ident()
        if thread not in self._members:
            self._join(thread, len(ids))
        return self._members[thread][0].step(ids, state)

    def _join(self, thread: int, rows: int) -> None:
        """Make a new text a member of a group, once there is room. Raises InterruptedGeneration."""
        with self._changed:
            self._joining.append(thread)
            try:
                while self._joining[0] != thread or (group := self._group_with_room()) is None:
                    self._changed.wait()
                    check_interruption()
                self._members[thread] = group, rows
            finally:
                self._joining.remove(thread)
                self._changed.notify_all()  # the next one may have room, too

    def _group_with_room(self) -> StepGroup[StateT] | None:
        """The group with the fewest rows, unless these are enough."""
        sizes = [sum(rows for member, rows in self._members.values() if member is group) for group in self._groups]
        smallest = sizes.index(min(sizes))
        return None if self._groups[smallest].is_enough(sizes[smallest]) else self._groups[smallest]
