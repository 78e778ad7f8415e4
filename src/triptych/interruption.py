"""Stopping text generation from outside, between two steps.

A server sets ``interruption`` in the context of a request; ``generate`` calls it before every step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

interruption: ContextVar[Callable[[], bool] | None] = ContextVar("interruption", default=None)


class InterruptedGeneration(Exception):  # noqa: N818 (it is no failure)
    """The text is no longer wanted."""


def check_interruption() -> None:
    """Raises InterruptedGeneration: the function in ``interruption`` says that generation should stop."""
    interrupted = interruption.get()
    if interrupted is not None and interrupted():
        raise InterruptedGeneration
