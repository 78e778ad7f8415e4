"""Pictures within a text: counts are checked, photos have names, questions become statements."""

import pytest

from triptych.errors import InputError
from triptych.text.prompt import (
    END,
    OPEN_FLAMINGO,
    captions_by_picture,
    qformer_texts,
    question_after_pictures,
    question_example,
    question_prompt,
    split_at_images,
)
from triptych.text.questions import WhichPicture, pictures_named_by, statement, which_picture


def test_one_text_more_than_pictures() -> None:
    assert split_at_images("a <image> b<image>", 2) == ["a ", " b", ""]
    assert split_at_images("no picture", 0) == ["no picture"]


@pytest.mark.parametrize(("prompt", "pictures"), [("<image>", 0), ("<image>", 2), ("none", 1), ("<image><image>", 1)])
def test_more_or_fewer_pictures_than_placeholders_are_refused(prompt: str, pictures: int) -> None:
    with pytest.raises(InputError, match="each picture needs one"):
        split_at_images(prompt, pictures)


def test_photos_are_named_where_there_are_several() -> None:
    assert question_prompt("what?", 1) == "<image>\nQuestion: what?\nAnswer:"
    assert question_prompt("which?", 2) == "Left photo: <image>\nRight photo: <image>\nQuestion: which?\nAnswer:"
    assert question_prompt("which?", 3).startswith("Photo 1: <image>\nPhoto 2: <image>\nPhoto 3: <image>\n")
    assert question_prompt("is <image> like\n<image>?", 2) == "Question: is <image> like <image>?\nAnswer:"


def test_a_question_with_its_answer_as_an_example() -> None:
    """As OpenFlamingo's evaluation writes it; without a photo it is text alone."""
    written = question_example("What is it?", "a  dog", True, OPEN_FLAMINGO)
    assert written == f"<image>Question:What is it? Short answer:a dog{END}"
    assert question_example("What is it?", "a dog", False, OPEN_FLAMINGO) == written.removeprefix("<image>")


def test_the_qformer_reads_which_photo_it_looks_at() -> None:
    assert qformer_texts("what is <image> here?", 1) == ["what is here?"]
    assert qformer_texts("which?", 2) == ["left photo: which?", "right photo: which?"]
    assert qformer_texts("which?", 3)[2] == "photo 3: which?"


@pytest.mark.parametrize("question", ["", " \n", "<image>", " <image> <image> "])
def test_an_empty_question_is_refused(question: str) -> None:
    with pytest.raises(InputError, match="empty"):
        question_prompt(question, 1)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Which photo shows a dog in the snow?", "a dog in the snow"),
        ("In which photo is a horse?", "a horse"),
        ("in which picture can you see two boys?", "two boys"),
        ("Which photo is there a boat?", "a boat"),
        ("What is the man doing?", "What is the man doing"),
        ("Which photo?", "Which photo"),
    ],
)
def test_statements(question: str, expected: str) -> None:
    assert statement(question) == expected


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Which photo shows a dog?", WhichPicture("a dog")),
        ("Which photo does not show a dog?", WhichPicture("a dog", missing=True)),
        ("Which photo doesn't have a dog?", WhichPicture("a dog", missing=True)),
        ("Which photo has no dogs?", WhichPicture("dogs", missing=True)),
        ("In which photo is there not a dog?", WhichPicture("a dog", missing=True)),
        ("In which picture can't you see any dogs?", WhichPicture("dogs", missing=True)),
        ("In which picture can you not see a dog?", WhichPicture("a dog", missing=True)),
        ("Which photo is without a dog?", WhichPicture("a dog", missing=True)),
        ("Which one lacks a dog?", WhichPicture("a dog", missing=True)),
        ("Which photo shows a notice?", WhichPicture("a notice")),
        ("Which photo shows a dog that isn't running?", None),
        ("Which photo shows a man with no hat?", None),
        ("What is the man doing?", None),
    ],
)
def test_what_the_picture_that_is_asked_for_shows(question: str, wanted: WhichPicture | None) -> None:
    assert which_picture(question) == wanted


@pytest.mark.parametrize(
    ("question", "choices", "pictures", "places"),
    [
        ("Which photo shows a dog?", ["left", "right"], 2, [0, 1]),
        ("in which photo is a pizza in the oven?", ["b: Right", "a: left"], 2, [1, 0]),
        ("Which picture is it?", ["photo 2", "photo 1"], 2, [1, 0]),
        ("Which one is red?", ["3", "1", "2"], 3, [2, 0, 1]),
        ("Which photo shows a dog?", ["left", "none"], 2, None),
        ("Which photo shows a dog?", ["left", "left one"], 2, None),
        ("Which photo shows a dog?", ["left", "right", "none"], 2, None),
        ("Which photo shows a dog?", ["left or right", "right"], 2, None),
        ("Which photo shows a dog?", ["left", "right", "3"], 3, None),
        ("What do they show?", ["left", "right"], 2, None),
        ("Which photo is it, <image> or <image>?", ["left", "right"], 2, None),
    ],
)
def test_choices_that_name_photos(question: str, choices: list[str], pictures: int, places: list[int] | None) -> None:
    assert pictures_named_by(question, choices, pictures) == places


def test_pictures_are_captioned_one_by_one() -> None:
    first = f"Left photo: <image>\nCaption: a dog{END}Right photo: <image>\nCaption: a cat{END}"
    assert captions_by_picture(["a dog", "a cat"]) == first
    assert captions_by_picture(["a"] * 3).endswith(f"Photo 3: <image>\nCaption: a{END}")
    assert question_after_pictures("Which?") == "\nQuestion: Which?\nAnswer:"
    with pytest.raises(InputError, match="empty"):
        question_after_pictures(" ")
