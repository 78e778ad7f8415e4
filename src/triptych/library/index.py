"""A folder of photos -> the library. Only what is new is embedded, and what was written stays when the run is interrupted.

A photo whose size and time have not changed is not read again. Any other is hashed, and embedded only if the library has no
features of the same bytes, so a photo that was moved, copied or touched costs one read. A folder that was moved as a whole
can be indexed at its new place at the same cost.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from triptych.errors import InputError
from triptych.io.folders import SUFFIXES, is_picture_name, left_out, walk_folders
from triptych.io.images import load_image
from triptych.library.matcher import TOGETHER, Notice, PhotoMatcher
from triptych.library.table import (
    PhotoRow,
    SearchFeatures,
    Stamp,
    create_table,
    delete_rows,
    features_by_hash,
    has_table,
    open_table,
    read_rows,
    tidy,
    write_rows,
    writing,
)

if TYPE_CHECKING:
    from lancedb.table import Table

INDEX_BATCH = 64  # photos written together: what an interruption can cost
INPUT_SIDE = 512  # pixels of a model's input at most: large JPEGs are decoded no larger than they need to be


@dataclass(frozen=True)
class Listing:
    """The photos below a folder, by absolute path; and the folders below it that could not be listed."""

    folder: str
    photos: dict[str, Stamp]
    closed: tuple[str, ...]

    def covers(self, path: str) -> bool:
        """Whether the listing would name this photo if it were there."""
        return _below(path, self.folder) and not any(_below(path, folder) for folder in self.closed)


@dataclass
class Report:
    """The number of photos in the library, and of those that each kind of change concerns."""

    library: str = ""
    photos: int = 0
    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def scan(folder: str | os.PathLike[str], notice: Notice) -> Listing:
    """The photos in ``folder`` and in the folders below it, recognised by suffix, without hidden ones; links are followed.

    ``notice`` is called for each folder that cannot be listed, and with the number of other files. Raises InputError: there is no such
    folder, or no photo in it.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise InputError(f"{folder}: no such folder")
    closed: list[str] = []

    def close(error: OSError) -> None:
        failure = InputError(f"{error.filename}: cannot list this folder: {error.strerror}")
        if error.filename == str(root):
            raise failure from None
        closed.append(str(error.filename))
        notice(failure)

    photos: dict[str, Stamp] = {}
    others: list[str] = []
    for place, names in walk_folders(str(root), close):
        others += [name for name in names if not is_picture_name(name)]
        for name in filter(is_picture_name, names):
            path = os.path.join(place, name)  # noqa: PTH118 (a hundred thousand of them)
            with suppress(OSError):  # a link to nowhere, or gone by now
                state = os.stat(path)  # noqa: PTH116
                if stat.S_ISREG(state.st_mode):
                    photos[path] = Stamp(state.st_size, state.st_mtime_ns)
    if not photos:
        raise InputError(f"{folder}: no photos in this folder or below it (known: {' '.join(SUFFIXES)})")
    if others:
        notice(InputError(left_out(folder, others)))
    return Listing(str(root), photos, tuple(closed))


def index_photos(listing: Listing, library: str | os.PathLike[str], model: PhotoMatcher, notice: Notice) -> Report:
    """Bring ``library`` up to date with the folder that was scanned; makes the library if there is none.

    Photos of other folders stay in it. One that cannot be read is left out, and ``notice`` is called.

    Raises:
        InputError: the library is of another model or version, or it would hold no photo.
        TriptychError: another process is indexing into it.
    """
    started = time.perf_counter()
    with writing(library):
        table = _open_or_create(library, model)
        report = _update(table, listing, model, notice)
        tidy(table)
    if report.photos == 0:
        raise InputError(f"{listing.folder}: none of its {len(listing.photos)} photos can be read")
    return replace(report, library=str(library), seconds=time.perf_counter() - started)


def _update(table: Table, listing: Listing, model: PhotoMatcher, notice: Notice) -> Report:
    update = _Update(table, listing, model, notice)
    stale = update.stale_photos()
    console = Console(stderr=True)
    with Progress(console=console, disable=not stale or not console.is_terminal) as progress:
        task = progress.add_task("photos", total=len(stale))
        for first in range(0, len(stale), INDEX_BATCH):
            batch = stale[first : first + INDEX_BATCH]
            update.write(batch, partial(progress.advance, task))
            progress.update(task, completed=first + len(batch))
    return update.finish()


