"""The tensors in a file or a folder of somebody else's, whatever its format; and what to do about those that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triptych.checkpoints.locate import refuse_adapter
from triptych.checkpoints.store import JoinedStore, SafetensorsFile, TensorStore, renamed
from triptych.checkpoints.torch_file import TorchFile, plain_name
from triptych.errors import InputError
from triptych.io.files import read_json_object

WHOLE = ("model.safetensors", "pytorch_model.bin")  # each may be cut into shards, with an index beside
SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.\w+")
KEY_MARKS = (  # of keys that a model has only while an adapter lies in it, or when its weights are quantised
    (re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\."), "adapter"),
    (
        re.compile(r"\.(SCB|absmax|quant_map|qweight|qzeros|weight_scale|weight_scale_inv)$|\.weight\.\w*quant"),
        "quantised",
    ),
)
LFS = b"version https://git-lfs"
NOT_TENSORS = (
    (LFS, "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"),
    (b"<!DOCTYPE html", "is a web page, not the file: download it again"),
    (b"<html", "is a web page, not the file: download it again"),
    (b"GGUF", "is a GGUF file, which holds a language model alone: give it with --lm"),
    (b"\x89HDF", "is an HDF5 file (of Keras), which is not read: save the weights as safetensors"),
)


def open_file(path: Path) -> TensorStore:
    """A safetensors file, or the state dict in one of PyTorch's; keys without what ran the model (``plain_name``).

    Raises:
        InputError: it is neither, is truncated, or holds no tensors.
    """
    check_content(path)
    if path.suffix == ".safetensors":
        file = SafetensorsFile(path)
        names = {plain_name(name): name for name in file}
        return file if all(new == old for new, old in names.items()) else renamed(file, names)
    return TorchFile(path).state_dict()


def check_content(path: Path) -> None:
    """Raises InputError: it cannot be read, is empty, or is something that people take for weights; says what to do."""
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError as error:
        why = "it is a link to a file that is not there; download it again" if path.is_symlink() else error.strerror
        raise InputError(f"cannot read {path}: {why or error}") from None
    if not begin:
        raise InputError(f"{path} is empty: download it again")
    for sign, meaning in NOT_TENSORS:
        if begin.startswith(sign):
            raise InputError(f"{path} {meaning}")


def open_folder(directory: Path) -> TensorStore:
    """The tensors that transformers saved in a folder: in one file or in shards, as safetensors or else as ``.bin``.

    Raises:
        InputError: there are none, a shard is missing, an adapter or quantised weights lie there, a file is a pointer of Git LFS.
    """
    refuse_adapter(directory)
    check_pointers(directory)
    store = stored_in(directory)
    if not store:
        raise InputError(f"{directory}: its file of weights holds no tensors: download it again")
    check_keys(store, directory)
    return store


def stored_in(directory: Path) -> TensorStore:
    for name in WHOLE:  # a whole file comes before the index of shards, as in transformers
        index = directory / f"{name}.index.json"
        if (directory / name).exists():
            return open_file(directory / name)
        if index.exists():
            return shards(index)
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if files := sorted(directory.glob(pattern)):
            check_shards(files)
            return JoinedStore([open_file(path) for path in files])
    raise InputError(f"{directory} has neither {' nor '.join(WHOLE)}: download the model's weights as well")


def check_pointers(directory: Path) -> None:
    """Raises InputError: a small file, such as the tokenizer's, is only a pointer of Git LFS. Weights are checked when they are opened."""
    for path in sorted(directory.glob("*.json")) + sorted(directory.glob("*.model")):
        if path.is_file() and path.stat().st_size < 1024:
            check_content(path)


def check_keys(keys: Iterable[str], source: Path) -> None:
    """Raises InputError: keys show that an adapter lies in the model, or that its weights are quantised."""
    for key in keys:
        kind = next((kind for pattern, kind in KEY_MARKS if pattern.search(key)), None)
        if kind == "adapter":
            raise InputError(
                f"{source} holds {key}, of an adapter: merge it into the model (peft: merge_and_unload) and save that"
            )
        if kind == "quantised":
            raise InputError(
                f"{source} holds {key}, of quantised weights, which cannot be read: give the model in 16 bits"
            )


def check_shards(files: list[Path]) -> None:
    """Raises InputError: by the names of shards without an index, some are missing."""
    numbered = [match for path in files if (match := SHARD.fullmatch(path.name))]
    for total in {match[2] for match in numbered}:
        there = {int(match[1]) for match in numbered if match[2] == total}
        if absent := sorted(set(range(1, int(total) + 1)) - there)[:1]:
            raise InputError(
                f"{files[0].parent} has {len(there)} of {int(total)} shards, number {absent[0]} is missing: download the missing shards"
            )


def shards(index: Path) -> TensorStore:
    """The files that an index names. Raises InputError: one is missing, or has not the tensors that it should have."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index} does not say which files beside it hold the tensors")
    names = sorted(set(places.values()))
    if others := [name for name in names if not name.isprintable() or Path(name).name != name or not name]:
        raise InputError(
            f"{index} names {others[0]!r}, which is no file beside it: shards lie in the folder of their index"
        )
    if absent := [name for name in names if not (index.parent / name).exists()]:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise InputError(f"{index.parent} has no {absent[0]}{more}, which its index names: download the missing shards")
    store = JoinedStore([open_file(index.parent / name) for name in names])
    if lost := sorted({plain_name(name) for name in places} - store.keys()):
        raise InputError(f"{index} names {lost[0]}, which is in none of its files: the download is of two versions")
    return store


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty where an optional one is not there. Raises InputError: it cannot be read, or is none."""
    if optional and not path.exists():
        return {}
    try:
        return read_json_object(path)
    except InputError:
        if path.exists():
            check_content(path)  # it may be what people take for a file
        raise


def check_settings(directory: Path, settings: dict[str, Any]) -> None:
    """Raises InputError: the weights that a config.json describes are quantised in a way that is not read."""
    if isinstance(quantized := settings.get("quantization_config"), dict):
        bits = quantized.get("load_in_8bit") or quantized.get("load_in_4bit")
        kind = quantized.get("quant_method") or ("bitsandbytes" if bits else "unknown")
        raise InputError(
            f"{directory} is quantised ({kind}), which cannot be read: give the model in 16 bits, or a language model as a GGUF file"
        )
