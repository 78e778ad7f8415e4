"""PyTorch's own files (``.pth``, ``.pt``, ``.bin``, ``.pth.tar``), read without running anything of theirs.

They are pickles, and a pickle may run any code. ``InertPickle`` imports and calls nothing that the file names: containers are themselves,
a tensor becomes a ``StoredTensor``, whose numbers stay in the file until they are asked for, and all else becomes an ``Inert`` object that
holds its state. So whole modules, options, paths and devices beside the tensors are no obstacle.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from triptych.checkpoints.store import TensorStore, check_finite, read_into
from triptych.errors import InputError

CONTAINERS = {
    (module, name): container
    for modules, name, container in (
        (("collections",), "OrderedDict", OrderedDict),
        (("collections",), "defaultdict", defaultdict),
        (("builtins", "__builtin__"), "dict", dict),
        (("builtins", "__builtin__"), "set", set),
    )
    for module in modules
}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)  # of torch: modules with one of ours inside
# What no model names, and a hostile file does. It would not be run either, but the reader should know.
REFUSED = (
    *("os", "posix", "nt", "subprocess", "sys", "importlib", "runpy", "shutil", "socket", "ctypes", "pickle"),
    *("torch.serialization", "torch.hub"),
)
REFUSED_BUILTINS = ("eval", "exec", "compile", "__import__", "open", "input", "breakpoint")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Inert:
    """Stands for an object of a class that is not imported: it can be made, called and filled, and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, *_: object) -> Inert:
        return Inert()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (__dict__, slots)
            state = state[0]
        if isinstance(state, dict):
            vars(self).update({key: value for key, value in state.items() if isinstance(key, str)})

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A pickled tensor: which storage of the file holds its numbers, and how they lie in it."""

    storage: str
    length: int  # of the storage, in numbers
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def check(self, path: Path) -> None:
        """Raises InputError: it reaches beyond its storage, or is larger than it."""
        whole = len(self.size) == len(self.stride) and all(
            isinstance(x, int) and x >= 0 for x in (self.offset, *self.size, *self.stride)
        )
        if not whole or self.offset + self.span > self.length or math.prod(self.size) > self.length:
            raise InputError(f"{path} holds a tensor of shape {self.size} without the bytes for it")

    @property
    def span(self) -> int:
        """How many numbers lie between the first and the last, both included."""
        if 0 in self.size:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))


class InertPickle(pickle._Unpickler):
    """See the module's docstring. The unpickler is the one in Python: the one in C takes gigabytes of memory for a few corrupted bytes
    (its memo is an array)."""

    def __init__(self, file: IO[bytes], path: Path, largest: int) -> None:
        super().__init__(file)
        self.path, self.largest = path, largest
        self.storages: dict[str, int] = {}  # their bytes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return self.parameter
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        builtin = module in ("builtins", "__builtin__") and name in REFUSED_BUILTINS
        if builtin or f"{module}.".startswith(tuple(f"{refused}." for refused in REFUSED)):
            raise InputError(f"{self.path} asks for {module}.{name}, which is refused: no model needs it")
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or (before PyTorch 1.6) a module's class with its source code."""
        if pid[0] == "module":
            return pid[1]
        kind, dtype, key, _, length, *view = pid
        if dtype is Inert:
            raise InputError(f"{self.path} holds tensors of a type that is not covered: save them in 16 or 32 bits")
        size = length * dtype.itemsize
        if kind != "storage" or any(view) or not 0 <= size <= self.largest:
            raise pickle.UnpicklingError("a storage that the file cannot hold")
        self.storages[key] = size
        return key, length, dtype

    def tensor(
        self, storage: tuple[str, int, torch.dtype], offset: int, size: Any, stride: tuple[int, ...], *_: object
    ) -> StoredTensor:
        return StoredTensor(*storage, offset, tuple(size), tuple(stride))

    def parameter(self, data: StoredTensor, *_: object) -> StoredTensor:
        return data


