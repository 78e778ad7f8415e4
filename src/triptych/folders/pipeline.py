"""The pipeline of a run: photos are decoded ahead in threads, described in batches, and written as results come.

    names -> threads: decode, upright, RGB -> batches -> describe (the model) -> sidecars -> journal -> results on screen

At most ``AHEAD`` batches of decoded photos wait in memory, with ``BATCH_PIXELS`` together. A result is in the journal only after its
sidecars are on the disk, so that a run that is killed continues without gaps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from PIL.Image import Image

from triptych.errors import InputError
from triptych.folders.journal import Journal, Record, result_text
from triptych.folders.sidecars import Sidecars
from triptych.io.images import decoded_pixels, load_image

PHOTO_BATCH = 8
AHEAD = 2  # batches that are decoded while the model works on another one
BATCH_PIXELS = 50_000_000
"""Of a batch, and of all those that are decoded ahead. A photo with more is a batch of its own."""
THREADS = 2
SIDE = 512  # pixels: large JPEGs are decoded at a reduced size of at least twice this


class Description(NamedTuple):
    """The description of one photo. ``details``: further fields of the record (log-probability, scores). ``tags``: keywords and their
    probabilities, which the record then has instead of the text. ``field``: the record's field for the text, ``caption`` or ``answer``."""

    text: str
    details: Record
    tags: Mapping[str, float] | None = None
    field: str = "caption"


Describe = Callable[[Sequence[Image]], Sequence[Description]]
Runner = Callable[[Iterator[str], Sidecars], Iterator[Sequence[Record]]]
"""The names of photos -> their records, in batches."""


@dataclass
class Summary:
    """The numbers of described, skipped and failed photos of a run. One that is described, but whose text cannot be written beside or
    into it, has failed."""

    described: int = 0
    skipped: int = 0  # described by an earlier run
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first MAX_FAILURES, with their reasons
    failed: int = 0
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        if "error" not in record:
            self.described += 1
            return
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append((record["image"], record["error"]))

    def without(self, mended: Collection[str]) -> Summary:
        """The summary without the failures of these photos."""
        failures = [failure for failure in self.failures if failure[0] not in mended]
        return replace(self, failures=failures, failed=self.failed - len(self.failures) + len(failures))


MAX_FAILURES = 1000
MAX_NAMES = 1 << 18  # of photos with missing sidecars, in memory


def describe_photos(
    names: Iterable[str],
    runner: Runner,
    *,
    journal: Journal | None = None,
    sidecars: Sidecars | None = None,
    strict: bool = False,
    result: Callable[[Record], None] = lambda record: None,
    progress: Callable[[int], None] = lambda photos: None,
    summary: Summary | None = None,
) -> Summary:
    """Describe every photo that has not been described yet.

    Args:
        names: paths of photos.
        runner: describes them: ``on_this_machine(...)`` or ``folders.cluster.OnRay(...)``.
        journal: a record of each photo is appended to it. Photos that it has are skipped; their missing sidecars are written from it.
            Without a journal, photos whose sidecars exist are skipped.
        sidecars: the files to write beside the photos; None = none.
        strict: stop at the first photo that fails instead of leaving it out; the results so far are kept.
        result: called with the record of each photo, as it comes.
        progress: called with the number of photos done since the last call.
        summary: of earlier calls, to which this one is added.

    Raises:
        InputError: with ``strict``, a photo cannot be read.
        TriptychError: the disk is full; the results so far are kept.
    """
    summary, started = summary or Summary(), time.perf_counter()
    sidecars = sidecars or Sidecars()
    missing = None if journal is None else MissingSidecars(journal, sidecars)

    def pending() -> Iterator[str]:
        for name in names:
            if sidecars.complete(name) if journal is None else name in journal:
                if missing is not None:
                    missing.check(name)
                summary.skipped += 1
                progress(1)
            else:
                yield name

    def count(record: Record) -> None:
        if "error" in record and strict:
            raise InputError(record["error"])
        summary.add(record)

    for records in runner(pending(), sidecars):
        if journal is not None:
            journal.append(records)
        for record in records:
            result(record)
            count(record)
        progress(len(records))
    if missing is not None:
        for failure in missing.write():
            count(failure)
    summary.seconds += time.perf_counter() - started
    return summary


