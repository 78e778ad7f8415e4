"""A folder of photos with ``metadata.csv`` or ``metadata.jsonl``, laid out as for Hugging Face's ``imagefolder``.

Each row has a ``file_name``, a ``caption`` (or ``captions``, or ``text``: `records.CAPTION_FIELDS`) and perhaps a ``split``;
sub-folders named after a split may hold metadata of their own.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.data.formats.rows import photos_of_rows
from triptych.data.photos import Photo
from triptych.data.records import (
    CAPTION_FIELDS,
    FILE_FIELDS,
    SPLITS,
    fields_named,
    listed_captions,
    parse_json,
    read_text,
    record_of,
)
from triptych.errors import InputError

NAMES = ("metadata.csv", "metadata.jsonl")
DELIMITERS = ",;\t|"


def find(path: Path) -> list[Path]:
    """The metadata at ``path``, or in a folder there and in its sub-folders that are named after a split."""
    if path.is_file():
        return [path] if path.name in NAMES else []
    places = [path, *sorted(sub for sub in path.iterdir() if sub.name.lower() in SPLITS and sub.is_dir())]
    sources = []
    for place in places:
        files = [place / name for name in NAMES if (place / name).is_file()]
        if len(files) > 1:
            raise InputError(f"{place} holds both {' and '.join(NAMES)}: remove one")
        sources += files
    return sources


def read(source: Path, root: Path) -> list[Photo]:
    """The photos that the metadata name, in that order; others in the folder are left alone."""
    rows = _csv_rows(source) if source.suffix == ".csv" else _jsonl_rows(source)
    return photos_of_rows(rows, source.parent, root)


def _csv_rows(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_text(source)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), strict=True, skipinitialspace=True, delimiter=_delimiter(text.partition("\n")[0])
    )
    try:
        for row in reader:
            where = f"{source}: line {reader.line_num}"
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise InputError(f"{where}: expected {columns} columns: put quotes around a caption with commas")
            for field in fields_named(row, CAPTION_FIELDS):
                several = field.strip().lower().endswith("s")
                row[field] = listed_captions(row[field], several, where)
            yield where, row
    except csv.Error as error:
        raise InputError(f"{source}: line {reader.reader.line_num}: broken CSV ({error})") from error


def _delimiter(header: str) -> str:
    """What separates the columns: that by which the header has a column of files."""
    return next((d for d in DELIMITERS if fields_named(dict.fromkeys(header.split(d)), FILE_FIELDS)), ",")


def _jsonl_rows(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, text in enumerate(read_text(source).split("\n"), start=1):
        if text.strip():
            where = f"{source}: line {line}"
            yield where, record_of(parse_json(text, where), where)
