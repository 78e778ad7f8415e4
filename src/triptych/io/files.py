"""Writing files as a whole or not at all."""

import os
from pathlib import Path

from triptych.errors import InputError, TriptychError


def write_file(path: Path, data: bytes) -> None:
    """Write beside, then replace: a reader sees the old file or the new one, never half of one.

    Raises InputError where the folder is missing, TriptychError where the machine refuses.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            beside.write_bytes(data)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise TriptychError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