class MissingSidecars:
    """Writes missing sidecars of photos that are already in the journal, from their records there."""

    def __init__(self, journal: Journal, sidecars: Sidecars) -> None:
        self.journal, self.sidecars = journal, sidecars
        self.names = set[str]()
        self.failures: list[Record] = []

    def check(self, name: str) -> None:
        """Remember a photo of the journal if it lacks a sidecar."""
        if self.sidecars.fill_gaps and not self.sidecars.complete(name):
            self.names.add(name)
            if len(self.names) == MAX_NAMES:
                self.write()

    def write(self) -> list[Record]:
        """Write the sidecars of the remembered photos; returns the failures so far."""
        for record in self.journal.records() if self.names else ():
            name = record["image"]
            if name not in self.names or "error" in record:
                continue
            own = {key: value for key, value in record.items() if key not in self.journal.settings}
            try:
                self.sidecars.write(name, own, result_text(own))
            except InputError as error:
                self.failures.append({"image": name, "error": str(error)})
        self.names.clear()
        return self.failures


def on_this_machine(describe: Describe) -> Runner:
    """A runner that describes photos in this process. ``describe``: a batch of RGB photos -> a description of each."""
    return partial(described_batches, describe)


def described_batches(describe: Describe, names: Iterator[str], sidecars: Sidecars) -> Iterator[list[dict[str, Any]]]:
    """The records of photos in batches, after their sidecars have been written."""
    for batch in decoded_batches(names):
        readable = [photo for _, photo in batch if isinstance(photo, Image)]
        started = time.perf_counter()
        described = iter(describe(readable) if readable else ())
        seconds = round((time.perf_counter() - started) / max(1, len(readable)), 3)
        records: list[dict[str, Any]] = []
        for name, photo in batch:
            record: dict[str, Any] = {"image": name}
            try:
                if isinstance(photo, InputError):
                    raise photo
                text, details, tags, field_name = next(described)
                text = sidecars.decorated(text)
                content = {field_name: text} if tags is None else {"tags": dict(tags)}
                record |= {**content, **details, "seconds": seconds}
                sidecars.write(name, record, text)
            except InputError as error:
                record["error"] = str(error)
            records.append(record)
        yield records


def decoded_batches(names: Iterator[str]) -> Iterator[list[tuple[str, Image | InputError]]]:
    """Batches of names with their photos, decoded ahead in threads; for an unreadable photo the error instead."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[int, list[tuple[str, Future[Image | InputError]]]]] = deque()

        def first() -> list[tuple[str, Image | InputError]]:
            return [(name, future.result()) for name, future in waiting.popleft()[1]]

        for pixels, part in batches_by_size(names):
            while waiting and (len(waiting) > AHEAD or sum(size for size, _ in waiting) + pixels > BATCH_PIXELS):
                yield first()
            waiting.append((pixels, [(name, pool.submit(decode_photo, name)) for name in part]))
        while waiting:
            yield first()


def batches_by_size(names: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Batches of ``PHOTO_BATCH`` names, or of fewer with ``BATCH_PIXELS`` at most, and the pixels of each."""
    batch: list[str] = []
    total = 0
    for name in names:
        pixels = decoded_pixels(name, SIDE)
        if batch and (len(batch) == PHOTO_BATCH or total + pixels > BATCH_PIXELS):
            yield total, batch
            batch, total = [], 0
        batch.append(name)
        total += pixels
    if batch:
        yield total, batch


def decode_photo(name: str) -> Image | InputError:
    try:
        return load_image(name, target=SIDE)
    except InputError as error:
        return error
