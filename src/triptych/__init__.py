"""Triptych: Show, Attend and Tell, Flamingo and BLIP-2 in one package."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.errors import InputError, TriptychError
    from triptych.tasks import Answer, load

__all__ = ["Answer", "InputError", "TriptychError", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use: ``import triptych`` loads neither torch nor the package's metadata."""
    if name in ("Answer", "load"):
        from triptych import tasks

        return getattr(tasks, name)
    if name in ("InputError", "TriptychError"):
        from triptych import errors

        return getattr(errors, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("triptych")
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")
