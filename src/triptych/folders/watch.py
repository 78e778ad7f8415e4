"""Watching folders for new photos. A photo is complete when its size and time have not changed for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from triptych.errors import InputError
from triptych.folders.journal import Record
from triptych.folders.scan import walk_photos
from triptych.io.folders import is_picture_name

POLL = 250  # milliseconds
SETTLED = 1.0  # seconds without a change


class FileState(NamedTuple):
    size: int
    mtime_ns: int


class Arrivals:
    """The photos in ``folders``, and below with ``recursive``, then new and changed ones as they arrive.

    Iterating yields lists of paths until ctrl-C or ``stop``, an empty list every ``POLL`` milliseconds.

    Raises InputError: a path is not a folder, or watchfiles is not installed.
    """

    def __init__(self, folders: Iterable[str], recursive: bool = False, stop: Event | None = None) -> None:
        self.folders, self.recursive, self.stop = [str(Path(folder)) for folder in folders], recursive, stop
        for folder in self.folders:
            if not os.path.isdir(folder):  # noqa: PTH112
                raise InputError(f"--watch follows folders, and {folder} is not one: name a folder")
        try:
            self._watch: Any = import_module("watchfiles").watch
        except ImportError:
            raise InputError("--watch needs watchfiles: pip install 'triptych[watch]'") from None
        self._changing: dict[str, tuple[FileState, float]] = {}  # the last state, and the time when it was first found

    def __iter__(self) -> Iterator[list[str]]:
        changes = self._watch(
            *self.folders,
            watch_filter=None,
            recursive=self.recursive,
            stop_event=self.stop,
            debounce=POLL,
            rust_timeout=POLL,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        names: Iterable[str] = ()
        for number, changed in enumerate(changes):
            if number == 0:  # files from before the watch started
                names = walk_photos(self.folders, self.recursive)
            else:
                names = (name for _, path in changed for name in self._photos_at(path))
            for name in names:
                self._changing.setdefault(name, (FileState(-1, 0), 0.0))
            yield self._complete()

    def _complete(self) -> list[str]:
        """Remove and return the photos that have not changed for ``SETTLED`` seconds."""
        now = time.monotonic()
        complete: list[str] = []
        for name, (state, since) in list(self._changing.items()):
            new = file_state(name)
            if new is None:
                del self._changing[name]
            elif new != state:
                self._changing[name] = new, now
            elif now - since >= SETTLED:
                del self._changing[name]
                complete.append(name)
        return sorted(complete)

    def _photos_at(self, path: str) -> list[str]:
        """The photos that a change at ``path`` concerns, named as by ``walk_photos``; several if a whole folder was moved in."""
        for folder in self.folders:
            inside = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))  # noqa: PTH100
            parts = Path(inside).parts  # none for the folder itself
            if not parts or any(part.startswith(".") for part in parts):  # elsewhere, or hidden
                continue
            name = os.path.join(folder, inside)  # noqa: PTH118
            if os.path.isdir(name):  # noqa: PTH112
                with suppress(InputError):  # gone by now
                    return list(walk_photos([name], True)) if self.recursive else []
            elif is_picture_name(parts[-1]):
                return [name]
        return []


class WatchedPhotos:
    """What became of each photo, so that one that could not be read is tried again once its file has changed."""

    def __init__(self) -> None:
        self._states: dict[str, FileState | None] = {}  # of files, before they were read
        self._failed: dict[str, FileState | None] = {}  # the state with which a photo failed
        self._described: set[str] = set()

    def due(self, names: Iterable[str]) -> list[str]:
        """The photos among ``names`` that are new, or have changed since they failed."""
        states = {name: file_state(name) for name in names if name not in self._described}
        self._states |= states
        return [name for name, state in states.items() if name not in self._failed or self._failed[name] != state]

    def add(self, record: Record) -> None:
        """Note the result of a photo."""
        name = record["image"]
        if "error" in record:
            self._failed[name] = self._states.get(name, file_state(name))
        else:
            self._described.add(name)

    @property
    def mended(self) -> set[str]:
        """The photos that failed and were described later."""
        return self._described & set(self._failed)


def file_state(name: str) -> FileState | None:
    """None: there is no such file."""
    try:
        state = os.stat(name)  # noqa: PTH116
    except OSError:
        return None
    return FileState(state.st_size, state.st_mtime_ns)
