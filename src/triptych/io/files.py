"""Atomic writing: a file is written completely or not at all."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from triptych.errors import InputError, TriptychError

MAX_JSON = 64 << 20  # bytes


def write_file(path: Path, content: bytes | str | Callable[[BinaryIO], object], *, fsync: bool = False) -> None:
    """Write ``content`` to ``path``: readers get the old file or the new one, never half of one.

    Args:
        content: bytes, a text (written as UTF-8), or a function that writes to the open file.
        fsync: wait until it is on the disk, so that it survives a power failure.

    Raises:
        InputError: there is no such folder, or ``path`` is one.
        TriptychError: the file cannot be written, for instance because the disk is full.
    """
    with replacement(path, fsync=fsync) as beside, beside.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """``value`` as JSON in UTF-8. The bytes of a file's name that are not UTF-8 are escaped, so that they are read back as they were."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent).encode()


@contextmanager
def replacement(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """The path of a new file in the same folder, which replaces ``path`` when the block ends without an exception.

    For writers that need a path; otherwise use `write_file`. A link is kept: its target is replaced.
    Raises as `write_file`.
    """
    check_writable(path)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            yield beside
            if fsync:
                sync(beside)
            beside.replace(target)
            if fsync:
                sync(target.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def check_writable(path: Path) -> None:
    """Call it before long work whose result becomes the file ``path``. Raises InputError: its folder is missing, or it is one."""
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")


def check_unused(folder: Path) -> None:
    """Call it before writing a new folder. Raises InputError: something other than an empty folder is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and is not an empty folder: name another")


def write_error(path: Path, error: OSError) -> TriptychError:
    """The error for a file that cannot be written, in one line that says what to do."""
    if is_disk_full(error):
        return TriptychError(f"cannot write {path}: the disk is full; free some space and try again")
    return TriptychError(f"cannot write {path}: {error.strerror or error}")


def is_disk_full(error: OSError) -> bool:
    """Also where a library raises it without a number."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file. Raises InputError: it cannot be read, or is larger than ``most`` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > most:
        raise InputError(f"{path} is too large ({most >> 20} MB at most)")
    return data


def read_bounded_text(path: Path, most: int) -> str:
    """The text of a UTF-8 file. Raises InputError: as ``read_bounded``, or it is not UTF-8."""
    try:
        return read_bounded(path, most).decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from None


def read_json_object(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError: it cannot be read, is larger than ``most`` bytes, or is none."""
    try:
        content = json.loads(read_bounded(path, most))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def sync(path: Path) -> None:
    """Force a file or a folder to the disk (Windows can sync neither in this way)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
