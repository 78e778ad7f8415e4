"""Optional packages, and the error that names the extra to install when one is missing."""

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
    """A context for imports of optional packages: ``with importing("torch", "training"): import torch``.

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
    """Whether torch is installed; does not import it."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):  # sys.modules holds something else under its name
        return False
