"""Questions that come with photos, and answers that come without looking at one."""

import json
from pathlib import Path

import pytest
from PIL import Image

from triptych.data import Photo, open_dataset
from triptych.data.english.given import given_answers, given_questions, question_prior
from triptych.data.english.kinds import Question
from triptych.errors import InputError


def photo(*captions: str, name: str = "a", **extra: object) -> Photo:
    return Photo(name, "train", captions, extra, Path("a.jpg"))


def test_questions_that_a_photo_comes_with() -> None:
    answers = {"Yes": "yes/no", "no": "yes/no", "2": "number", "two": "number", "grey": "colour", "a Dog": "object"}
    own = photo(vqa=[{"question": f"Q{i}?", "answer": answer} for i, answer in enumerate(answers)])
    assert given_questions(own) == [
        Question(f"Q{i}?", answer.lower(), kind) for i, (answer, kind) in enumerate(answers.items())
    ]
    assert given_questions(photo("A dog .")) == []


def test_the_answer_of_most_people_counts() -> None:
    people = ["a cat", "cat", "cat"]
    for answers in (people, [{"answer": answer} for answer in people]):
        assert given_questions(photo(vqa=[{"question": "Q?", "answers": answers}])) == [Question("Q?", "cat", "object")]
        assert given_answers({"answers": answers}) == people
    assert given_answers({}) == []


@pytest.mark.parametrize("vqa", [3, [3], [{}], [{"question": "Q?"}], [{"question": "Q?", "answer": ["yes"]}]])
def test_broken_questions_are_refused(vqa: object) -> None:
    with pytest.raises(InputError, match=r"a\.jpg: vqa"):
        given_questions(photo(vqa=vqa))


def test_the_blind_prior_knows_what_is_usual() -> None:
    def questions(*pairs: tuple[str, str]) -> list[Question]:
        return [Question(question, answer, "object") for question, answer in pairs]

    guess = question_prior(
        questions(
            ("What is the man riding?", "bike"),
            ("What is the man riding?", "bike"),
            ("What is the man riding?", "horse"),
            ("What is the dog chasing?", "ball"),
            ("What is the dog chasing?", "ball"),
            ("What is the dog chasing?", "ball"),
            ("What color is it?", "red"),
        )
    )
    assert guess("what is the man riding") == "bike"
    assert guess("What is the cat eating?") == "ball"
    assert guess("What?") == "ball"
    assert guess("Is it red?") == "yes"
    assert question_prior([])("Where?") == "yes"


def easy_vqa(folder: Path, questions: object, split: str = "train") -> Path:
    (folder / split / "images").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / split / "images" / f"{number}.png")
    (folder / split / "questions.json").write_text(json.dumps(questions))
    return folder


def test_easy_vqa_is_read(tmp_path: Path) -> None:
    easy_vqa(tmp_path, [["is it red?", "no", 1], ["what is it?", "circle", 0], ["is it blue?", "yes", 1]])
    easy_vqa(tmp_path, [["is it red?", "yes", 0]], "test")
    photos = open_dataset(tmp_path)
    assert [(own.id, own.split, own.captions) for own in photos] == [
        ("train/1", "train", ()),
        ("train/0", "train", ()),
        ("test/0", "test", ()),
    ]
    assert photos[0].image().getpixel((0, 0)) == (1, 0, 0)
    assert [(question.question, question.answer) for question in given_questions(photos[0])] == [
        ("is it red?", "no"),
        ("is it blue?", "yes"),
    ]
    assert open_dataset(tmp_path, "test") == photos[2:]


@pytest.mark.parametrize(
    "questions", [{}, [3], [["is it?", "no"]], [["is it?", 1.5, 0]], [["is it?", "no", "../x"]], [["is it?", "no", 7]]]
)
def test_broken_easy_vqa_is_refused(tmp_path: Path, questions: object) -> None:
    with pytest.raises(InputError) as error:
        open_dataset(easy_vqa(tmp_path, questions))
    assert "\n" not in str(error.value)
