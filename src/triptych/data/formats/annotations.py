"""One JSON file over a folder of photos: Karpathy's splits, COCO's captions, LLaVA's conversations; told apart by content."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.data.photos import (
    SPLITS,
    Photo,
    captions_of,
    file_within,
    is_file,
    list_of,
    parse_json,
    read_text,
    record_of,
    split_of,
    text_of,
)
from triptych.errors import InputError


def annotation_files(folder: Path) -> list[Path]:
    """Karpathy's ``dataset*.json``, else all of COCO's ``captions_*.json`` (there or in ``annotations``), else the only JSON."""
    for pattern in ("dataset*.json", "captions_*.json", "annotations/captions_*.json", "*.json"):
        files = sorted(folder.glob(pattern))
        if len(files) > 1 and "captions" not in pattern:
            names = ", ".join(file.name for file in files[:3])
            raise InputError(f"{folder} holds {len(files)} JSON files ({names}...): name the one to read")
        if files:
            return files
    return []


def read_annotations(sources: Iterable[Path]) -> list[Photo]:
    """The photos that ``sources`` name, in that order."""
    return [photo for source in sources for photo in _read(source)]


def _read(source: Path) -> list[Photo]:
    data = parse_json(read_text(source), str(source))
    if isinstance(data, list):
        return _llava(source, data)
    if isinstance(data, dict) and "images" in data:
        images = list_of(data["images"], f"{source}: images")
        if "annotations" in data:
            return _coco(source, images, list_of(data["annotations"], f"{source}: annotations"))
        return _karpathy(source, images)
    raise InputError(f"{source}: neither Karpathy's splits, nor COCO captions, nor LLaVA conversations")


def _karpathy(source: Path, images: list[Any]) -> list[Photo]:
    """``images[].{filename, filepath, split, sentences[].raw}`` (Karpathy and Fei-Fei 2015)."""
    records = _records(source, images, "images")
    bare = [text_of(record.get("filename"), f"{where}.filename") for where, record in records]
    full = [
        str(PurePosixPath(text_of(record.get("filepath") or ".", f"{where}.filepath"), name))
        for name, (where, record) in zip(bare, records, strict=True)
    ]
    # COCO's photos may lie as filepath says, or all in one folder
    folder, names = _photo_folder(source, full), full
    if full and not is_file(folder / full[0]):
        folder, names = _photo_folder(source, bare), bare
    photos = []
    for name, (where, record) in zip(names, records, strict=True):
        sentences = list_of(record.pop("sentences", []), f"{where}.sentences")
        captions = [record_of(sentence, f"{where}.sentences").get("raw") for sentence in sentences]
        photos.append(
            Photo(
                id=PurePosixPath(name).stem,
                split=split_of(where, record.pop("split", None)),
                captions=captions_of(captions, where),
                extra=record,
                path=file_within(folder, name, where),
            )
        )
    return photos


def _coco(source: Path, images: list[Any], annotations: list[Any]) -> list[Photo]:
    """``images[].{id, file_name}`` and ``annotations[].{image_id, caption}``; the split is in the file's name."""
    captions = defaultdict(list)
    for where, record in _records(source, annotations, "annotations"):
        if "caption" not in record:
            raise InputError(f"{where}: no caption: expected the captions_*.json of COCO")
        captions[text_of(record.get("image_id"), f"{where}.image_id")].append(record["caption"])
    named = re.match(r"captions_([a-z]+)", source.stem.lower())
    split = SPLITS.get(named[1], "") if named else ""
    records = _records(source, images, "images")
    names = [text_of(record.get("file_name"), f"{where}.file_name") for where, record in records]
    folder = _photo_folder(source, names)
    photos = []
    for name, (where, record) in zip(names, records, strict=True):
        image_id = text_of(record.pop("id", None), f"{where}.id")
        path = file_within(folder, name, where)
        photos.append(Photo(image_id, split, captions_of(captions.pop(image_id, []), where), record, path))
    if captions:
        raise InputError(f"{source}: captions of the image {next(iter(captions))!r}, which is not among its images")
    return photos


def _llava(source: Path, items: list[Any]) -> list[Photo]:
    """``[{id, image, conversations: [{from, value}]}]``; the second conversation with an id gets ``#2`` behind it, and so on.

    Conversations without a picture, of which LLaVA's mixtures have some, are left out.
    """
    records = [
        (where, record)
        for where, record in _records(source, items, "")
        if "image" in record or "conversations" not in record
    ]
    names = [text_of(record.get("image"), f"{where}.image") for where, record in records]
    folder = _photo_folder(source, names)
    counts: Counter[str] = Counter()
    photos = []
    for name, (where, record) in zip(names, records, strict=True):
        for turn in list_of(record.get("conversations"), f"{where}.conversations"):
            spoken = record_of(turn, f"{where}.conversations")
            if not isinstance(spoken.get("from"), str) or not isinstance(spoken.get("value"), str):
                raise InputError(f"{where}: each turn of a conversation needs the texts 'from' and 'value'")
        item_id = text_of(record.pop("id", name), f"{where}.id")
        counts[item_id] += 1
        number = f"#{counts[item_id]}" if counts[item_id] > 1 else ""
        photos.append(Photo(item_id + number, "", (), record, file_within(folder, name, where)))
    return photos


def _records(source: Path, items: list[Any], field: str) -> list[tuple[str, dict[str, Any]]]:
    """Each of ``items`` with its place, for messages."""
    places = [f"{source}: {field}[{i}]" for i in range(len(items))]
    return [(where, record_of(item, where)) for where, item in zip(places, items, strict=True)]


def _photo_folder(source: Path, names: list[str]) -> Path:
    """The folder to which ``names`` are relative, found by the first of them.

    It is the folder of ``source`` (the one above where that is called ``annotations``), or a sub-folder of it or of its
    ``images``; of several the one that is called as the file is (``train2014`` for ``captions_train2014.json``).
    """
    root = source.parent.parent if source.parent.name == "annotations" else source.parent
    folders = [root]
    for parent in (root, root / "images"):
        if parent.is_dir():
            with os.scandir(parent) as entries:
                subs = sorted(entry.name for entry in entries if entry.is_dir())
            folders += [parent / sub for sub in sorted(subs, key=lambda sub: sub not in source.stem)]
    return next((folder for folder in folders for name in names[:1] if is_file(folder / name)), root)
