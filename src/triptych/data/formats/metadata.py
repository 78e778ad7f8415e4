"""A folder of photos with a table: ``metadata.csv`` or ``metadata.jsonl``, laid out as for Hugging Face's ``imagefolder``.

``captions.txt`` (Flickr8k) and ``results.csv`` (Flickr30k) are read in the same way.

Each row has a ``file_name``, a ``caption`` (or ``captions``, or ``text``: `records.CAPTION_FIELDS`) and perhaps a ``split``;
sub-folders named after a split may hold metadata of their own.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.data.formats.photo_folders import photo_folder
from triptych.data.formats.rows import photos_of_rows
from triptych.data.photos import Photo, is_file
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

STEMS = ("metadata", "captions", "results")
"""The names of tables, without suffix and in any case; one that is not called metadata must have a column of files."""
METADATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
DELIMITERS = ",;\t|"


def find(path: Path) -> list[Path]:
    """The table ``path``, or those in a folder and in its sub-folders that are named after a split.

    Raises InputError where a folder holds several tables of one name.
    """
    if path.is_file():
        return (
            [path] if path.suffix.lower() in METADATA_SUFFIXES and (_stem(path) == STEMS[0] or _has_files(path)) else []
        )
    places = [path, *sorted(sub for sub in path.iterdir() if sub.name.lower() in SPLITS and sub.is_dir())]
    return [table for place in places for table in _tables(place)]


def read(source: Path, root: Path) -> list[Photo]:
    """The photos that the table names, in that order; others in the folder are left alone.

    They lie beside the table or, where the first does not, in a sub-folder (Flickr8k's ``Images``).
    """
    rows = list(_jsonl_rows(source) if source.suffix.lower() == ".jsonl" else _csv_rows(source))
    named = [row[field] for _, row in rows[:1] for field in fields_named(row, FILE_FIELDS)[:1]]
    names = [name.strip() for name in named if isinstance(name, str)]
    beside = any(is_file(source.parent / name) for name in names)
    return photos_of_rows(rows, source.parent if beside else photo_folder(source, names), root)


def is_generic(source: Path) -> bool:
    """Whether the table's name says nothing of its photos."""
    return _stem(source) in STEMS


def _stem(path: Path) -> str:
    return path.stem.lower()


def _tables(place: Path) -> list[Path]:
    tables = sorted(
        p for p in place.iterdir() if p.suffix.lower() in METADATA_SUFFIXES and is_generic(p) and p.is_file()
    )
    for stem in STEMS:
        known = [table for table in tables if _stem(table) == stem and (stem == STEMS[0] or _has_files(table))]
        if len(known) > 1:
            raise InputError(f"{place} holds both {' and '.join(table.name for table in known)}: remove one")
        if known:
            return known
    return []


def _has_files(table: Path) -> bool:
    """Whether the first line of a table names a column of files."""
    with table.open("rb") as file:
        first = file.readline(2**16).decode("utf-8-sig", "replace").strip()
    if table.suffix.lower() != ".jsonl":
        return bool(fields_named(dict.fromkeys(first.split(_delimiter(first))), FILE_FIELDS))
    try:
        return bool(fields_named(record_of(parse_json(first, str(table)), str(table)), FILE_FIELDS))
    except InputError:
        return False


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
