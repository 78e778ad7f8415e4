"""VQA's two JSON files, as downloaded: questions, and the answers of ten people to each (Antol et al. 2015; Goyal et al. 2017).

OK-VQA (Marino et al. 2019) has them in the same form: ``{"data_subtype", "questions": [{"question_id", "image_id", "question"}]}`` and
``{"data_subtype", "annotations": [{"question_id", "answers": [{"answer"}]}]}``.
"""

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from triptych.data.formats.photo_folders import photo_folder
from triptych.data.photos import Photo, is_file
from triptych.data.records import SPLITS, file_within, list_of, numbered_records, read_bytes, shorten, text_of
from triptych.errors import InputError

HEAD = 1 << 16  # bytes of a file that tell which of the two it is
LIST = re.compile(rb'"(questions|annotations)"\s*:\s*\[')
SUBTYPE = re.compile(rb'"data_subtype"\s*:\s*"([\w-]{1,80})"')
FILE_WORDS = re.compile(r"question|annotation", re.IGNORECASE)
PHOTO_NAMES = ("COCO_{}_{:012d}.jpg", "{1:012d}.jpg", "abstract_v002_{}_{:012d}.png")
"""Names of an image's file by the subtype and the image's number: COCO's of 2014, of 2017, VQA's abstract scenes."""


class AnswerOfPerson(msgspec.Struct, gc=False):
    answer: str


class AnswerRecord(msgspec.Struct):
    question_id: int | str
    answers: list[AnswerOfPerson]


class AnswerFile(msgspec.Struct):
    annotations: list[AnswerRecord]


def matches(data: Any) -> bool:
    """Whether the parsed file has a list of ``questions``."""
    return isinstance(data, dict) and isinstance(data.get("questions"), list)


def is_certain(data: Any) -> bool:
    """Whether some of them name an image."""
    return any(isinstance(item, dict) and {"question_id", "image_id"} <= item.keys() for item in data["questions"])


def photos(source: Path, data: Any) -> list[Photo]:
    """The photos that ``source`` has questions about, in the order of their first ones; ``extra["vqa"]`` holds them with their answers.

    Raises:
        InputError: there is no file of answers, a question has none, or a record is broken.
    """
    answer_file = partner(source, "annotations")
    if answer_file is None:
        raise InputError(
            f"{source}: no file of answers (*_annotations.json) is beside it; visualqa.org has those of train and val"
        )
    answers, questions = read_answers(answer_file), dict[str, list[dict[str, Any]]]()
    for where, record in numbered_records(source, list_of(data["questions"], f"{source}: questions"), "questions"):
        number = text_of(record.get("question_id"), f"{where}.question_id")
        if not answers.get(number):
            raise InputError(f"{where}: {answer_file} has no answers to the question {shorten(number)}")
        entry = {"question": text_of(record.get("question"), f"{where}.question"), "answers": answers[number]}
        questions.setdefault(text_of(record.get("image_id"), f"{where}.image_id"), []).append(entry)
    subtype = subtype_of(source)
    folder, form = place_of_photos(source, subtype, next(iter(questions), "0"))
    split, names = split_of_subtype(subtype), {image: photo_name(form, subtype, image, source) for image in questions}
    return [
        Photo(image, split, (), {"vqa": vqa}, file_within(folder, names[image], str(source)))
        for image, vqa in questions.items()
    ]


def question_files(folder: Path) -> list[Path]:
    """The files of questions in a folder, or right below it, that have answers; those without, if no other is there.

    Raises InputError where two are of one split.
    """
    files = [file for file in files_around(folder) if kind_of_file(file) == "questions"]
    files = [file for file in files if partner(file, "annotations")] or files
    if len({split_of_subtype(subtype_of(file)) for file in files}) < len(files):
        names = ", ".join(file.name for file in files[:3])
        raise InputError(f"{folder} holds {len(files)} files of questions ({names}...): name the one to read")
    return files


def question_file_of(file: Path) -> Path:
    """The file of questions that goes with a file of answers; any other file itself."""
    return (partner(file, "questions") or file) if kind_of_file(file) == "annotations" else file


def partner(file: Path, kind: str) -> Path | None:
    """The file of this ``kind`` that goes with ``file``: the one of the same name, else the only one of the same ``data_subtype``.

    Raises InputError where there are several.
    """
    near = [[other for other in files_around(root) if kind_of_file(other) == kind] for root in roots(file)]
    others = next(filter(None, near), [])
    same_name = [other for other in others if name_words(other) == name_words(file)]
    same = same_name or [other for other in others if subtype_of(other) == subtype_of(file)]
    if len(same) > 1:
        raise InputError(f"{file} may go with {same[0].name} or {same[1].name}: keep those of one data set in a folder")
    return same[0] if same else None


def roots(file: Path) -> list[Path]:
    """The folder of a file, and the one above where its own is called after questions or annotations."""
    return [file.parent, file.parent.parent] if FILE_WORDS.search(file.parent.name) else [file.parent]


def files_around(folder: Path) -> list[Path]:
    """The JSON files in a folder, and those in its sub-folders that are named after questions or annotations."""
    below = (file for file in folder.glob("*/*.json") if FILE_WORDS.search(file.name))
    return sorted(file for file in chain(folder.glob("*.json"), below) if is_file(file))


def name_words(file: Path) -> list[str]:
    words = re.split(r"[^a-z0-9]+", file.stem.lower())
    return [word for word in words if word not in ("openended", "questions", "annotations")]


def head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(HEAD)


def kind_of_file(file: Path) -> str | None:
    """``questions`` or ``annotations``, as the beginning of the file shows; None = neither, or questions with choices (of VQA 1.0)."""
    begin = head(file)
    name = LIST.search(begin)
    if name is None or b'"question_id"' not in begin or b'"multiple_choices"' in begin:
        return None
    return name[1].decode()


def subtype_of(file: Path) -> str:
    """Its ``data_subtype``, such as ``val2014``; else the word of its name that says the split."""
    if named := SUBTYPE.search(head(file)):
        return named[1].decode()
    return next((word for word in re.split(r"[^a-zA-Z0-9-]+", file.stem) if split_of_subtype(word)), "")


def split_of_subtype(subtype: str) -> str:
    """The split of ``train2014``, of ``test-dev2015``; "" where it names none."""
    letters = re.match("[a-z]*", subtype.lower())
    return SPLITS.get(letters[0] if letters else "", "")


def place_of_photos(source: Path, subtype: str, image: str) -> tuple[Path, str]:
    """The folder of the photos and the form of their names, by where a photo of this number is."""
    for root in roots(source):
        for form in PHOTO_NAMES:
            name = photo_name(form, subtype, image, source)
            folder = photo_folder(root / f"{subtype}.json", [name])
            if is_file(folder / name):
                return folder, form
    return photo_folder(source.parent / f"{subtype}.json", []), PHOTO_NAMES[0]


def photo_name(form: str, subtype: str, image: str, source: Path) -> str:
    if not image.isdecimal() or len(image) > 18:
        raise InputError(f"{source}: the image_id {shorten(image)} is no number, as those of COCO's photos are")
    return form.format(subtype, int(image))


def read_answers(file: Path) -> Mapping[str, list[str]]:
    """The answers of people to each question, by its id. Raises InputError: the file is broken."""
    try:
        content = msgspec.json.decode(read_bytes(file).removeprefix(b"\xef\xbb\xbf"), type=AnswerFile)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{file}: {error or 'nested too deeply'}") from None
    return {
        str(item.question_id): [each.answer for each in item.answers if each.answer.strip()]
        for item in content.annotations
    }
