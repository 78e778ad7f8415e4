"""The folder ``data`` of the package easy-vqa: plain shapes on a plain ground, and questions about them (Zhou, 2019).

``train`` and ``test`` each have ``questions.json``, a list of [question, answer, number], and ``images/NUMBER.png``.
"""

from pathlib import Path
from typing import Any

from triptych.data.photos import Photo, file_within, list_of, parse_json, read_text, shown, text_of
from triptych.errors import InputError


def easy_vqa_files(folder: Path) -> list[Path]:
    """The files of questions that are laid out so in ``folder``."""
    files = [folder / split / "questions.json" for split in ("train", "test")]
    return [file for file in files if file.is_file() and (file.parent / "images").is_dir()]


def read_easy_vqa(folder: Path) -> list[Photo]:
    """The photos about which something is asked, each with ``extra["vqa"]``: ``[{"question": ..., "answer": ...}]``."""
    return [photo for source in easy_vqa_files(folder) for photo in _read(source)]


def _read(source: Path) -> list[Photo]:
    split, images = source.parent.name, source.parent / "images"
    asked: dict[str, list[dict[str, str]]] = {}
    for i, item in enumerate(list_of(parse_json(read_text(source), str(source)), str(source))):
        where = f"{source}: [{i}]"
        question, answer, number = (text_of(value, where) for value in _triple(item, where))
        asked.setdefault(number, []).append({"question": question, "answer": answer})
    return [
        Photo(f"{split}/{number}", split, (), {"vqa": vqa}, file_within(images, f"{number}.png", str(source)))
        for number, vqa in asked.items()
    ]


def _triple(item: Any, where: str) -> list[Any]:
    if not isinstance(item, list) or len(item) != 3:
        raise InputError(f"{where}: expected [question, answer, number of the image], found {shown(item)}")
    return item