class TorchFile:
    """An open file: ``content`` is what was saved, with a ``StoredTensor`` for each tensor.

    Raises:
        InputError: unreadable, corrupted, compressed, or it asks for what no model needs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}  # where each storage begins, and its bytes
        try:
            with path.open("rb") as file:
                zipped = file.read(4) == b"PK\x03\x04"
                file.seek(0)
                self.content: Any = self._open_zip(file) if zipped else self._open_legacy(file)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # corrupted bytes can raise any exception there is
            raise InputError(f"{path} is not a PyTorch file, or is corrupted ({type(error).__name__})") from None

    def _open_zip(self, file: IO[bytes]) -> Any:
        """What a file of PyTorch 1.6 or later pickles."""
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        [name] = (entry.filename for entry in entries if entry.filename.endswith("/data.pkl"))
        folder = name.removesuffix(".pkl")
        # beside them a TorchScript program has its code, compressed, which is not read
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries if entry.filename.startswith(folder)):
            raise InputError(f"{self.path} is compressed: PyTorch does not write such files")
        content = InertPickle(io.BytesIO(archive.read(name)), self.path, _size(file)).load()
        for entry in entries:
            if entry.filename.startswith(f"{folder}/"):
                # The lengths of the name and of an extra field end the entry's local header.
                file.seek(entry.header_offset + 26)
                begin = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
                self.places[entry.filename[len(folder) + 1 :]] = begin, entry.file_size
        return content

    def _open_legacy(self, file: IO[bytes]) -> Any:
        """The same of an older PyTorch: five pickles in a row (magic, version, system, content, keys), then the storages."""
        pickles = [InertPickle(file, self.path, _size(file)) for _ in range(5)]
        if pickles[0].load() != LEGACY_MAGIC:
            raise InputError(f"{self.path} is not a PyTorch file")
        _, _, content, keys = (unpickler.load() for unpickler in pickles[1:])
        for key in keys:
            begin, size = file.seek(8, os.SEEK_CUR), pickles[3].storages[key]  # past the number of elements
            self.places[key] = begin, size
            file.seek(size, os.SEEK_CUR)
        return content

    def read(self, stored: StoredTensor) -> Tensor:
        """A tensor itself. Raises InputError: it does not lie in its storage."""
        stored.check(self.path)
        begin, size = self.places.get(stored.storage, (0, -1))
        first, end = (n * stored.dtype.itemsize for n in (stored.offset, stored.offset + stored.span))
        if end > size:
            raise InputError(f"{self.path} holds a tensor of shape {stored.size} without the bytes for it")
        numbers = torch.empty(stored.span, dtype=stored.dtype)
        try:
            with self.path.open("rb") as file:
                file.seek(begin + first)
                read_into(file, numbers, self.path)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from None
        tensor = numbers.as_strided(stored.size, stored.stride)
        return tensor if tensor.is_contiguous() else tensor.contiguous()

    def state(self, content: Any = None) -> TorchState:
        """The tensors in ``content`` (the whole when None): a state dict, or what is in a module."""
        content = self.content if content is None else content
        return TorchState(self, dict(tensors_in(content) if isinstance(content, Inert) else flat_tensors(content)))

    def state_dict(self) -> TorchState:
        """The state dict in what a training saved: the whole, or under one of the usual names.

        Raises:
            InputError: there is none.
        """
        inner: Any = self.content
        if isinstance(inner, Mapping):
            named = (inner.get(name) for name in ("model", "model_state_dict", "state_dict"))
            inner = next((entry for entry in named if isinstance(entry, Mapping | Inert)), inner)
        state = self.state(inner)
        if not state:
            names = ", ".join(str(name)[:40] for name in [*inner][:5]) if isinstance(inner, Mapping) else ""
            beside = f" (it holds {names})" if names else ""
            raise InputError(f"{self.path} holds no state dict: neither itself nor under model or state_dict{beside}")
        return state


class TorchState(TensorStore):
    """The tensors of a state dict in a PyTorch file, under their names without the prefixes of what ran the model."""

    def __init__(self, file: TorchFile, tensors: Mapping[str, StoredTensor]) -> None:
        self.file = file
        self.tensors = {plain_name(name): tensor for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return check_finite(self.file.read(self.tensors[name]), f"{self.file.path}: the tensor {name}")

    @property
    def names(self) -> Collection[str]:
        return self.tensors

    def layout(self, name: str) -> Tensor:
        stored = self.tensors[name]
        stored.check(self.file.path)
        return torch.empty(stored.size, dtype=stored.dtype, device="meta")


def plain_name(name: str) -> str:
    """A key without the modules that ran the model on several devices, compiled it or saved its memory: around the whole or parts of it."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts[0] == "module" and parts[1:]:
        parts = parts[1:]
    return ".".join(parts)


def flat_tensors(content: Any) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, StoredTensor):
                yield name, value


def tensors_in(module: Any, prefix: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """The state dict of an unpickled module, of Python or of TorchScript, whose attributes are its tensors and modules. Takes the module
    apart, so that one nested in itself is walked through once."""
    if not isinstance(module, Inert):
        return
    attributes = dict(vars(module))
    vars(module).clear()
    groups = (
        [attributes] if "_modules" not in attributes else map(attributes.get, ("_parameters", "_buffers", "_modules"))
    )
    for group in groups:
        for name, value in group.items() if isinstance(group, Mapping) else ():
            if isinstance(value, StoredTensor):
                yield f"{prefix}{name}", value
            else:
                yield from tensors_in(value, f"{prefix}{name}.")


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
