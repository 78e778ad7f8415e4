"""LLaVA's conversations: ``[{"id", "image", "conversations": [{"from", "value"}]}]`` (Liu et al., 2023)."""

from collections import Counter
from pathlib import Path
from typing import Any

from triptych.data.formats.photo_folders import photo_folder
from triptych.data.photos import Photo
from triptych.data.records import file_within, list_of, numbered_records, record_of, split_in_name, text_of
from triptych.errors import InputError


def matches(data: Any) -> bool:
    """Whether the parsed file is a list."""
    return isinstance(data, list)


def is_certain(data: Any) -> bool:
    """Whether some of the items are of this format, unlike those of other JSON files."""
    return any(isinstance(item, dict) and "conversations" in item for item in data)


def photos(source: Path, data: Any) -> list[Photo]:
    """The second conversation with an id gets ``#2`` behind it, and so on; conversations without a picture are left out."""
    records = [
        (where, record)
        for where, record in numbered_records(source, data, "")
        if "image" in record or "conversations" not in record
    ]
    names = [text_of(record.get("image"), f"{where}.image") for where, record in records]
    folder, split = photo_folder(source, names), split_in_name(source.stem) or ""
    counts: Counter[str] = Counter()
    listed = []
    for name, (where, record) in zip(names, records, strict=True):
        for turn in list_of(record.get("conversations"), f"{where}.conversations"):
            message = record_of(turn, f"{where}.conversations")
            if not isinstance(message.get("from"), str) or not isinstance(message.get("value"), str):
                raise InputError(f"{where}: each turn of a conversation needs the texts 'from' and 'value'")
        item_id = text_of(record.pop("id", name), f"{where}.id")
        counts[item_id] += 1
        number = f"#{counts[item_id]}" if counts[item_id] > 1 else ""
        listed.append(Photo(item_id + number, split, (), record, file_within(folder, name, where)))
    return listed
