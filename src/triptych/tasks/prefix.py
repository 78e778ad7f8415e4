"""A memory of prompts: one that begins like an earlier one is read only from the first difference on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, NamedTuple

from triptych.engines.interface import Array, FlamingoInputs, PromptState
from triptych.generate import StepModel

SLOTS = 4  # remembered prompts
SLOT_TOKENS = 4096  # of all remembered prompts; a token of SmolLM2-135M takes 46 kB
WORTH_WAITING = 8  # a prompt waits for one being read if that saves it so many tokens


class PromptRow(NamedTuple):
    """One prompt. ``signature``: its tokens, with the content hash of a picture in its place, so that equal prompts have equal
    signatures. ``blind_from``: the position from which on its text attends to no picture."""

    input_ids: list[int]
    signature: tuple[int | str, ...]
    visual_tokens: Sequence[Array]  # [R, D] of each picture
    blind_from: int | None = None

    def until(self, length: int) -> PromptRow:
        """Its first ``length`` tokens, with their pictures."""
        pictures = count_pictures(self.signature[:length])
        return PromptRow(self.input_ids[:length], self.signature[:length], self.visual_tokens[:pictures])


@dataclass
class PrefixState:
    """A prompt that has been read: a ``generate.StepModel`` for one row. ``written``: the tokens read into its state afterwards."""

    engine: StepModel[FlamingoInputs, Any]
    logits: Array  # [1, V]
    state: PromptState
    written: list[int] = field(default_factory=list)

    def prefill(self, inputs: None = None) -> tuple[Array, PromptState]:
        return self.logits, self.state

    def step(self, ids: Any, state: PromptState) -> tuple[Array, PromptState]:
        if state is self.state:
            self.written += ids.tolist()
        return self.engine.step(ids, state)


class Slot(NamedTuple):
    signature: tuple[int | str, ...]
    state: PromptState


class PrefixMemory:
    """Remembers the states of the last prompts, as copies that are never written to, so that concurrent callers share them."""

    def __init__(self, engine: StepModel[FlamingoInputs, Any], slots: int = SLOTS) -> None:
        self.engine, self.slots = engine, slots
        self._kept: list[Slot] = []  # the most recent last
        self._reading: list[PromptRow] = []
        self._changed = Condition()

    @contextmanager
    def read_prompt(self, row: PromptRow) -> Iterator[PrefixState]:
        """Read a prompt. Text written after it is remembered, too, unless by beam search.

        Of concurrent prompts with a common beginning, the first reads it for all.
        """
        with self._changed:
            while self._is_worth_waiting(row):
                self._changed.wait()
            state, start = self._continue(row)
            self._reading.append(row)
        read = None
        try:
            pictures = count_pictures(row.signature[:start])
            inputs = FlamingoInputs([row.input_ids[start:]], [row.visual_tokens[pictures:]], state)
            logits, read = self.engine.prefill(inputs)
        finally:
            with self._changed:
                self._reading = [other for other in self._reading if other is not row]
                if read is not None:
                    self._keep(row.signature, read)
                self._changed.notify_all()
        prefix = PrefixState(self.engine, logits, read)
        yield prefix
        if prefix.written:
            with self._changed:
                self._keep((*row.signature, *prefix.written), read)

    def _is_worth_waiting(self, row: PromptRow) -> bool:
        """Whether a prompt that is being read has a longer beginning in common with ``row`` than the remembered ones."""
        if not self._reading:
            return False
        kept = max((common_prefix_length(slot.signature, row.signature) for slot in self._kept), default=0)
        return any(common_prefix_length(r.signature, row.signature) >= kept + WORTH_WAITING for r in self._reading)

    def _continue(self, row: PromptRow) -> tuple[PromptState | None, int]:
        """A state that has read the beginning of ``row``, and the length of that beginning.

        A remembered state is handed out itself if at least half of it is of use, else a copy, so that its own prompt stays remembered.
        """
        shared = [min(common_prefix_length(s.signature, row.signature), len(row.input_ids) - 1) for s in self._kept]
        start = max(shared, default=0)
        if not start:
            return None, 0
        best = shared.index(start)
        handed_out = 2 * start >= len(self._kept[best].signature)
        state = self._kept.pop(best).state if handed_out else self._kept[best].state.fork([0])
        state.truncate(start, count_pictures(row.signature[:start]))
        return state, start

    def _keep(self, signature: tuple[int | str, ...], state: PromptState) -> None:
        """Remember a copy of ``state`` instead of those that it continues."""
        self._kept = [slot for slot in self._kept if slot.signature != signature[: len(slot.signature)]]
        self._kept.append(Slot(signature, state.fork([0])))
        while len(self._kept) > self.slots or (len(self._kept) > 1 and self._tokens() > SLOT_TOKENS):
            del self._kept[0]

    def _tokens(self) -> int:
        return sum(len(slot.signature) for slot in self._kept)


def count_pictures(signature: Sequence[int | str]) -> int:
    return sum(isinstance(x, str) for x in signature)


def common_prefix_length(left: Sequence[int | str], right: Sequence[int | str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
