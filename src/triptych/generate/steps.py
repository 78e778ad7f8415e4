"""What the search needs of a model. Shapes: B inputs, K rows (beams, samples) of each, V tokens."""

from __future__ import annotations

from typing import Any, Protocol, Self, TypeVar


class State(Protocol):
    def reorder(self, rows: Any) -> Self:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``; inputs may be dropped, K may change, rows of one input stay together."""
        ...


Inputs = TypeVar("Inputs", contravariant=True)
StateT = TypeVar("StateT", bound=State)


class StepModel(Protocol[Inputs, StateT]):
    """A model that reads B inputs and writes token by token. Logits are arrays of NumPy or torch; ``ids`` and ``rows`` are of the same."""

    def prefill(self, inputs: Inputs) -> tuple[Any, StateT]:
        """The logits of the first new token ``[B, V]``, and a state with one row for each input."""
        ...

    def step(self, ids: Any, state: StateT) -> tuple[Any, StateT]:
        """``ids [B * K]`` -> the logits of the next token ``[B * K, V]``, and the state after ``ids``."""
        ...
