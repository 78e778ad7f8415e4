"""The photos of folders, one at a time, so that memory does not grow with their number."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from triptych.errors import InputError
from triptych.io.folders import SUFFIXES, is_picture_name, left_out

LOG = logging.getLogger(__name__)


def walk_photos(
    sources: Iterable[str | os.PathLike[str]], recursive: bool = False, others: list[str] | None = None
) -> Iterator[str]:
    """The paths of the photos in ``sources`` (photos and folders), in order of their names.

    A folder gives the files in it that have a photo's suffix and are not hidden; ``recursive`` also those of the folders below it.
    Links are followed; a folder that was met before on the way down is not entered again. ``others`` gets the names of the
    other files in the folders.

    Raises:
        InputError: a source does not exist, or a folder cannot be listed.
    """
    for source in sources:
        path = Path(source)
        if path.is_dir():
            yield from _photos_in(path, recursive, (os.path.realpath(path),), others)
        elif path.exists():
            yield str(path)
        else:
            raise InputError(f"{source}: no such file or folder")


def count_photos(sources: Iterable[str | os.PathLike[str]], recursive: bool = False) -> int:
    """How many photos ``walk_photos`` gives; how many other files there are is logged. Raises InputError where there is none."""
    sources, others = list(sources), list[str]()
    count = sum(1 for _ in walk_photos(sources, recursive, others))
    if not count:
        hint = "" if recursive else "; --recursive also looks into the folders below"
        raise InputError(f"{', '.join(map(str, sources))}: no photos here (known: {' '.join(SUFFIXES)}){hint}")
    if others:
        LOG.warning(left_out(", ".join(map(str, sources)), others))
    return count


def _photos_in(folder: Path, recursive: bool, above: tuple[str, ...], others: list[str] | None) -> Iterator[str]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder: {error.strerror}") from None
    for entry in entries:
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if recursive and real not in above:
                yield from _photos_in(Path(entry.path), recursive, (*above, real), others)
        elif is_picture_name(entry.name):
            yield entry.path
        elif others is not None:
            others.append(entry.name)
