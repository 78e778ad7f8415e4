"""JSON files over a folder of photos; the content decides which format a file has."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.data.formats import caption_lists, coco, karpathy, llava, vqa
from triptych.data.photos import Photo
from triptych.data.records import parse_json, read_text, split_in_name
from triptych.errors import InputError

CAPTIONS = ("dataset*.json", "captions_*.json", "annotations/captions_*.json")
"""Where a folder's captions are looked for, in this order: Karpathy's, COCO's."""
ANY = ("*.json", "annotations/*.json", "Annotations/*.json")
SMALL_FILE = 2**22
"""A file of more bytes is no card of a data set: it is not parsed to find out."""


@dataclass(frozen=True)
class JsonFormat:
    """``matches(data)``: the parsed file may have this format; ``is_certain(data)``: one that matches has; ``photos(source, data)``:
    those that it names."""

    matches: Callable[[Any], bool]
    is_certain: Callable[[Any], bool]
    photos: Callable[[Path, Any], list[Photo]]


ANNOTATION_FORMATS = tuple(
    JsonFormat(module.matches, module.is_certain, module.photos)
    for module in (caption_lists, llava, coco, karpathy, vqa)
)


def find(path: Path) -> list[Path]:
    """The JSON file ``path``; or of a folder Karpathy's ``dataset*.json``, else all of COCO's ``captions_*.json`` (there or in
    ``annotations``), or VQA's questions, else the only other JSON file, or all if each is named after a split. Files of no known format
    are skipped.

    Raises InputError where it is not clear which file to read.
    """
    if path.is_file():
        return [vqa.question_file_of(path)] if path.suffix == ".json" else []
    captions, questions = _first_known(path, CAPTIONS), vqa.question_files(path)
    if captions and questions:
        raise InputError(
            f"{path} holds captions ({captions[0].name}) and questions ({questions[0].name}): name the file to read"
        )
    return captions or questions or _first_known(path, ANY)


def _first_known(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a known format that match the first of the ``patterns`` that any matches."""
    for pattern in patterns:
        known = [file for file in sorted(folder.glob(pattern)) if _is_known(file)]
        if len(known) > 1 and not pattern.endswith("captions_*.json"):
            splits = [split_in_name(file.stem) for file in known]
            if None in splits or len({*splits}) < len(splits):
                names = ", ".join(file.name for file in known[:3])
                raise InputError(f"{folder} holds {len(known)} JSON files ({names}...): name the one to read")
        if known:
            return known
    return []


def read(source: Path, root: Path) -> list[Photo]:
    """The photos that the file names, in that order."""
    data = parse_json(read_text(source), str(source))
    if (kind := _format_of(data)) is None:
        raise InputError(
            f"{source}: neither Karpathy's splits, nor COCO captions, nor VQA's questions, nor LLaVA conversations, nor a list of captions"
        )
    return kind.photos(source, data)


def _format_of(data: Any) -> JsonFormat | None:
    return next((kind for kind in ANNOTATION_FORMATS if kind.matches(data)), None)


def _is_known(file: Path) -> bool:
    if file.stat().st_size > SMALL_FILE:
        return True
    try:
        data = parse_json(read_text(file), str(file))
    except InputError:
        return False
    kind = _format_of(data)
    return kind is not None and kind.is_certain(data)


def unknown_files(path: Path) -> list[str]:
    """The names of a folder's JSON files, none of which has a known format. Raises InputError for the first that is broken."""
    files = sorted(path.glob("*.json"))
    for file in files:
        parse_json(read_text(file), str(file))
    return [file.name for file in files]
