"""Data sets of photos with captions: one function opens every format, and keeps train, val and test apart."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.data.formats import annotations, easy_vqa, metadata, tar
from triptych.data.photos import Photo, is_file
from triptych.data.records import SPLITS
from triptych.errors import InputError

__all__ = ["Photo", "open_dataset"]


@dataclass(frozen=True)
class Format:
    """``find(path)``: the files of this format at a path, none where it has another; ``read(file, root)``: the photos of one of them.

    ``root`` is the folder of the data set.
    """

    find: Callable[[Path], list[Path]]
    read: Callable[[Path, Path], list[Photo]]


FORMATS = tuple(Format(module.find, module.read) for module in (metadata, easy_vqa, annotations, tar))
"""In the order in which they are tried: captions beside an archive of their photos come before the archive."""
DESCRIBED = (
    "a folder of photos with metadata.csv, metadata.jsonl or captions.txt, WebDataset shards (train-000000.tar...), "
    "Karpathy's dataset_*.json, COCO's captions_*.json, VQA's *_questions.json with *_annotations.json, "
    "a JSON list of captions or of LLaVA conversations, "
    "or the data folder of easy-vqa"
)
ARCHIVES = ("*.tar", "*.tar.gz", "*.tgz", "*.zip")


def open_dataset(path: str | Path, split: str | None = None) -> list[Photo]:
    """The photos of the data set at ``path``, or of its ``split``, in the order in which it lists them.

    ``path`` is a folder, or a file of metadata, a tar shard or a JSON file. Every photo has one of the splits train, val and
    test; where the data set names none at all, they are all train. That each photo's file is there is checked here; it is
    read later. An id that several of the data set's files use gets the file's name before it.

    Raises:
        InputError: no known format, broken metadata, missing photos, ids given twice in a file, a name that leads out of
            the folder, photos without a split beside others with one, or no photo in ``split``.
    """
    path = Path(path)
    photos = _with_splits(path, _read(path))
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
        raise InputError(f"{missing[0].path}: this photo of the data set is not there{others}{_archive_hint(path)}")
    return photos


def _read(path: Path) -> list[Photo]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    root = path if path.is_dir() else path.parent
    try:
        for kind in FORMATS:
            if files := kind.find(path):
                return _joined([(_label(file, root), kind.read(file, root)) for file in files])
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    unknown = annotations.unknown_files(path) if path.is_dir() else []
    note = f" ({len(unknown)} JSON files of no known format: {', '.join(unknown[:3])})" if unknown else ""
    raise InputError(f"{path}: not a data set that can be read{note}; what can be read: {DESCRIBED}")


def _label(file: Path, root: Path) -> str:
    """A short name of a file of a data set: that of its folder where that tells more than its own."""
    folder = file.parent.relative_to(root).as_posix() if file.is_relative_to(root) else "."
    return folder if metadata.is_generic(file) and folder != "." else file.stem


def _joined(files: Sequence[tuple[str, list[Photo]]]) -> list[Photo]:
    """The photos of all files: one that several describe has the captions of all, an id of different ones is qualified."""
    joined: dict[tuple[str, Path, int], Photo] = {}
    labels: dict[tuple[str, Path, int], str] = {}
    for label, photos in files:
        known: dict[str, Photo] = {}
        for photo in photos:
            if photo.id in known:
                raise InputError(f"{photo.name}: the id {photo.id!r} is already that of {known[photo.id].name}")
            known[photo.id] = photo
            key = photo.id, photo.path, photo.offset
            if key in joined:
                photo = _merged(joined[key], photo)
            joined[key] = photo
            labels.setdefault(key, label)
    counts = Counter(photo_id for photo_id, _, _ in joined)
    if max(counts.values(), default=1) == 1:
        return list(joined.values())
    qualified = [replace(photo, id=f"{labels[key]}/{photo.id}") for key, photo in joined.items()]
    if len({photo.id for photo in qualified}) < len(qualified):
        twice, count = Counter(photo.id for photo in qualified).most_common(1)[0]
        raise InputError(f"the id {twice!r} is that of {count} photos of files of the same name; rename a file")
    return qualified


def _merged(photo: Photo, again: Photo) -> Photo:
    if replace(photo, captions=()) != replace(again, captions=()):
        raise InputError(
            f"{again.name}: a second file describes {photo.id!r} and differs in more than the captions: "
            f"split {again.split or 'none'} after {photo.split or 'none'}"
        )
    return replace(photo, captions=photo.captions + again.captions)


def _with_splits(path: Path, photos: list[Photo]) -> list[Photo]:
    if not photos:
        raise InputError(f"{path}: a data set without a photo")
    without = [photo for photo in photos if not photo.split]
    if len(without) == len(photos):
        return [replace(photo, split="train") for photo in photos]
    if without:
        others = f" (nor have {len(without) - 1} others)" if len(without) > 1 else ""
        raise InputError(f"{without[0].name} has no split{others}, while other photos have: give it train, val or test")
    return photos


def _archive_hint(path: Path) -> str:
    archives = [file.name for pattern in ARCHIVES for file in sorted(path.glob(pattern))] if path.is_dir() else []
    return f"; if {archives[0]} holds it, unpack that there first" if archives else ""
