"""Files of named arrays: written and read; damaged, huge and hostile ones are refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from triptych.errors import InputError
from triptych.io import arrays
from triptych.io.arrays import array_bytes, read_arrays

PICKLE = array_bytes({"a": np.array([print], object)})


def huge_header() -> bytes:
    """An array that claims a trillion numbers."""
    file, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    return file.getvalue()


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(array_bytes({"a": np.arange(3), "b": np.array(["x"])}))
    assert read_arrays(tmp_path / "a.npz", lambda stored: (stored["a"].tolist(), stored["b"].tolist())) == (
        [0, 1, 2],
        ["x"],
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04broken", b"\x80\x04]q\x00.", huge_header(), array_bytes({"b": np.arange(3)}), PICKLE],
)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz cannot be read"):
        read_arrays(tmp_path / "a.npz", lambda stored: stored["a"])


def test_the_bound_is_on_the_unpacked_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 5 * 2**20)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(6 * 2**20, np.int8))
    with pytest.raises(InputError, match="6 MiB of arrays: at most 5 are read"):
        read_arrays(tmp_path / "a.npz", lambda stored: stored["a"])
