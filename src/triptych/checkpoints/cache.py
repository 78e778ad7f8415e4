"""What is kept under $TRIPTYCH_HOME to save time: all of it is made or fetched again when it is needed."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from triptych.checkpoints.parts import DAY, home
from triptych.errors import InputError, TriptychError

FOLDERS = (
    "converted",
    "engines",
    "features",
    "parts",
)  # published models, graphs, features of photos in training, pretrained parts
CONVERTED = r".+-[0-9a-f]{8}-[0-9a-f]{16}"  # a model's name, a hash of where it lies and one of its files
CONVERTING = rf"{CONVERTED}\.\d+|\.{CONVERTED}(\.\d+)?\.(new|old)"  # by a process; and what a save writes beside it


def list_cache() -> dict[str, Path]:
    """What is there, as ``kind/name``."""
    folders = [path for kind in FOLDERS for path in sorted((home() / kind).glob("*"))]
    return {path.relative_to(home()).as_posix(): path for path in folders if not path.name.startswith(".")}


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def delete_cached(names: Sequence[str]) -> list[str]:
    """Delete what ``list_cache`` names so, or all of a kind (``converted``); returns the names of what was deleted.

    Raises:
        InputError: nothing has this name; nothing is deleted then.
        TriptychError: something cannot be deleted.
    """
    known = list_cache()
    chosen: list[str] = []
    for name in names:
        matches = [entry for entry in known if entry == name or (name in FOLDERS and entry.startswith(f"{name}/"))]
        if not matches and name not in FOLDERS:
            raise InputError(f"nothing in {home()} is called {name!r}: `triptych cache` lists what is there")
        chosen += [entry for entry in matches if entry not in chosen]
    for entry in chosen:
        delete(known[entry])
    return chosen


def delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise TriptychError(f"cannot delete {path}: {error.strerror or error}") from None


def delete_superseded(target: Path) -> list[Path]:
    """Delete the conversions that ``target`` replaces, those of earlier files at the same place, and what killed processes left; returns
    the former. What cannot be deleted stays, and so does everything that ``convert`` has not named."""
    model = target.name.rpartition("-")[0]
    replaced = []
    for path in target.parent.iterdir():
        if re.fullmatch(CONVERTED, path.name):
            if path != target and path.name.rpartition("-")[0] == model:
                shutil.rmtree(path, ignore_errors=True)
                replaced.append(path)
        elif re.fullmatch(CONVERTING, path.name) and time.time() - path.lstat().st_mtime > DAY:
            shutil.rmtree(path, ignore_errors=True)
    return replaced
