"""Karpathy's splits: ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw", "tokens"}]}]}`` (Karpathy and Fei-Fei, 2015)."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.data.formats.photo_folders import photo_folder
from triptych.data.photos import Photo, is_file
from triptych.data.records import (
    captions_of,
    file_within,
    list_of,
    numbered_records,
    record_of,
    split_in_name,
    split_of,
    text_of,
)


def matches(data: Any) -> bool:
    """Whether the parsed file has ``images`` without ``annotations``."""
    return isinstance(data, dict) and "images" in data and "annotations" not in data


def is_certain(data: Any) -> bool:
    """Whether some of the items are of this format, unlike those of other JSON files."""
    return isinstance(data["images"], list) and any(isinstance(i, dict) and "filename" in i for i in data["images"])


def photos(source: Path, data: Any) -> list[Photo]:
    """An id is the file's name without its suffix, where that is not unique with its folder or its suffix."""
    records = list(numbered_records(source, list_of(data["images"], f"{source}: images"), "images"))
    bare = [text_of(record.get("filename"), f"{where}.filename") for where, record in records]
    full = [
        str(PurePosixPath(text_of(record.get("filepath") or ".", f"{where}.filepath"), name))
        for name, (where, record) in zip(bare, records, strict=True)
    ]
    # COCO's photos may lie as filepath says, or all in one folder
    folder, names = photo_folder(source, full), full
    if full and not is_file(folder / full[0]):
        folder, names = photo_folder(source, bare), bare
    named_split = None if any(record.get("split") for _, record in records) else split_in_name(source.stem)
    listed = []
    for name, photo_id, (where, record) in zip(names, _ids(full), records, strict=True):
        sentences = list_of(record.pop("sentences", []), f"{where}.sentences")
        captions = [record_of(sentence, f"{where}.sentences") for sentence in sentences]
        listed.append(
            Photo(
                id=photo_id,
                split=split_of(where, record.pop("split", None), named_split),
                captions=captions_of([s for s in captions if s.keys() & {"raw", "tokens"}], f"{where}.sentences"),
                extra=record,
                path=file_within(folder, name, where),
            )
        )
    return listed


def _ids(names: list[str]) -> list[str]:
    """The shortest form of the names in which no two different ones are the same."""
    paths = [PurePosixPath(name) for name in names]
    forms = [[path.stem for path in paths], [str(path.parent / path.stem) for path in paths], names]
    different = len({*names})
    return next(form for form in forms if len(Counter(form)) == different)
