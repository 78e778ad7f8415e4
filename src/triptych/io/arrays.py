"""Files of named arrays (NumPy's ``.npz``), read without pickle and with a bound on their size."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError

MAX_ARRAY_BYTES = 256 * 2**20  # of all arrays of a file, unpacked

Result = TypeVar("Result")


def array_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of a file of ``arrays``."""
    file = io.BytesIO()
    np.savez(file, **dict(arrays))  # type: ignore[arg-type]
    return file.getvalue()


def read_arrays(path: Path, build: Callable[[Mapping[str, NDArray[Any]]], Result]) -> Result:
    """What ``build`` makes of the arrays of a file.

    Raises InputError: the file is damaged or too large, or ``build`` does not find what it needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_ARRAY_BYTES:
            raise InputError(f"{path} has {size / 2**20:,.0f} MiB of arrays: at most {MAX_ARRAY_BYTES >> 20} are read")
        with np.load(path, allow_pickle=False) as stored:
            return build(stored)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
