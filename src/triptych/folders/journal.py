"""The journal of a run: one JSON object per line, appended as results come, from which a later run continues.

When a journal is opened, the beginning of a record at its end, which an interrupted run leaves, is cut off, and photos that failed are
removed, so that they are tried again. The text of a photo is kept even if it could not be written beside or into the photo; a run that
replaces texts tries such a photo again, too. Earlier versions wrote answers in the field ``caption``: it is renamed.

A run that replaces what the file has writes a second file beside it, ``.unfinished``, which names the run, and removes it at its end. So
a replacing run that was interrupted is continued, and one that had ended starts over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triptych.errors import InputError
from triptych.io.files import write_error, write_file

Record = Mapping[str, Any]
UNFINISHED = ".unfinished"
RECORD_START = b'{"image": "'
RESULT_FIELDS = frozenset(
    ("image", "caption", "answer", "tags", "logprob", "seconds", "error")
)  # the others are settings


class Journal:
    """The journal in the file ``path``.

    Args:
        path: the file; made if it is missing.
        settings: the settings behind the results, as plain values. Every record has them; only a journal with the same is continued.
        replacing: the run, as plain values, if it replaces the file's content. It is continued if an equal run was interrupted.

    Raises:
        InputError: the file is not a journal, or was written with other settings.
        TriptychError: the file cannot be written.
    """

    def __init__(self, path: Path, settings: Record, replacing: Record | None = None) -> None:
        self.path, self.settings = path, dict(settings)
        self._unfinished = path.with_name(path.name + UNFINISHED)
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
        try:
            if not (replacing is not None and path.exists() and self._is_unfinished(replacing)):
                self._unfinished.unlink(missing_ok=True)  # first: without it, an interrupted start is started over
                if replacing is not None:
                    write_file(path, b"")
                    write_file(self._unfinished, _run_line(replacing))
            if not path.exists():
                write_file(path, b"")
            self._repair(keep_texts=replacing is None)
            self._done = np.sort(np.fromiter(map(_key, self._names()), np.uint64))
        except OSError as error:
            raise write_error(path, error) from None

    def __contains__(self, image: str) -> bool:
        """Whether the journal had a result for this photo when it was opened (by a 64-bit hash of the name)."""
        place = int(np.searchsorted(self._done, _key(image)))
        return place < len(self._done) and self._done[place] == _key(image)

    def __len__(self) -> int:
        return len(self._done)

    def append(self, records: Sequence[Record]) -> None:
        """Append results and flush them to the disk. Raises TriptychError: the disk is full, or the file is gone."""
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(_line({**record, **self.settings}) for record in records))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from None

    def finish(self) -> None:
        """Record that the run has described all photos: an equal one that replaces results starts over. Raises TriptychError."""
        try:
            self._unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self._unfinished, error) from None

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, in order."""
        with self.path.open("rb") as file:
            yield from map(_parse, file)

    def _is_unfinished(self, run: Record) -> bool:
        """Whether an equal run was interrupted."""
        try:
            return self._unfinished.read_bytes() == _run_line(run)
        except FileNotFoundError:
            return False

    def _names(self) -> Iterator[str]:
        return (record["image"] for record in self.records())

    def _repair(self, keep_texts: bool) -> None:
        """Cut off an incomplete record at the end, remove failures, rename outdated fields, and check that the settings are the same."""
        keep = 0
        rewrite = False
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if _is_incomplete(line):
                    break
                self._check(line, number)
                record = _parse(line)
                rewrite |= "error" in record or _is_outdated(record) or not line.endswith(b"\n")
                keep = file.tell()
        os.truncate(self.path, keep)
        if rewrite:
            with self.path.open("rb") as file:
                kept = (r for r in map(_parse, file) if "error" not in r or (keep_texts and is_described(r)))
                write_file(self.path, lambda new: new.writelines(_line(_renamed(record)) for record in kept))

    def _check(self, line: bytes, number: int) -> None:
        try:
            record = _parse(line)
            _key(record["image"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{self.path}, line {number}: not a result of an earlier run; name another --out, or use --existing overwrite"
            ) from None
        for name in sorted(self.settings.keys() | record.keys() - RESULT_FIELDS):
            old, new = record.get(name), self.settings.get(name)
            if old != new:
                raise InputError(
                    f"{self.path} was written {_setting(name, old)}, and this run is {_setting(name, new)}: "
                    "name another --out, or use --existing overwrite"
                )


def _setting(name: str, value: object) -> str:
    return f"without {name}" if value is None else f"with {name} {value!r}"


def _run_line(run: Record) -> bytes:
    return f"{json.dumps(run, sort_keys=True)}\n".encode()


def result_text(record: Record) -> str:
    """The text of a result: its caption, answer or keywords; empty for a failure."""
    text: str = record.get("caption") or record.get("answer") or ", ".join(record.get("tags", ()))
    return text


def is_described(record: Record) -> bool:
    """Whether the record has a text or keywords; if it has an error, too, they could not be written beside or into the photo."""
    return any(name in record for name in ("caption", "answer", "tags"))


def _is_outdated(record: Record) -> bool:
    """Whether an earlier version wrote the answer to a question as a caption."""
    return "question" in record and "caption" in record


def _is_incomplete(line: bytes) -> bool:
    """Whether the line is the beginning of a record. Other text is not: it may be a user's."""
    if line.endswith(b"\n") or not line.startswith(RECORD_START[: len(line)]):
        return False
    try:
        _parse(line)
    except ValueError:
        return True
    return False


def _renamed(record: Record) -> Record:
    """The record with today's names of fields, in the same order, and without an error."""
    names = {"caption": "answer"} if _is_outdated(record) else {}
    return {names.get(name, name): value for name, value in record.items() if name != "error"}


def _line(record: Record) -> bytes:
    return f"{json.dumps(record, ensure_ascii=False)}\n".encode("utf-8", "surrogateescape")


def _parse(line: bytes) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line.decode("utf-8", "surrogateescape"))
    return record


def _key(name: str) -> np.uint64:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
