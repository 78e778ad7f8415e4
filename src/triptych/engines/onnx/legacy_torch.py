"""Reading files that torch wrote before its version 1.6, without torch: four pickles, then the storages one after another."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from triptych.evidence import Floats

TORCH_TYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}


@dataclass
class _Storage:
    """The memory of tensors; filled when its data is reached in the file."""

    dtype: str
    length: int
    data: NDArray[Any] | None = None


@dataclass
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> Floats:
        assert self.storage.data is not None
        flat = self.storage.data[self.offset :]
        strides = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).astype(np.float32)


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors and ordered dicts, and refuses everything else."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in TORCH_TYPES:
            return partial(_Storage, TORCH_TYPES[name])
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, key: Any) -> _Storage:
        _, make, name, _, length, *_ = key
        return self.storages.setdefault(name, make(length))


def read_torch_file(path: Path) -> dict[str, Floats]:
    """The tensors of a state dict that torch wrote before its version 1.6 (not a zip archive), in fp32.

    Only for files with a known sha256: sizes are not validated.
    """
    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the protocol's version, the machine's sizes
            _Unpickler(file).load()
        content = _Unpickler(file)
        state = content.load()
        for name in _Unpickler(file).load():
            storage = content.storages[name]
            file.seek(8, 1)  # the length again
            size = storage.length * np.dtype(storage.dtype).itemsize
            storage.data = np.frombuffer(file.read(size), storage.dtype)
    return {name: tensor.array() for name, tensor in state.items()}
