"""Listing the photos of folders, one at a time, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from triptych.errors import InputError
from triptych.io.folders import SUFFIXES, is_picture_name, left_out, walk_folders
from triptych.io.limits import printable

LOG = logging.getLogger(__name__)
URL_START = re.compile(r"(data:|[a-z]+://)", re.IGNORECASE)
OWN_FILES = (".original", ".txt", ".json", ".jsonl", ".xmp", ".unfinished")  # of earlier runs, not reported


@dataclass(frozen=True)
class PhotoShard:
    """One of ``count`` parts of all photos. The part of a photo depends only on its path as given."""

    number: int  # from 1
    count: int

    def has(self, name: str) -> bool:
        if self.count == 1:
            return True
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.count == self.number - 1


ALL_PHOTOS = PhotoShard(1, 1)


def parse_shard(text: str) -> PhotoShard:
    """``3/16`` -> the third of sixteen. Raises InputError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard is {text!r}: give NUMBER/COUNT, such as 1/4, 2/4, 3/4 and 4/4 on four machines")
    return PhotoShard(int(match[1]), int(match[2]))


def walk_photos(
    sources: Iterable[str | os.PathLike[str]], recursive: bool = False, others: list[str] | None = None
) -> Iterator[str]:
    """The paths of the photos in ``sources`` (photos and folders), folder by folder, sorted by name, each once.

    Of a folder those files count that have a photo's suffix and are not hidden; ``recursive``: also those of the folders below it.
    Links are followed, and each folder is listed once (``io.folders.walk_folders``). The names of other files, except sidecars and
    originals, are appended to ``others``.

    Raises:
        InputError: a source does not exist or is an address, or a folder cannot be listed.
    """
    sources, hashes = list(sources), set[int]()
    for name in _walk(sources, recursive, others):
        if len(sources) == 1:
            yield name
        elif (key := hash(name)) not in hashes:
            hashes.add(key)
            yield name


def _walk(sources: Iterable[str | os.PathLike[str]], recursive: bool, others: list[str] | None) -> Iterator[str]:
    """``walk_photos``, with photos of several sources several times."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot list this folder: {error.strerror}") from None

    for source in sources:
        if os.path.isdir(source):  # noqa: PTH112 (a data URL may be too long for a path)
            for folder, names in islice(walk_folders(str(Path(source)), refuse), None if recursive else 1):
                for name in names:
                    if is_picture_name(name):
                        yield os.path.join(folder, name)  # noqa: PTH118 (millions of them)
                    elif others is not None and not name.endswith(OWN_FILES):
                        others.append(name)
        elif os.path.exists(source):  # noqa: PTH110
            yield str(Path(source))
        elif URL_START.match(os.fsdecode(source)):
            raise InputError(
                f"{printable(source)}: --out and the other options of folders take files, not addresses: download it first"
            )
        else:
            raise InputError(f"{printable(source)}: no such file or folder")


def count_photos(
    sources: Iterable[str | os.PathLike[str]], recursive: bool = False, shard: PhotoShard = ALL_PHOTOS
) -> int:
    """The number of photos of ``walk_photos`` that are in ``shard``. Other files are reported in the log.

    Raises InputError: there are no photos at all, in any shard.
    """
    sources, others = list(sources), list[str]()
    total = count = 0
    for name in walk_photos(sources, recursive, others):
        total += 1
        count += shard.has(name)
    if not total:
        hint = "" if recursive else "; --recursive also looks into the folders below"
        raise InputError(f"{', '.join(map(str, sources))}: no photos here (known: {' '.join(SUFFIXES)}){hint}")
    if others:
        LOG.warning(left_out(", ".join(map(str, sources)), others))
    return count
