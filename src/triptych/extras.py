"""Optional packages: the extras of this package that bring them, and the one line that names the extra where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from triptych.errors import TriptychError

Extra = Literal["torch", "train", "serve", "mcp", "library", "cluster"]


class MissingExtraError(TriptychError):
    """An optional package is not installed; the message names the extra that brings it."""


@contextmanager
def importing(extra: Extra, use: str) -> Iterator[None]:
    """Imports of optional packages stand inside this context: ``with importing("torch", "training"): import torch``.

    Args:
        use: what needs the packages; the message begins with it.

    Raises:
        MissingExtraError: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if missing.partition(".")[0] == "triptych":
            raise
        raise MissingExtraError(f"{use} needs {missing}: pip install 'triptych[{extra}]'") from None


def torch_installed() -> bool:
    """Whether torch could be imported; it is not imported for that."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):  # another program has put something else in its place
        return False
