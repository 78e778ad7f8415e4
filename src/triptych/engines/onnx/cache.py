"""Graphs on disk: built once for each checkpoint and precision, under $TRIPTYCH_HOME, in a folder named by a hash of their sources.

A folder is made under another name and renamed. Beside the graphs it has the word embeddings, mapped like all weights, and ``engine.json``
with the language model's sizes and tokenizer, so that only the checkpoint's own small files are needed to run it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from triptych.checkpoints.config import Card, CheckpointConfig
from triptych.checkpoints.parts import home
from triptych.engines.choice import Precision
from triptych.engines.onnx.matrix import Blocks, Matrix
from triptych.engines.onnx.text import EmbeddingTable
from triptych.errors import TriptychError
from triptych.io.files import write_error
from triptych.nn.configs import DecoderConfig
from triptych.text.tokenizer import TextTokenizer

KEPT_FOLDERS = 12  # the least recently used ones are deleted when another is built
SURELY_UNUSED = 3600  # seconds since the last use after which no process is still reading a folder
MANIFEST = "engine.json"
GRAPHS = re.compile(r"\w+-\w+-[0-9a-f]{24}")  # system, precision, and the beginning of a hash
NEW_GRAPHS = ".new-"
CODE = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def graphs_folder(config: CheckpointConfig[Any], precision: Precision, build: Callable[[Path], None]) -> Path:
    """The folder of a checkpoint's graphs; if there is none, ``build`` writes them into a new one.

    Raises:
        TriptychError: the disk is full or not writable.
    """
    root = home() / "engines"
    folder = root / f"{config.system}-{precision}-{content_key(config, precision)[:24]}"
    if (folder / MANIFEST).exists():
        os.utime(folder)  # the time of the last use
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=NEW_GRAPHS, dir=root))
        try:
            build(fresh)
            fresh.chmod(0o755)
            with suppress(OSError):  # another process was quicker
                fresh.rename(folder)
            (folder / MANIFEST).stat()
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        forget_old(root)
    except OSError as error:
        raise TriptychError(f"{write_error(root, error)}; TRIPTYCH_HOME names another folder") from error
    return folder


def content_key(config: CheckpointConfig[Any], precision: Precision) -> str:
    """The sha256 of all that the graphs depend on: the checkpoint's config but for its card, with the sha256 of its weights, and this
    package's code."""
    described = msgspec.structs.replace(config, card=Card()).to_json()
    return hashlib.sha256(f"{CODE}\0{precision}\0{described}".encode()).hexdigest()


def forget_old(root: Path) -> None:
    """Delete the least recently used graphs beyond ``KEPT_FOLDERS``, and interrupted builds, unless used within the last hour. Folders
    with other names stay."""
    used = sorted(((path.stat().st_mtime, path) for path in root.iterdir() if path.is_dir()), reverse=True)
    built = [one for one in used if GRAPHS.fullmatch(one[1].name)]
    unfinished = [one for one in used if one[1].name.startswith(NEW_GRAPHS)]
    for last_use, path in built[KEPT_FOLDERS:] + unfinished:
        if time.time() - last_use > SURELY_UNUSED:
            shutil.rmtree(path, ignore_errors=True)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return content


def describe_language_model(config: DecoderConfig, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The part of ``engine.json`` about a language model."""
    return {
        "decoder": asdict(config),
        "tokenizer": {
            "tokenizer": tokenizer.tokenizer.to_str(),
            "specials": tokenizer.specials,
            "bos_id": tokenizer.bos_id,
            "eos_ids": sorted(tokenizer.eos_ids),
            "add_bos": tokenizer.add_bos,
            "template": tokenizer.template,
        },
    }


def read_language_model(content: Mapping[str, Any]) -> tuple[DecoderConfig, TextTokenizer]:
    """The reverse of ``describe_language_model``."""
    from tokenizers import Tokenizer

    sizes, fields = dict(content["decoder"]), dict(content["tokenizer"])
    for name, value in sizes.items():
        sizes[name] = tuple(value) if isinstance(value, list) else value
    fields["tokenizer"] = Tokenizer.from_str(fields["tokenizer"])
    fields["tokenizer"].encode_special_tokens = True  # this setting is not saved with the tokenizer
    fields["eos_ids"] = frozenset(fields["eos_ids"])
    return DecoderConfig(**sizes), TextTokenizer(**fields)


def save_embeddings(folder: Path, name: str, matrix: Matrix) -> None:
    if isinstance(matrix, Blocks):
        np.save(folder / f"{name}.codes.npy", matrix.codes)
        np.save(folder / f"{name}.scale.npy", matrix.scale)
    else:
        np.save(folder / f"{name}.codes.npy", matrix)


def open_embeddings(folder: Path, name: str) -> EmbeddingTable:
    """Mapped into memory."""
    scale = folder / f"{name}.scale.npy"
    codes = np.load(folder / f"{name}.codes.npy", mmap_mode="r")
    return EmbeddingTable(codes, np.load(scale, mmap_mode="r") if scale.exists() else None)
