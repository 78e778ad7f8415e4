"""The beginning of a prompt is read once: a prompt that begins as the last one did goes on from where they part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from triptych.systems.flamingo import Flamingo, FlamingoState, flamingo_prompt


class Row(NamedTuple):
    """One prompt. ``signature``: its tokens, each picture by its content, so that equal prompts have equal signatures.
    ``blind_from``: the position from which
    its text looks at no picture."""

    input_ids: list[int]
    signature: tuple[int | str, ...]
    visual_tokens: Tensor  # [N, R, D]
    blind_from: int | None = None

    def until(self, length: int) -> Row:
        """Its beginning."""
        pictures = sum(isinstance(x, str) for x in self.signature[:length])
        return Row(self.input_ids[:length], self.signature[:length], self.visual_tokens[:pictures])


@dataclass
class Begun:
    """A prompt that has been read: a ``generate.StepModel`` for one row. ``written``: what was read into its state behind it."""

    model: Flamingo
    logits: Tensor  # [1, V]
    state: FlamingoState
    written: list[int] = field(default_factory=list)

    def prefill(self, inputs: None = None) -> tuple[Tensor, FlamingoState]:
        return self.logits, self.state

    def step(self, ids: Tensor, state: FlamingoState) -> tuple[Tensor, FlamingoState]:
        if state is self.state:
            self.written += ids.tolist()
        return self.model.step(ids, state)


class PrefixMemory:
    """Keeps the state of the last prompt. Whoever reads with it has it alone; others meanwhile begin anew."""

    def __init__(self, model: Flamingo, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self._kept: tuple[tuple[int | str, ...], FlamingoState] | None = None

    @contextmanager
    def begun(self, row: Row) -> Iterator[Begun]:
        """The prompt, read. What is written behind it is remembered with it, unless it was beams."""
        kept, self._kept = self._kept, None
        state, start = None, 0
        if kept is not None:
            start = min(alike(kept[0], row.signature), len(row.input_ids) - 1)
        pictures = sum(isinstance(x, str) for x in row.signature[:start])
        if kept is not None and start:
            state = kept[1]
            state.truncate(start, pictures)
        prompt = flamingo_prompt(
            [row.input_ids[start:]], row.visual_tokens[pictures:], [len(row.visual_tokens) - pictures], self.pad_id
        )
        logits, state = self.model.prefill(prompt._replace(state=state))
        begun = Begun(self.model, logits, state)
        yield begun
        self._kept = (*row.signature, *begun.written), state


def alike(left: Sequence[int | str], right: Sequence[int | str]) -> int:
    """How long both are the same."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
