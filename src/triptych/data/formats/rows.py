"""Rows of a table of photos with captions or questions -> photos: rows of one photo that differ in their caption are its captions, those
with a question and its answers are its questions."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.data.photos import Photo
from triptych.data.records import (
    CAPTION_FIELDS,
    FILE_FIELDS,
    NUMBERED_CAPTION,
    SPLITS,
    captions_of,
    fields_named,
    file_within,
    list_of,
    listed_captions,
    shorten,
    split_of,
    take,
    take_captions,
    text_of,
)
from triptych.errors import InputError

OTHER_FIELDS = {"vqa", "conversations", "question", "questions", "answer", "answers", "objects"}
"""Fields beside which a table need not have captions."""
ANSWER_FIELDS = ("answers", "answer")
PHOTO_FIELDS = ("vqa", "objects", "width", "height")
"""What a row with a question says of its photo; all else is of the question."""
NUMBERED = re.compile(r"(?P<text>.*?)(?P<number>\d{1,18})(?:\.0*)?", re.DOTALL)


@dataclass
class Row:
    """One row: where it is, for messages, and what it says; ``id`` is None where it says none."""

    where: str
    name: str
    path: Path
    id: str | None
    split: str
    captions: tuple[str, ...]
    extra: dict[str, Any]
    vqa: list[dict[str, Any]]


def photos_of_rows(records: Iterable[tuple[str, dict[str, Any]]], folder: Path, root: Path) -> list[Photo]:
    """The photos of a table in ``folder``, in the order of their first rows; an id is the path from ``root`` if none is given.

    Columns that number the rows, or the captions of a photo, are left out.

    Raises:
        InputError: a row without a file or with a broken field, rows of one photo that differ in more, or a table with
            texts of which none is in a column known for captions.
    """
    records = list(records)
    _check_caption_column(records)
    rows = [_row(where, record, folder, root) for where, record in records]
    _drop_numbering_ids(rows)
    photos: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        photos[row.id or row.name].append(row)
    _drop_numbering_columns(rows, photos.values())
    return [_photo(photo_id, same) for photo_id, same in photos.items()]


def _row(where: str, record: dict[str, Any], folder: Path, root: Path) -> Row:
    record = {field: value for field, value in record.items() if field.strip()}  # pandas numbers rows without a name
    if not fields_named(record, FILE_FIELDS):
        known = ", ".join(FILE_FIELDS)
        raise InputError(f"{where}: no file_name among {_listed(record)}; a photo's file is known as {known}")
    file_name = PurePosixPath(text_of(take(record, FILE_FIELDS), f"{where}: file_name").strip())
    path = file_within(folder, str(file_name), where)
    inside = path.relative_to(root)
    folder_split = inside.parts[0] if len(inside.parts) > 1 and inside.parts[0].lower() in SPLITS else None
    photo_id = text_of(take(record, ["id"]), f"{where}: id") if fields_named(record, ["id"]) else None
    split = split_of(where, folder_split, take(record, ["split"]))
    captions = captions_of(take_captions(record), where)
    extra, vqa = _without_question(record, where)
    return Row(where, inside.as_posix(), path, photo_id, split, captions, extra, vqa)


def _without_question(record: dict[str, Any], where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a row says of its photo, and its question with answers and all else that it says of it; none where one of the two is missing."""
    if not fields_named(record, ["question"]) or not fields_named(record, ANSWER_FIELDS):
        return record, []
    question, answers = take(record, ["question"]), take(record, ANSWER_FIELDS)
    about_photo = {field: record.pop(field) for field in PHOTO_FIELDS if field in record}
    if question is None:
        return about_photo | record, []
    if isinstance(answers, str):
        answers = listed_captions(answers, False, where)
    entry = {"question": text_of(question, f"{where}: question"), "answers": answers_of(answers, f"{where}: answers")}
    return about_photo, [record | entry]


def answers_of(value: Any, where: str) -> list[str]:
    """An answer, or those of several people: texts, or objects with one as ``answer``; empty ones are dropped."""
    items = [
        item.get("answer") if isinstance(item, dict) else item
        for item in (value if isinstance(value, list) else [value])
    ]
    return [text_of(item, where) for item in [item for item in items if item not in ("", None)] or items[:1] or [None]]


def _photo(photo_id: str, rows: Sequence[Row]) -> Photo:
    first, *others = rows
    for row in others:
        differing = [field for field in {**first.extra, **row.extra} if first.extra.get(field) != row.extra.get(field)]
        differing += ["file_name"] * (row.path != first.path) + ["split"] * (row.split != first.split)
        if differing:
            raise InputError(
                f"{row.where}: a second row on {photo_id!r} that differs in more than the caption: {_listed(differing)}"
            )
    captions = tuple(caption for row in rows for caption in row.captions)
    questions = [entry for row in rows for entry in row.vqa]
    extra = dict(first.extra)
    if questions:
        captions = tuple(dict.fromkeys(captions))  # said again with each question
        extra["vqa"] = [*list_of(extra.get("vqa", []), f"{first.where}: vqa"), *questions]
    return Photo(photo_id, first.split, captions, extra, first.path)


def _check_caption_column(records: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Photos without captions are fine, captions that nobody reads are not."""
    texts: dict[str, str] = {}
    for where, record in records:
        names = {field.strip().lower() for field in record}
        if fields_named(record, CAPTION_FIELDS) or names & OTHER_FIELDS or any(map(NUMBERED_CAPTION.fullmatch, names)):
            return
        about = {*fields_named(record, [*FILE_FIELDS, "id", "split"])}
        for field, value in record.items():
            if field not in about and isinstance(value, str) and " " in value.strip():
                texts.setdefault(field, where)
    if texts:
        field, where = next(iter(texts.items()))
        raise InputError(
            f"{where}: no column of captions: found {_listed(records[0][1])}; known are {', '.join(CAPTION_FIELDS)}; "
            f"rename {shorten(field)} if it holds them"
        )


def _drop_numbering_ids(rows: Sequence[Row]) -> None:
    """Ids that differ between the rows of a file number its captions: ``1``, ``2``, or ``a.jpg#0``, ``a.jpg#1``."""
    ids = defaultdict(list)
    for row in rows:
        ids[row.path].append(row.id)
    several = [given for given in ids.values() if len({*given}) > 1]
    if several and all(_are_numbers(given) for given in several):
        for row in rows:
            row.id = None


def _drop_numbering_columns(rows: Sequence[Row], photos: Iterable[Sequence[Row]]) -> None:
    numbering: dict[str, bool] = {}
    for same in photos:
        for field in {field: None for row in same for field in row.extra}:
            values = [row.extra.get(field) for row in same]
            if any(value != values[0] for value in values[1:]):
                numbers = _are_numbers(values) and all(row.captions or row.vqa for row in same)
                numbering[field] = numbers and numbering.get(field, True)
    for row in rows:
        row.extra = {field: value for field, value in row.extra.items() if not numbering.get(field)}


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether the values are different whole numbers, perhaps all behind the same text."""
    parts = [NUMBERED.fullmatch(str(value).strip()) for value in values if not isinstance(value, bool)]
    numbered = [(match["text"], int(match["number"])) for match in parts if match]
    return len({*numbered}) == len(values) and len({text for text, _ in numbered}) == 1


def _listed(fields: Iterable[str]) -> str:
    return ", ".join(shorten(field)[1:-1] for field in fields)
