"""GGUF files: metadata and tensors of a language model in one file, as llama.cpp and its tools write them.

The header is read here in one pass over the mapped file, every length checked against the file's (the ``gguf`` library's reader
takes ten times as long over a vocabulary); what the quantised bytes mean is the library's knowledge.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 16  # of metadata, and of tensors


class TensorEntry(NamedTuple):
    """A tensor in the file: rows first, ``start`` and ``size`` in bytes from the file's beginning."""

    shape: tuple[int, ...]
    dtype: int
    start: int
    size: int


@dataclass(frozen=True)
class GGUF:
    """An open file: ``metadata`` as Python values, ``entries`` by name."""

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, TensorEntry]
    data: mmap.mmap

    def array(self, name: str) -> NDArray[np.float32]:
        """A tensor in fp32, its own copy.

        InputError: there is none of this name, its values are not finite, or it is stored in a way that the library cannot read.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        if name not in self.entries:
            raise InputError(f"{self.path} has no tensor {name}")
        shape, dtype, start, size = self.entries[name]
        stored = np.frombuffer(self.data, np.uint8, size, start)
        try:
            values = dequantize(stored.reshape(*shape[:-1], -1), GGMLQuantizationType(dtype))
        except NotImplementedError:
            kind = GGMLQuantizationType(dtype).name
            raise InputError(f"{self.path}: the tensor {name} is stored as {kind}, which cannot be read") from None
        values = values.reshape(shape)
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise InputError(f"{self.path}: the tensor {name} has values that are not finite")
        return values.copy() if dtype == GGMLQuantizationType.F32 else values

    def tensor(self, name: str) -> Tensor:
        """``array`` for torch."""
        import torch

        return torch.from_numpy(self.array(name))


def read_gguf(path: Path | str) -> GGUF:
    """Open a GGUF file and read its header.

    InputError: it cannot be read, is not GGUF, is truncated, or its header makes no sense.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path} is empty") from None
    try:
        return _read(path, data)
    except struct.error:
        raise InputError(f"{path} is truncated, or not a GGUF file") from None
    except InputError:
        raise
    except (ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{path} is not a usable GGUF file: {error}") from None


def _read(path: Path, data: mmap.mmap) -> GGUF:
    if data[:4] != b"GGUF":
        raise InputError(f"{path} is not a GGUF file")
    header = _Header(data)
    header.at = 4
    version, tensors, count = header.scalar("<I"), header.scalar("<Q"), header.scalar("<Q")
    if version not in VERSIONS:
        raise InputError(f"{path} is GGUF of version {version} (or big-endian): versions 2 and 3 can be read")
    if max(tensors, count) > MAX_ENTRIES:
        raise ValueError(f"it announces {max(tensors, count)} entries")
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = header.string()
        metadata[key] = header.value(header.scalar("<I"))
    tensor_infos = [header.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise ValueError(f"it is aligned to {alignment!r}")
    begin = -(-header.at // alignment) * alignment
    entries = {}
    for name, shape, dtype, offset in tensor_infos:
        size = _stored_bytes(shape, dtype)
        if name in entries:
            raise ValueError(f"the tensor {name} is there twice")
        if begin + offset + size > len(data):
            raise InputError(f"{path} is truncated: the tensor {name} ends behind the end of the file")
        entries[name] = TensorEntry(shape, dtype, begin + offset, size)
    return GGUF(path, metadata, entries, data)


def _stored_bytes(shape: tuple[int, ...], dtype: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(dtype)]
    numbers = 1
    for length in shape:
        numbers *= length
    if not numbers or shape[-1] % block:
        raise ValueError(f"a tensor of the shape {shape} cannot be cut into blocks of {block}")
    return numbers // block * size


class _Header:
    """A cursor over the header; ``struct.error`` where the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        start = self.at + 8
        (length,) = struct.unpack_from("<Q", self.data, self.at)
        if length > len(self.data) - start:
            raise struct.error
        self.at = start + length
        return self.data[start : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        kind, length = self.scalar("<I"), self.scalar("<Q")
        if length > len(self.data) - self.at:
            raise struct.error
        if kind == STRING:
            return [self.string() for _ in range(length)]
        form = f"<{length}{SCALARS[kind][1]}"
        values = list(struct.unpack_from(form, self.data, self.at))
        self.at += struct.calcsize(form)
        return values

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (rows first; the file lists columns first), dtype, offset."""
        name, dims = self.string(), self.scalar("<I")
        if not 1 <= dims <= 4:
            raise ValueError(f"the tensor {name} has {dims} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(dims))[::-1]
        return name, shape, self.scalar("<I"), self.scalar("<Q")
