"""One process at a time: a lock beside what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from triptych.errors import TriptychError


@contextmanager
def only_process(path: Path, busy: str) -> Iterator[None]:
    """Keep other processes from writing to ``path``, a file or a folder, if the file system has locks. A lock ends with its process.

    Raises TriptychError with the message ``busy``: another process has the lock.
    """
    import filelock

    if not path.parent.is_dir():  # writing reports it; the lock would make the folder
        yield
        return
    place = path.with_name(f".{path.name}.lock")
    lock = filelock.FileLock(place, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise TriptychError(busy) from None
    except (OSError, NotImplementedError):  # of a read-only folder, too, which writing reports
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            place.unlink()
        lock.release()
