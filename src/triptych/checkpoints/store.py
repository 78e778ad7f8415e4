"""Tensors on disk, read one at a time: by name, in the dtype they are stored in, each into memory of its own.

A ``TensorStore`` is a mapping whose values are read when they are asked for, and forgotten. ``layout`` gives shape and dtype without
reading. Files (``SafetensorsFile``, ``torch_file.TorchState``) and shards (``JoinedStore``) are stores; so is what is made of them by a
table of keys or another dtype (``DerivedStore``).
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from triptych.errors import InputError, TriptychError

MAX_HEADER = 32 << 20
MAX_TENSOR_SIDE = 1 << 40  # numbers along one axis
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorStore(Mapping[str, Tensor]):
    """Tensors by name. Raises InputError where one is asked for and cannot be read."""

    @property
    @abstractmethod
    def names(self) -> Collection[str]: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @abstractmethod
    def layout(self, name: str) -> Tensor:
        """Shape and dtype of a tensor, as a tensor on the meta device."""

    def layouts(self) -> dict[str, Tensor]:
        return {name: self.layout(name) for name in self}


class MemoryStore(TensorStore):
    """Tensors that are there."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def names(self) -> Collection[str]:
        return self.tensors

    def layout(self, name: str) -> Tensor:
        return self.tensors[name].to("meta")


