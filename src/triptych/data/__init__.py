"""Data sets of photos with captions: one function opens every format, and keeps train, val and test apart."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from triptych.data.formats.annotations import annotation_files, read_annotations
from triptych.data.formats.easy_vqa import easy_vqa_files, read_easy_vqa
from triptych.data.formats.folder import metadata_files, read_folder
from triptych.data.formats.tar import read_shards
from triptych.data.photos import SPLITS, Photo, is_file
from triptych.errors import InputError

__all__ = ["Photo", "open_dataset"]

FORMATS = (
    "WebDataset shards (train-000000.tar...), a folder of photos with metadata.csv or metadata.jsonl, "
    "Karpathy's dataset_*.json, COCO's captions_*.json, a JSON file of LLaVA conversations, or the data folder of easy-vqa"
)


def open_dataset(path: str | Path, split: str | None = None) -> list[Photo]:
    """The photos of the data set at ``path``, or of its ``split``, in the order in which it lists them.

    ``path`` is a folder, a tar shard or a JSON file. Every photo has one of the splits train, val and test; where the data
    set names none at all, they are all train. That each photo's file is there is checked here; it is read later.

    Raises:
        InputError: no known format, broken metadata, missing photos, ids given twice, a name that leads out of the folder,
            photos without a split beside others with one, or no photo in ``split``.
    """
    path = Path(path)
    photos = _assigned(path, _read(path))
    if split is not None:
        wanted = SPLITS.get(split.lower(), split)
        counts = Counter(photo.split for photo in photos)
        photos = [photo for photo in photos if photo.split == wanted]
        if not photos:
            there = ", ".join(f"{name} ({counts[name]} photos)" for name in ("train", "val", "test") if name in counts)
            raise InputError(f"{path} has no split {split!r}; it has {there}")
    missing = [photo for photo in photos if not is_file(photo.path)]
    if missing:
        others = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(f"{missing[0].path}: this photo of the data set is not there{others}")
    return photos


def _read(path: Path) -> list[Photo]:
    try:
        if path.is_dir():
            if shards := sorted(path.glob("*.tar")):
                return read_shards(shards)
            if metadata_files(path):
                return read_folder(path)
            if easy_vqa_files(path):
                return read_easy_vqa(path)
            if sources := annotation_files(path):
                return read_annotations(sources)
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif path.suffix == ".tar":
            return read_shards([path])
        elif path.suffix == ".json":
            return read_annotations([path])
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    raise InputError(f"{path}: not a data set that can be read; what can be read: {FORMATS}")


def _assigned(path: Path, photos: list[Photo]) -> list[Photo]:
    """``photos``, each with a split and an id of its own."""
    if not photos:
        raise InputError(f"{path}: a data set without a photo")
    known: dict[str, Photo] = {}
    for photo in photos:
        if photo.id in known:
            raise InputError(f"{photo.name}: the id {photo.id!r} is already that of {known[photo.id].name}")
        known[photo.id] = photo
    without = [photo for photo in photos if not photo.split]
    if len(without) == len(photos):
        return [replace(photo, split="train") for photo in photos]
    if without:
        others = f" (nor have {len(without) - 1} others)" if len(without) > 1 else ""
        raise InputError(f"{without[0].name} has no split{others}, while other photos have: give it train, val or test")
    return photos
