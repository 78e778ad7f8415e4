"""The folder ``data`` of the package easy-vqa: plain shapes on a plain ground, and questions about them (Zhou, 2019).

``train`` and ``test`` each have ``questions.json``, a list of [question, answer, number], and ``images/NUMBER.png``.
"""

from pathlib import Path
from typing import Any

from triptych.data.photos import Photo
from triptych.data.records import file_within, list_of, parse_json, read_text, shorten, text_of
from triptych.errors import InputError


def find(path: Path) -> list[Path]:
    """The files of questions that are laid out so in the folder ``path``."""
    files = [path / split / "questions.json" for split in ("train", "test")]
    return [file for file in files if file.is_file() and (file.parent / "images").is_dir()]


def read(source: Path, root: Path) -> list[Photo]:
    """The photos about which something is asked, each with ``extra["vqa"]``: ``[{"question": ..., "answer": ...}]``."""
    split, images = source.parent.name, source.parent / "images"
    questions: dict[str, list[dict[str, str]]] = {}
    for i, item in enumerate(list_of(parse_json(read_text(source), str(source)), str(source))):
        where = f"{source}: [{i}]"
        question, answer, number = (text_of(value, where) for value in _triple(item, where))
        questions.setdefault(number, []).append({"question": question, "answer": answer})
    return [
        Photo(f"{split}/{number}", split, (), {"vqa": vqa}, file_within(images, f"{number}.png", str(source)))
        for number, vqa in questions.items()
    ]


def _triple(item: Any, where: str) -> list[Any]:
    if not isinstance(item, list) or len(item) != 3:
        raise InputError(f"{where}: expected [question, answer, number of the image], found {shorten(item)}")
    return item