class _Update:
    """A library while it is brought up to date: what it knew before, and the rows that nothing has replaced yet."""

    def __init__(self, table: Table, listing: Listing, model: PhotoMatcher, notice: Notice) -> None:
        self.table, self.listing, self.model, self.notice = table, listing, model, notice
        self.known = read_rows(table)
        self.homes = defaultdict(list)  # the paths of each sha256
        for row in self.known.values():
            self.homes[row.sha256].append(row.path)
        self.lost = {path for path in self.known if path not in listing.photos and listing.covers(path)}
        self.report = Report()

    def stale_photos(self) -> list[str]:
        """Those that are new, or whose size or time has changed."""
        photos = self.listing.photos.items()
        return [path for path, stamp in photos if path not in self.known or self.known[path].stamp != stamp]

    def write(self, paths: Sequence[str], advance: Callable[[], None]) -> None:
        """Write the rows of photos, then delete those of photos that have moved or cannot be read any more."""
        rows = self.write_readable(paths, advance)
        unread = set(paths) - {row.path for row in rows}
        new = [row for row in rows if row.path not in self.known]
        left = {home for row in new if (home := _left(self.homes[row.sha256]))}
        delete_rows(self.table, sorted((unread & self.known.keys()) | left))
        self.lost -= left
        self.report.changed += sum(row.sha256 != self.known[row.path].sha256 for row in rows if row.path in self.known)
        self.report.added += len(new) - len(left)
        self.report.moved += len(left)
        self.report.skipped += len(unread)

    def write_readable(self, paths: Sequence[str], advance: Callable[[], None]) -> list[PhotoRow]:
        """Write the rows of those photos that can be read, which are returned. Bytes that the library knows are not embedded again."""
        rows = list(_hashed(paths, self.listing, self.notice))
        features = features_by_hash(self.table, {row.sha256 for row in rows})
        unknown = [row for row in rows if row.sha256 not in features]
        for digest, embedded in _embedded(unknown, self.model, self.notice):
            features[digest] = embedded
            advance()
        rows = [row for row in rows if row.sha256 in features]
        write_rows(self.table, rows, features)
        return rows

    def finish(self) -> Report:
        """Delete the rows of photos that are gone."""
        delete_rows(self.table, sorted(self.lost))
        self.report.removed, self.report.photos = len(self.lost), self.table.count_rows()
        return self.report


def _open_or_create(library: str | os.PathLike[str], model: PhotoMatcher) -> Table:
    if has_table(library):
        return open_table(library, model.fingerprint)
    contrast, pooled = model.search_features([Image.new("RGB", (64, 64))])
    return create_table(library, model.fingerprint, (*contrast.shape[1:], pooled.shape[1]))


def _hashed(paths: Sequence[str], listing: Listing, notice: Notice) -> Iterator[PhotoRow]:
    for path in paths:
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            notice(InputError(f"{path}: cannot be read: {error.strerror}"))
        else:
            yield PhotoRow(path, listing.photos[path], digest)


def _embedded(rows: Sequence[PhotoRow], model: PhotoMatcher, notice: Notice) -> Iterator[tuple[str, SearchFeatures]]:
    """The sha256 and the features of each photo that can be read."""
    for first in range(0, len(rows), TOGETHER):
        photos: dict[str, Image.Image] = {}
        for row in rows[first : first + TOGETHER]:
            try:
                photos[row.sha256] = load_image(row.path, INPUT_SIDE)
            except InputError as error:
                notice(error)
        if photos:
            contrast, pooled = (x.astype(np.float16) for x in model.search_features(list(photos.values())))
            yield from zip(photos, map(SearchFeatures, contrast, pooled), strict=True)


def _left(homes: list[str]) -> str | None:
    """One of the places where a photo no longer is; it is removed from ``homes``."""
    for path in homes:
        if not os.path.exists(path):  # noqa: PTH110
            homes.remove(path)
            return path
    return None


def _below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))  # noqa: PTH118
