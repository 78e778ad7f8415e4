"""A photo of a data set, and the checks that the readers of all formats share."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from triptych.errors import InputError
from triptych.io.images import load_image
from triptych.io.limits import MAX_BYTES

MAX_TEXT = 2 * 2**30
"""The largest file of captions that is read, in bytes (LLaVA's 665,000 conversations take one GB)."""

SPLITS = {
    "train": "train",
    "restval": "train",  # Karpathy's name for the photos of COCO's val2014 that he trains on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""What data sets call their splits -> what they are called here."""


@dataclass(frozen=True)
class Photo:
    """One photo of a data set; its encoded bytes stay on disk until `read`.

    ``path`` is the photo's own file, or a tar shard in which it is the ``size`` bytes from ``offset`` on. ``extra`` holds
    what else the data set says of it (boxes, questions, conversations, size). A photo can be pickled.
    """

    id: str
    split: str
    captions: tuple[str, ...]
    extra: Mapping[str, Any] = field(hash=False)
    path: Path
    offset: int = 0
    size: int | None = None

    @property
    def name(self) -> str:
        """Where the photo is, for messages."""
        return str(self.path) if self.size is None else f"{self.path}: {self.id}"

    def read(self) -> bytes:
        """The encoded file. Raises InputError where it is gone, cut short, or larger than `triptych.io.limits.MAX_BYTES`."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read(MAX_BYTES + 1 if self.size is None else min(self.size, MAX_BYTES + 1))
        except OSError as error:
            raise InputError(f"{self.name}: the photo cannot be read ({error.strerror})") from error
        if len(content) > MAX_BYTES:
            raise InputError(f"{self.name}: more than {MAX_BYTES // 2**20} MiB, too much for a photo")
        if self.size is not None and len(content) < self.size:
            raise InputError(f"{self.name}: the shard has been cut short since it was opened")
        return content

    def image(self, target: int | None = None) -> Image.Image:
        """The picture, upright RGB; ``target`` as in `load_image`. Raises InputError that names the photo where it is damaged or none."""
        try:
            return load_image(self.read(), target)
        except InputError as error:
            raise InputError(str(error) if self.name in str(error) else f"{self.name}: {error}") from None


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without byte order mark, its line ends as they are."""
    if path.stat().st_size > MAX_TEXT:
        raise InputError(f"{path}: more than {MAX_TEXT // 2**30} GiB: split it into several data sets")
    return decode(path.read_bytes(), str(path))


def decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}: line {line} is not UTF-8: save the file as UTF-8") from error


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise InputError(f"{where}: broken JSON, {error.msg} at {place}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of nested brackets
        raise InputError(f"{where}: JSON that cannot be read ({type(error).__name__})") from error


def record_of(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object with named fields, found {shown(value)}")
    return value


def list_of(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, found {shown(value)}")
    return value


def text_of(value: Any, where: str) -> str:
    """``value`` as a text or number that names something (an id, a file); neither empty nor impossible to write."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: expected a name, found {shown(value)}")
    return writable(value, where)


def captions_of(value: Any, where: str) -> tuple[str, ...]:
    """A caption or a list of them (or nothing), stripped; empty ones are dropped."""
    captions = []
    for caption in value if isinstance(value, list) else [value]:
        if caption is not None and not isinstance(caption, str):
            raise InputError(f"{where}: a caption must be text, found {shown(caption)}")
        if caption and caption.strip():
            captions.append(writable(caption.strip(), where))
    return tuple(captions)


def split_of(where: str, *stated: Any) -> str:
    """The split that ``stated`` agree on, as this package calls it; "" where none of them says."""
    found = set()
    for split in stated:
        if split is not None and split != "":
            if not isinstance(split, str) or split.lower() not in SPLITS:
                raise InputError(f"{where}: unknown split {shown(split)}; known are {', '.join(SPLITS)}")
            found.add(SPLITS[split.lower()])
    if len(found) > 1:
        raise InputError(
            f"{where}: is it {' or '.join(sorted(found))}? Its record and its folder or file say different splits"
        )
    return found.pop() if found else ""


def file_within(folder: Path, name: str, where: str) -> Path:
    """``folder/name``, refused where it leads out of the folder (an absolute path, "..", a link)."""
    path, relative = folder / name, PurePosixPath(name)
    try:
        stays = os.path.realpath(path).startswith(_real_prefix(folder))
    except (OSError, ValueError):  # a NUL character
        stays = False
    if relative.is_absolute() or ".." in relative.parts or not stays:
        raise InputError(f"{where}: {shown(name)} is not inside {folder}: copy the photo there")
    return path


@lru_cache(maxsize=64)
def _real_prefix(folder: Path) -> str:
    return os.path.join(os.path.realpath(folder), "")  # noqa: PTH118  (pathlib drops the trailing slash)


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  (Path.is_file raises on a name that is too long)


def writable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {shown(text)} holds half a character (a lone surrogate)") from error
    return text


def shown(value: Any) -> str:
    """``value`` for a message: on one line, short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
