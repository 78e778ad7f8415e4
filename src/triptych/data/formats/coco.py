"""COCO's captions: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``; the split is in the file's name."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from triptych.data.formats.photo_folders import photo_folder
from triptych.data.photos import Photo
from triptych.data.records import (
    captions_of,
    file_within,
    list_of,
    numbered_records,
    split_in_name,
    text_of,
)
from triptych.errors import InputError


def matches(data: Any) -> bool:
    """Whether the parsed file has ``images`` and ``annotations``."""
    return isinstance(data, dict) and "images" in data and "annotations" in data


def is_certain(data: Any) -> bool:
    """Whether the annotations are captions, not the boxes or key points of COCO's other files."""
    annotations = data["annotations"]
    return isinstance(annotations, list) and any(isinstance(a, dict) and "caption" in a for a in annotations)


def photos(source: Path, data: Any) -> list[Photo]:
    """The photos in the order of the file. Raises InputError with the place of what is wrong."""
    captions = defaultdict(list)
    annotations = list_of(data["annotations"], f"{source}: annotations")
    for where, record in numbered_records(source, annotations, "annotations"):
        if "caption" not in record:
            raise InputError(f"{where}: no caption: expected the captions_*.json of COCO")
        captions[text_of(record.get("image_id"), f"{where}.image_id")].append(record["caption"])
    split = split_in_name(source.stem) or ""
    records = list(numbered_records(source, list_of(data["images"], f"{source}: images"), "images"))
    names = [text_of(record.get("file_name"), f"{where}.file_name") for where, record in records]
    folder = photo_folder(source, names)
    listed = []
    for name, (where, record) in zip(names, records, strict=True):
        image_id = text_of(record.pop("id", None), f"{where}.id")
        path = file_within(folder, name, where)
        listed.append(Photo(image_id, split, captions_of(captions.pop(image_id, []), where), record, path))
    if captions:
        raise InputError(f"{source}: captions of the image {next(iter(captions))!r}, which is not among its images")
    return listed
