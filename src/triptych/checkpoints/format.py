"""Checkpoints: a directory with config.json, triptych.safetensors and small text files (a vocabulary), written as a whole.

A checkpoint holds the trained tensors only, and in its config the fingerprints of the frozen parts they go with.

Saving is crash-safe. Everything is written and synced in the hidden sibling `.NAME.new` first. A new checkpoint then
appears by one rename. To replace one, the old directory is renamed to `.NAME.old`, the new one takes its place, and the
old one is deleted: a crash between the two renames leaves `.NAME.old` whole, and reading (or the next save) falls back
on it. config.json carries the sha256 of every other file, so files of two checkpoints are never taken for one.
One process at a time may save to a directory; any number may read.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from triptych.checkpoints.config import WEIGHTS, CheckpointConfig
from triptych.checkpoints.locate import backup_of, check_files, existing_or_backup, load_config
from triptych.checkpoints.quantize import dequantized
from triptych.checkpoints.store import SafetensorsFile, TensorStore, as_store, write_tensors
from triptych.errors import InputError, TriptychError
from triptych.io.files import is_disk_full, sha256_of_file, sync

M = TypeVar("M")


def save_checkpoint(
    directory: Path | str,
    *,
    config: CheckpointConfig[Any],
    tensors: Mapping[str, Tensor],
    extra_files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a checkpoint, in the tensors' own dtypes; an existing one is replaced as a whole, or untouched on failure.

    Of a ``TensorStore`` one tensor is in memory at a time. The version that writes it and the files' sha256 are filled in.
    InputError: the directory holds something else than a checkpoint, which is not deleted.
    TriptychError: the disk is full or not writable, or a tensor is not finite (a diverged training).
    """

    def write(fresh: Path) -> None:
        write_tensors(fresh / WEIGHTS, as_store(tensors))
        _write_config(fresh, msgspec.structs.replace(config, triptych=_version()), extra_files or {})

    _save(Path(directory).resolve(), write)


def _save(directory: Path, write: Callable[[Path], None]) -> None:
    """Replace a checkpoint as a whole by what ``write`` puts into the directory that it is given."""
    _refuse_strange(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)  # of a save that was killed
        fresh.mkdir()
        try:
            write(fresh)
            for path in [*fresh.iterdir(), fresh]:
                sync(path)
            _swap(fresh, directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        why = "the disk is full" if is_disk_full(error) else error.strerror or error
        raise TriptychError(f"cannot save {directory}: {why}") from None
    except TriptychError as error:
        raise type(error)(f"{directory} is not saved: {error}") from None


def copy_checkpoint(source: Path, target: Path, extra_files: Mapping[str, bytes]) -> None:
    """Write the checkpoint in ``source`` with ``extra_files`` besides to ``target``, which may be the same directory.

    InputError: files of ``source`` are damaged, or ``target`` holds something else than a checkpoint.
    TriptychError: the disk is full or not writable.
    """
    source, target = existing_or_backup(source).resolve(), target.resolve()
    config = load_config(source)
    check_files(source, config)

    def write(fresh: Path) -> None:
        for name in {config.weights, *config.files} - {*extra_files}:
            shutil.copyfile(source / name, fresh / name)
        _write_config(fresh, config, extra_files)

    _save(target, write)


def load_checkpoint(directory: Path | str) -> tuple[CheckpointConfig[dict[str, Any]], TensorStore]:
    """The config and the tensors of a checkpoint, after checking that its files belong together and are unchanged.

    Tensors are read when they are asked for; those stored as 8-bit integers come back as fp32, others in the dtype they are stored in.
    """
    directory = existing_or_backup(Path(directory))
    config = load_config(directory)
    check_files(directory, config)
    return config, dequantized(SafetensorsFile(directory / config.weights))


def load_typed(directory: Path, system: str, model: type[M]) -> tuple[CheckpointConfig[M], TensorStore]:
    """``load_checkpoint`` for one system, with the config of its module as a ``model``.

    Raises:
        InputError: as ``load_checkpoint``; or the checkpoint is of another system.
    """
    config, tensors = load_checkpoint(directory)
    if config.system != system:
        raise InputError(f"{directory} holds a {config.system} model, not {system}")
    return config.typed(model, Path(directory) / "config.json"), tensors


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


def _write_config(directory: Path, config: CheckpointConfig[Any], extra_files: Mapping[str, str | bytes]) -> None:
    """Write the ``extra_files``, then ``config`` with the sha256 of every file."""
    for name, content in extra_files.items():
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
    files = {path.name: sha256_of_file(path) for path in sorted(directory.iterdir())}
    written = msgspec.structs.replace(config, files=files)
    (directory / "config.json").write_text(written.to_json(), encoding="utf-8")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triptych")
    except PackageNotFoundError:
        return "unknown"


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
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
