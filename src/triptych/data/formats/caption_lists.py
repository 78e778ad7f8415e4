"""A list of captions or questions, as LAVIS, VizWiz and many hubs have it: the rows of a table as JSON.

``[{"image": "a.jpg", "caption": ...}]``, ``[{"image": "a.jpg", "question": ..., "answers": [...]}]``.
"""

from pathlib import Path
from typing import Any

from triptych.data.formats.photo_folders import photo_folder
from triptych.data.formats.rows import photos_of_rows
from triptych.data.photos import Photo
from triptych.data.records import CAPTION_FIELDS, FILE_FIELDS, fields_named, numbered_records, split_in_name


def matches(data: Any) -> bool:
    """Whether the parsed file is a list of objects, some of which name a file and a caption or a question."""
    return isinstance(data, list) and any(
        isinstance(item, dict) and fields_named(item, FILE_FIELDS) and fields_named(item, (*CAPTION_FIELDS, "question"))
        for item in data
    )


def is_certain(data: Any) -> bool:
    """What matches is such a list."""
    return True


def photos(source: Path, data: Any) -> list[Photo]:
    """The photos in the order of the file. Raises InputError with the place of what is wrong."""
    records = list(numbered_records(source, data, ""))
    names = [record[field] for _, record in records for field in fields_named(record, FILE_FIELDS)[:1]]
    folder = photo_folder(source, [name for name in names if isinstance(name, str)])
    split = split_in_name(source.stem)
    for _, record in records:
        if split and not fields_named(record, ["split"]):
            record["split"] = split
    return photos_of_rows(records, folder, folder)
