"""Reading the files that describe photos: text, JSON, fields of records; each check fails with the place in the file."""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.errors import InputError

MAX_TEXT = 2 * 2**30
"""The largest file of captions that is read, in bytes (LLaVA's 665,000 conversations take one GB)."""

SPLITS = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's name for the photos of COCO's val2014 that he trains on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What data sets call their splits -> what they are called here."""

FILE_FIELDS = ("file_name", "filename", "file_path", "filepath", "image", "image_name", "image_file", "image_path")
CAPTION_FIELDS = (
    *("captions", "caption", "texts", "text", "sentences", "sentence", "descriptions", "description"),
    *("comments", "comment", "raw", "alt_text"),
)
"""The names of the fields that are known, of several the first that is not empty; case and spaces do not matter."""


NUMBERED_CAPTION = re.compile(r"(?:caption|text|sentence|description|comment)[ _#-]?\d+")


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without byte order mark, its line ends as they are."""
    return decode_text(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """A whole file. Raises InputError: it is larger than ``MAX_TEXT``."""
    if path.stat().st_size > MAX_TEXT:
        raise InputError(f"{path}: more than {MAX_TEXT // 2**30} GiB: split it into several data sets")
    return path.read_bytes()


def decode_text(content: bytes, where: str) -> str:
    """UTF-8 bytes as text, without byte order mark. Raises InputError that names the first line that is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}: line {line} is not UTF-8: save the file as UTF-8") from error


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises InputError with the line and column of what is broken."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise InputError(f"{where}: broken JSON, {error.msg} at {place}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of nested brackets
        raise InputError(f"{where}: JSON that cannot be read ({type(error).__name__})") from error


def record_of(value: Any, where: str) -> dict[str, Any]:
    """``value``, if it is an object with named fields. Raises InputError else."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object with named fields, found {shorten(value)}")
    return value


def list_of(value: Any, where: str) -> list[Any]:
    """``value``, if it is a list. Raises InputError else."""
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, found {shorten(value)}")
    return value


def text_of(value: Any, where: str) -> str:
    """``value`` as a text or number that names something (an id, a file); neither empty nor impossible to write."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: expected a name, found {shorten(value)}")
    return unicode_text(value, where)


def fields_named(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The fields of ``record`` that are called so, in the order of ``names``: ``" File Name"`` is ``file_name``."""
    fields: dict[str, list[str]] = {}
    for field in record:
        fields.setdefault(re.sub(r"[\s_-]+", "_", field.strip().lower()), []).append(field)
    return [field for name in names for field in fields.get(name, ())]


def take(record: dict[str, Any], names: Iterable[str]) -> Any:
    """Remove the fields called so from ``record``; the first value that is not empty, else None."""
    values = [record.pop(field) for field in fields_named(record, names)]
    return next((value for value in values if value not in (None, "", [])), None)


def take_captions(record: dict[str, Any]) -> Any:
    """Remove the captions from ``record``: the first known field that is not empty, else all of ``caption_1``, ``caption_2``..."""
    numbered = [record.pop(field) for field in [*record] if NUMBERED_CAPTION.fullmatch(field.strip().lower())]
    single = take(record, CAPTION_FIELDS)
    return [value for value in numbered if value] if single is None else single


def captions_of(value: Any, where: str) -> tuple[str, ...]:
    """A caption or a list of them (or nothing), stripped; empty ones are dropped.

    A caption is a text, or an object with the text as ``raw`` or its words as ``tokens``, as Karpathy writes it.
    """
    captions = []
    for item in value if isinstance(value, list) else [value]:
        caption = _sentence(item) if isinstance(item, dict) else item
        if caption is not None and not isinstance(caption, str):
            raise InputError(f"{where}: a caption must be text, found {shorten(caption)}")
        if caption and caption.strip():
            captions.append(unicode_text(caption.strip(), where))
    return tuple(captions)


def _sentence(record: Mapping[str, Any]) -> Any:
    tokens = record.get("tokens")
    if not record.get("raw") and isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        return " ".join(tokens)
    return record.get("raw") if record.keys() & {"raw", "tokens"} else record


def listed_captions(cell: str, several: bool, where: str) -> Any:
    """A table's cell with a list of captions, as JSON or as Python writes it; any other cell as it is.

    Raises InputError for a broken list in a column of ``several`` captions.
    """
    if not cell.lstrip().startswith("["):
        return cell
    for parse in (json.loads, ast.literal_eval):
        try:
            listed = parse(cell.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(listed, list) and all(isinstance(caption, str) for caption in listed):
            return listed
    return parse_json(cell, where) if several else cell


def split_of(where: str, *given: Any) -> str:
    """The split on which all that is ``given`` agrees, as this package calls it; "" where nothing is given."""
    splits = set()
    for split in given:
        if split is not None and split != "":
            if not isinstance(split, str) or split.strip().lower() not in SPLITS:
                raise InputError(f"{where}: unknown split {shorten(split)}; known are {', '.join(SPLITS)}")
            splits.add(SPLITS[split.strip().lower()])
    if len(splits) > 1:
        raise InputError(
            f"{where}: is it {' or '.join(sorted(splits))}? Its record and its folder or file say different splits"
        )
    return splits.pop() if splits else ""


def split_in_name(stem: str) -> str | None:
    """The split in a file's name: ``train-00000-of-00004``, ``flickr8k-val-000012``, ``captions_train2014``; else None.

    It is the first or the last word, numbers and words like "captions" aside.
    """
    words = [word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", stem.lower())]
    words = [word for word in words if word not in ("", "of", "captions", "annotations", "dataset", "karpathy")]
    return next((SPLITS[word] for word in (words[-1:] + words[:1]) if word in SPLITS), None)


def file_within(folder: Path, name: str, where: str) -> Path:
    """``folder/name``, refused where the name leads out of the folder (an absolute path, ".."); links are followed."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\0" in name:
        raise InputError(f"{where}: {shorten(name)} is not inside {folder}: copy the photo there")
    return folder / name


def unicode_text(text: str, where: str) -> str:
    """``text``, if it can be written as UTF-8. Raises InputError for half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {shorten(text)} holds half a character (a lone surrogate)") from error
    return text


def shorten(value: Any) -> str:
    """``value`` for a message: on one line, short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def numbered_records(source: Path, items: list[Any], field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of ``items`` with its place, for messages."""
    for i, item in enumerate(items):
        where = f"{source}: {field}[{i}]"
        yield where, record_of(item, where)