def shaped(layout: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A layout with another shape or dtype."""
    return torch.empty(layout.shape if shape is None else shape, dtype=dtype or layout.dtype, device="meta")


def stacked_layout(layouts: Sequence[Tensor]) -> Tensor:
    """Rows one below the other, in the dtype that holds all floats; where integers are among them, an integer one, which is refused."""
    first, *others = layouts
    if not others:
        return first
    integers = (layout.dtype for layout in layouts if not layout.is_floating_point())
    dtype = next(integers, None) or reduce(torch.promote_types, (layout.dtype for layout in layouts))
    rows = sum(layout.shape[0] for layout in layouts) if first.ndim else 0
    return shaped(first, (rows, *first.shape[1:]), dtype)


def as_store(tensors: Mapping[str, Tensor]) -> TensorStore:
    return tensors if isinstance(tensors, TensorStore) else MemoryStore(tensors)


@dataclass(frozen=True)
class Recipe:
    """How a tensor is made: ``make`` of those under the names ``sources``; and ``layout``, what comes of their layouts (None: the first's).

    Layouts are not computed by running ``make`` on the meta device: arithmetic there loads torch's compiler.
    """

    sources: tuple[str, ...]
    make: Callable[[list[Tensor]], Tensor]
    layout: Callable[[list[Tensor]], Tensor] | None = None


class DerivedStore(TensorStore):
    """Tensors made of another store's. Several that are made of the same sources, asked for in a row, read them once."""

    def __init__(self, source: TensorStore, recipes: Mapping[str, Recipe]) -> None:
        self.source, self.recipes = source, recipes
        self._uses = Counter(recipe.sources for recipe in recipes.values())
        self._last: tuple[tuple[str, ...], list[Tensor]] = ((), [])

    def __getitem__(self, name: str) -> Tensor:
        recipe = self.recipes[name]
        if recipe.sources != self._last[0]:
            self._last = ((), [])  # what was read before goes first
            self._last = (recipe.sources, [self.source[key] for key in recipe.sources])
        made = recipe.make(self._last[1])
        if self._uses[recipe.sources] == 1:
            self._last = ((), [])
        return made

    @property
    def names(self) -> Collection[str]:
        return self.recipes

    def layout(self, name: str) -> Tensor:
        recipe = self.recipes[name]
        layouts = [self.source.layout(key) for key in recipe.sources]
        return recipe.layout(layouts) if recipe.layout else layouts[0]


class JoinedStore(TensorStore):
    """Several stores as one; a name that two of them have is the later one's."""

    def __init__(self, stores: Sequence[TensorStore]) -> None:
        self.places = {name: store for store in stores for name in store}

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name][name]

    @property
    def names(self) -> Collection[str]:
        return self.places

    def layout(self, name: str) -> Tensor:
        return self.places[name].layout(name)


def renamed(store: TensorStore, names: Mapping[str, str]) -> DerivedStore:
    """``names``: the new name of each tensor -> its name in ``store``."""
    return DerivedStore(store, {new: Recipe((old,), lambda x: x[0]) for new, old in names.items()})


def check_finite(tensor: Tensor, what: str) -> Tensor:
    """Raises InputError: a value is not finite."""
    if not finite(tensor):
        raise InputError(f"{what} has values that are not finite")
    return tensor


def finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()  # a NaN anywhere becomes both
    return bool(torch.isfinite(low) & torch.isfinite(high))


# Safetensors


@dataclass(frozen=True)
class Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int  # in bytes from the file's beginning
    size: int


class SafetensorsFile(TensorStore):
    """A safetensors file.

    Raises:
        InputError: when opened, it is not one, or is truncated; when a tensor is asked for, its dtype is none that a checkpoint uses, or
            a value is not finite.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(MAX_HEADER, size - 8):
                    raise InputError(f"{path} is not a safetensors file, or is truncated")
                header = json.loads(file.read(length), object_pairs_hook=without_duplicates)
            self.entries = {
                name: _entry(fields, 8 + length, size) for name, fields in header.items() if name != "__metadata__"
            }
            check_cover(self.entries.values(), 8 + length, size)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is not a safetensors file, or is corrupted: {why}") from None

    @property
    def names(self) -> Collection[str]:
        return self.entries

    def layout(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            hint = "; give the model in 16 bits" if entry.dtype.startswith("F8") else ""
            raise InputError(f"{self.path}: the tensor {name} has the unsupported dtype {entry.dtype}{hint}")
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.empty_like(self.layout(name), device="cpu")
        with self.path.open("rb") as file:
            file.seek(self.entries[name].start)
            read_into(file, tensor, self.path)
        return check_finite(tensor, f"{self.path}: the tensor {name}")


def without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError: a name is given twice, so readers could differ in which they take."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a name is given twice")
    return unique


def check_cover(entries: Iterable[Entry], begin: int, end: int) -> None:
    """Raises ValueError: the tensors overlap, or leave bytes between them that belong to none."""
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.size)):
        if entry.start != begin:
            raise ValueError("tensors overlap, or bytes between them belong to none")
        begin += entry.size
    if begin != end:
        raise ValueError("bytes behind the last tensor belong to none")


def _entry(fields: Any, begin: int, size: int) -> Entry:
    """Raises ValueError: the entry does not fit the file."""
    shape, (start, end) = tuple(fields["shape"]), fields["data_offsets"]
    dtype = fields["dtype"]
    if not all(type(x) is int and 0 <= x <= MAX_TENSOR_SIDE for x in (*shape, start, end)) or not isinstance(
        dtype, str
    ):
        raise ValueError("sizes that are no whole numbers")
    if not start <= end <= size - begin:
        raise ValueError("a tensor ends behind the end of the file")
    if dtype in DTYPES and prod(shape) * DTYPES[dtype].itemsize != end - start:
        raise ValueError(f"{end - start} bytes for a tensor of the shape {shape}")
    return Entry(dtype, shape, begin + start, end - start)


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def read_into(file: BinaryIO, tensor: Tensor, path: Path) -> None:
    """Fill a contiguous tensor with the next bytes of a file. Raises InputError: it ends too early."""
    target = as_bytes(tensor)
    while target:
        count = file.readinto(target)  # type: ignore[attr-defined]
        if not count:
            raise InputError(f"{path} is truncated")
        target = target[count:]


def write_tensors(path: Path, tensors: TensorStore) -> None:
    """A safetensors file, written one tensor at a time.

    Raises:
        OSError: the disk is full or not writable.
        TriptychError: a value is not finite.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in tensors:
        layout = tensors.layout(name)
        header[name] = {
            "dtype": NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [offset, offset + layout.nbytes],
        }
        offset += layout.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in tensors:
            tensor = tensors[name].detach().cpu().contiguous()
            if not finite(tensor):
                raise TriptychError(f"the tensor {name} has values that are not finite")
            file.write(as_bytes(tensor))


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a safetensors file; fp16 and bf16 become fp32, other dtypes stay. Raises InputError: see ``SafetensorsFile``."""
    store = SafetensorsFile(Path(path))
    return {name: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for name, x in store.items()}
