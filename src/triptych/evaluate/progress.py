"""A progress bar on stderr, if that is a terminal."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one by one, with a progress bar; ``what``: its label."""
    console = Console(stderr=True)
    yield from track(items, what, console=console, disable=not console.is_terminal)


def batches(items: Sequence[Item], size: int, what: str) -> Iterator[Sequence[Item]]:
    """The items in batches of ``size``, with a progress bar."""
    for first in progress(range(0, len(items), size), what):
        yield items[first : first + size]
