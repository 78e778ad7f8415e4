"""The photos of folders, one at a time, so that memory does not grow with their number."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from triptych.errors import InputError
from triptych.io.folders import SUFFIXES, is_picture_name, left_out, walk_folders

LOG = logging.getLogger(__name__)


def walk_photos(
    sources: Iterable[str | os.PathLike[str]], recursive: bool = False, others: list[str] | None = None
) -> Iterator[str]:
    """The paths of the photos in ``sources`` (photos and folders), folder by folder, in order of their names.

    A folder gives the files in it that have a photo's suffix and are not hidden; ``recursive`` also those of the folders below it.
    Links are followed, and each folder is listed once (``io.folders.walk_folders``). ``others`` gets the names of the other files in
    the folders.

    Raises:
        InputError: a source does not exist, or a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot list this folder: {error.strerror}") from None

    for source in sources:
        path = Path(source)
        if path.is_dir():
            for folder, names in islice(walk_folders(str(path), refuse), None if recursive else 1):
                for name in names:
                    if is_picture_name(name):
                        yield os.path.join(folder, name)  # noqa: PTH118 (millions of them)
                    elif others is not None:
                        others.append(name)
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
