"""Checkpoints: a directory with config.json, model.safetensors and small text files (a vocabulary), written as a whole.

A checkpoint holds the trained tensors only, and in its config the fingerprints of the frozen parts they go with.

Saving is crash-safe. Everything is written and synced in the hidden sibling `.NAME.new` first. A new checkpoint then
appears by one rename. To replace one, the old directory is renamed to `.NAME.old`, the new one takes its place, and the
old one is deleted: a crash between the two renames leaves `.NAME.old` whole, and reading (or the next save) falls back
on it. config.json carries the sha256 of every other file, so files of two checkpoints are never taken for one.
One process at a time may save to a directory; any number may read.
"""

import hashlib
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.locate import WEIGHTS, backup_of, check_files, existing_or_backup, load_config
from triptych.checkpoints.quantize import dequantize
from triptych.errors import InputError, TriptychError
from triptych.io.files import sha256_of_file

MAX_HEADER = 32 << 20
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
M = TypeVar("M")


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys: copied into the module, absent though optional, left aside."""

    mapped: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


def save_checkpoint(
    directory: Path | str,
    *,
    config: CheckpointConfig[Any],
    tensors: Mapping[str, Tensor],
    extra_files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a checkpoint, in the tensors' own dtypes; an existing one is replaced as a whole, or untouched on failure.

    The version that writes it and the files' sha256 are filled in.
    InputError: the directory holds something else than a checkpoint, which is not deleted.
    TriptychError: the disk is full or not writable, or a tensor is not finite (a diverged training).
    """
    directory = Path(directory).resolve()
    _refuse_strange(directory)
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise TriptychError(f"{directory} is not saved: the tensor {name} has values that are not finite")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)  # of a save that was killed
        fresh.mkdir()
        try:
            _write_files(fresh, config, tensors, extra_files or {})
            _swap(fresh, directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        why = "the disk is full" if "No space left" in str(error) else error
        raise TriptychError(f"cannot save {directory}: {why}") from None


def load_checkpoint(directory: Path | str) -> tuple[CheckpointConfig[dict[str, Any]], dict[str, Tensor]]:
    """The config and the tensors of a checkpoint, after checking that its files belong together and are unchanged.

    Tensors stored as 8-bit integers come back as fp32.
    """
    directory = existing_or_backup(Path(directory))
    config = load_config(directory)
    check_files(directory, config)
    return config, dequantize(load_tensors(directory / WEIGHTS))


def load_typed(directory: Path, system: str, model: type[M]) -> tuple[CheckpointConfig[M], dict[str, Tensor]]:
    """``load_checkpoint`` for one system, with the config of its module as a ``model``.

    Raises:
        InputError: as ``load_checkpoint``; or the checkpoint is of another system.
    """
    config, tensors = load_checkpoint(directory)
    if config.system != system:
        raise InputError(f"{directory} holds a {config.system} model, not {system}")
    return config.typed(model, Path(directory) / "config.json"), tensors


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the CPU; fp16 and bf16 become fp32, other dtypes stay.

    InputError: not a safetensors file, truncated, corrupted, of a dtype no checkpoint uses, or a value is not finite.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            if not 2 <= header <= min(MAX_HEADER, os.fstat(file.fileno()).st_size - 8):
                raise InputError(f"{path} is not a safetensors file, or is truncated")
        with safe_open(path, framework="pt") as stored:
            return {name: _read(stored, name, path) for name in stored.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a safetensors file, or is corrupted: {why}") from None


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: Path | str = "the checkpoint",
    optional_prefixes: tuple[str, ...] = (),
    ignored_prefixes: tuple[str, ...] = (),
) -> LoadReport:
    """Copy tensors into a module, key by key; nothing is copied unless all fits.

    Keys that start with one of `optional_prefixes` may be missing (frozen parts, built elsewhere); unexpected ones that
    start with one of `ignored_prefixes` are left aside.
    InputError: any other missing or unexpected key, or a wrong shape; the first few are named.
    """
    own = module.state_dict()
    missing = tuple(key for key in own if key not in tensors)
    extra = tuple(key for key in tensors if key not in own)
    mapped = {key: tensor for key, tensor in tensors.items() if key in own}
    troubles = [f"missing {key}" for key in missing if not key.startswith(optional_prefixes)]
    troubles += [f"unexpected {key}" for key in extra if not key.startswith(ignored_prefixes)]
    troubles += [
        f"{key} is {tuple(tensor.shape)} instead of {tuple(own[key].shape)}"
        for key, tensor in mapped.items()
        if tensor.shape != own[key].shape
    ]
    if troubles:
        more = f" and {len(troubles) - 3} more" if len(troubles) > 3 else ""
        raise InputError(f"{source} does not fit {type(module).__name__}: {'; '.join(troubles[:3])}{more}")
    module.load_state_dict(mapped, strict=False)
    return LoadReport(tuple(mapped), missing, extra)


def sha256_of(tensors: nn.Module | Mapping[str, Tensor]) -> str:
    """The fingerprint of a frozen part: sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    if isinstance(tensors, nn.Module):
        tensors = tensors.state_dict()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_torch_pickle(path: Path | str) -> dict[str, Any]:
    """The dict in a PyTorch file (.pth, .pt), on the CPU, mapped from the disk where possible; no code of it runs.

    InputError: unreadable, corrupted, compressed, something other than a dict, or objects that need code to run.
    """
    path = Path(path)
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise InputError(f"{path} is compressed: PyTorch does not write such files")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        if named is None:
            raise InputError(f"{path} is not a PyTorch file, or is corrupted") from None
        raise InputError(
            f"{path} holds objects that need code to run ({named[1]}), which is refused: save its state dict alone"
        ) from None
    except InputError:
        raise
    except Exception as error:  # the unpickler meets corrupted bytes with any exception there is
        raise InputError(f"{path} is not a PyTorch file, or is corrupted ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    for tensor in _tensors_in(content):
        backed = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not backed or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} holds a tensor of shape {tuple(tensor.shape)} without the bytes for it")
    return content


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and tuples; each container once, since a pickle may nest one in itself."""
    todo, seen = [content], set()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()  # a NaN anywhere becomes both
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _read(stored: Any, name: str, path: Path) -> Tensor:
    dtype = stored.get_slice(name).get_dtype()
    if dtype not in DTYPES:
        raise InputError(f"{path}: the tensor {name} has the unsupported dtype {dtype}")
    tensor: Tensor = stored.get_tensor(name)
    if not _finite(tensor):
        raise InputError(f"{path}: the tensor {name} has values that are not finite")
    return tensor.float() if dtype in ("F16", "BF16") else tensor


def _write_files(
    directory: Path,
    config: CheckpointConfig[Any],
    tensors: Mapping[str, Tensor],
    extra_files: Mapping[str, str | bytes],
) -> None:
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(own, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    for name, content in extra_files.items():
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
    files = {path.name: sha256_of_file(path) for path in sorted(directory.iterdir())}
    written = msgspec.structs.replace(config, triptych=_version(), files=files)
    (directory / "config.json").write_text(written.to_json(), encoding="utf-8")
    for path in [*directory.iterdir(), directory]:
        _sync(path)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triptych")
    except PackageNotFoundError:
        return "unknown"


def _sync(path: Path) -> None:
    """Force a file or a directory to the disk (Windows can sync neither in this way)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_strange(directory: Path) -> None:
    """A save deletes what it replaces: let that be an empty folder, or a checkpoint with nothing added."""
    if not directory.exists():
        return
    try:
        names = {path.name for path in directory.iterdir()}
        known = {"config.json", *load_config(directory).files} if names else set()
    except (OSError, InputError):
        raise InputError(f"{directory} is there and is not a checkpoint: name another directory to save to") from None
    if strange := sorted(names - known):
        raise InputError(f"{directory} also holds {strange[0]}, which a save would delete: move it elsewhere")


def _swap(fresh: Path, directory: Path) -> None:
    old = backup_of(directory)
    if old.exists():  # a save was killed: before its second rename, or after it
        if directory.exists():
            shutil.rmtree(old)
        else:
            old.replace(directory)
    if directory.exists():
        directory.replace(old)
    try:
        fresh.replace(directory)
    except BaseException:
        if old.exists():
            old.replace(directory)
        raise
    _sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
