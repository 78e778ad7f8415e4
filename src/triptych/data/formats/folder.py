"""A folder of photos with ``metadata.csv`` or ``metadata.jsonl``, laid out as for Hugging Face's ``imagefolder``.

Each row has a ``file_name``, a ``caption`` (or ``captions``, or ``text``) and perhaps a ``split``; sub-folders named after a
split may hold metadata of their own. Rows that differ in their caption only are one photo with several captions.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.data.photos import (
    SPLITS,
    Photo,
    captions_of,
    file_within,
    parse_json,
    read_text,
    record_of,
    split_of,
    text_of,
)
from triptych.errors import InputError

METADATA = ("metadata.csv", "metadata.jsonl")
CAPTION_FIELDS = ("caption", "captions", "text")


def metadata_files(folder: Path) -> list[Path]:
    """The metadata of ``folder`` and of its sub-folders that are named after a split."""
    places = [folder, *sorted(sub for sub in folder.iterdir() if sub.name.lower() in SPLITS and sub.is_dir())]
    found = []
    for place in places:
        files = [place / name for name in METADATA if (place / name).is_file()]
        if len(files) > 1:
            raise InputError(f"{place} holds both {' and '.join(METADATA)}: remove one")
        found += files
    return found


def read_folder(folder: Path) -> list[Photo]:
    """The photos that the metadata name, in that order; others in the folder are left alone."""
    photos: dict[str, Photo] = {}
    for source in metadata_files(folder):
        rows = _csv_rows(source) if source.suffix == ".csv" else _jsonl_rows(source)
        for line, row in rows:
            where = f"{source}: line {line}"
            photo = _photo(folder, source.parent, row, where)
            known = photos.get(photo.id)
            if known and replace(known, captions=()) != replace(photo, captions=()):
                raise InputError(f"{where}: a second row on {photo.id!r} that differs in more than the caption")
            photos[photo.id] = replace(photo, captions=known.captions + photo.captions) if known else photo
    return list(photos.values())


def _photo(folder: Path, place: Path, row: dict[str, Any], where: str) -> Photo:
    if "file_name" not in row:
        raise InputError(f"{where}: no file_name")
    file_name = PurePosixPath(text_of(row.pop("file_name"), f"{where}: file_name"))
    path = file_within(place, str(file_name), where)
    inside = path.relative_to(folder)
    folder_split = inside.parts[0] if len(inside.parts) > 1 and inside.parts[0].lower() in SPLITS else None
    values = [row.pop(name, None) for name in CAPTION_FIELDS]
    return Photo(
        id=text_of(row.pop("id", inside.as_posix()), f"{where}: id"),
        split=split_of(where, folder_split, row.pop("split", None)),
        captions=captions_of(next((value for value in values if value), None), where),
        extra=row,
        path=path,
    )


def _csv_rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(source), newline=""), strict=True)
    try:
        for row in reader:
            where = f"{source}: line {reader.line_num}"
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise InputError(f"{where}: expected {columns} columns: put quotes around a caption with commas")
            captions = row.get("captions", "")
            if captions.lstrip().startswith("["):
                row["captions"] = parse_json(captions, where)
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{source}: line {reader.reader.line_num}: broken CSV ({error})") from error


def _jsonl_rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(read_text(source).split("\n"), start=1):
        if text.strip():
            where = f"{source}: line {line}"
            yield line, record_of(parse_json(text, where), where)
