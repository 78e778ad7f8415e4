"""Tensors into modules: strictly, and one at a time into modules that were made without memory of their own."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from triptych.checkpoints.store import TensorStore, as_store
from triptych.errors import InputError

UNRETURNED = 64 << 20  # bytes read between two calls of ``return_freed_memory``


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys: copied into the module, absent though optional, left aside."""

    mapped: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


class WithoutInitialWeights(TorchFunctionMode):
    """Modules made under it draw no initial weights (on the meta device that would load a symbolic algebra system)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unallocated() -> Iterator[None]:
    """Modules made under it have shapes and no memory, until ``fill`` gives them their tensors."""
    with torch.device("meta"), WithoutInitialWeights():
        yield


def check_fit(
    module: nn.Module,
    layouts: Mapping[str, Tensor],
    source: Path | str,
    optional_prefixes: tuple[str, ...] = (),
    ignored_prefixes: tuple[str, ...] = (),
) -> LoadReport:
    """Whether tensors of these shapes fill a module.

    Keys that start with one of `optional_prefixes` may be missing (frozen parts, built elsewhere); unexpected ones that
    start with one of `ignored_prefixes` are left aside.
    InputError: any other missing or unexpected key, a wrong shape, or integers for floats; the first few are named.
    """
    own = module.state_dict()
    missing = tuple(key for key in own if key not in layouts)
    extra = tuple(key for key in layouts if key not in own)
    mapped = {key: layout for key, layout in layouts.items() if key in own}
    troubles = [f"missing {key}" for key in missing if not key.startswith(optional_prefixes)]
    troubles += [f"unexpected {key}" for key in extra if not key.startswith(ignored_prefixes)]
    troubles += [
        f"{key} is {tuple(layout.shape)} instead of {tuple(own[key].shape)}"
        for key, layout in mapped.items()
        if layout.shape != own[key].shape
    ]
    troubles += [
        f"{key} holds {str(layout.dtype).removeprefix('torch.')} instead of floating-point numbers"
        for key, layout in mapped.items()
        if own[key].is_floating_point() and not layout.is_floating_point()
    ]
    if troubles:
        more = f" and {len(troubles) - 3} more" if len(troubles) > 3 else ""
        raise InputError(f"{source} does not fit {type(module).__name__}: {'; '.join(troubles[:3])}{more}")
    return LoadReport(tuple(mapped), missing, extra)


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: Path | str = "the checkpoint",
    optional_prefixes: tuple[str, ...] = (),
    ignored_prefixes: tuple[str, ...] = (),
) -> LoadReport:
    """Copy tensors into a module, key by key; nothing is copied unless all fits. Arguments and errors as ``check_fit``."""
    report = check_fit(module, as_store(tensors).layouts(), source, optional_prefixes, ignored_prefixes)
    module.load_state_dict({key: tensors[key] for key in report.mapped}, strict=False)
    return report


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: Path | str = "the checkpoint",
    optional_prefixes: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    left_out: Collection[str] = (),
) -> LoadReport:
    """Give a module its tensors, read one after the other, as ``dtype``; nothing is read unless all fits.

    What is missing under ``optional_prefixes`` stays as it is. The modules ``left_out`` stay without memory, as ``dtype``.

    Raises:
        InputError: as ``check_fit``; or a tensor cannot be read.
    """
    store: TensorStore = as_store(tensors)
    report = check_fit(module, store.layouts(), source, optional_prefixes)
    for name in left_out:
        module.get_submodule(name).to(dtype)
    unreturned = 0
    for prefix, part in module.named_modules():
        if any(f"{prefix}.".startswith(f"{name}.") for name in left_out):
            continue
        names = [name for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))]
        for name in names:
            key = f"{prefix}.{name}" if prefix else name
            if key in store:
                tensor = store[key]
                cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
                part.load_state_dict({name: cast}, strict=False, assign=True)
                unreturned += tensor.nbytes
                del tensor, cast
                if unreturned > UNRETURNED:
                    unreturned = 0
                    return_freed_memory()
    return_freed_memory()
    return report


def return_freed_memory() -> None:
    """Give what was freed between tensors that stay back to the system: glibc keeps it, and seldom finds it large enough for the next."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
