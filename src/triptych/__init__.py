"""Triptych: Show, Attend and Tell, Flamingo and BLIP-2 in one package."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.errors import InputError, TriptychError
    from triptych.tasks import Answer, load

__all__ = ["Answer", "InputError", "TriptychError", "load"]

try:
    __version__ = version("triptych")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import on first use: ``import triptych`` does not load torch."""
    if name in ("Answer", "load"):
        from triptych import tasks

        return getattr(tasks, name)
    if name in ("InputError", "TriptychError"):
        from triptych import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")
