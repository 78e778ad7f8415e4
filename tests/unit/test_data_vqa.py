"""VQA's and OK-VQA's files, laid out as people have them, and NoCaps' captions."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import fuzz, put, refused
from hypothesis import given
from hypothesis import strategies as st

from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.evaluate.vqa import by_kind, vqa_questions

V2 = "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"
OK_VQA = "OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json"


def question_file(subtype: str, *questions: tuple[int, int, str]) -> str:
    items = [{"image_id": image, "question": text, "question_id": number} for number, image, text in questions]
    about = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
    return json.dumps(about | {"data_subtype": subtype, "questions": items})


def answer_file(subtype: str, answers: dict[int, list[str]]) -> str:
    items = [
        {
            "question_type": "what is",
            "multiple_choice_answer": people[0],
            "answers": [
                {"answer": text, "raw_answer": text, "answer_confidence": "yes", "answer_id": i + 1}
                for i, text in enumerate(people)
            ],
            "image_id": number,
            "answer_type": "other",
            "question_id": number,
        }
        for number, people in answers.items()
    ]
    return json.dumps({"info": {}, "license": {}, "data_subtype": subtype, "data_type": "mscoco", "annotations": items})


PEOPLE = ["net"] * 6 + ["mesh"] * 3 + ["white"]


def put_split(questions: Path, annotations: Path, subtype: str, first: int) -> None:
    """Three questions about the images ``first`` and ``first + 1``; their answers in another order."""
    texts = ((first, first, "What is this?"), (first + 1, first + 1, "Is it?"), (first + 2, first, "How many?"))
    put(questions, question_file(subtype, *texts))
    put(annotations, answer_file(subtype, {first + 2: ["2"] * 10, first: PEOPLE, first + 1: ["yes"] * 10}))


@pytest.mark.parametrize("names", [V2, OK_VQA])
@pytest.mark.parametrize(
    "places",
    [
        ("", ""),
        ("annotations/", "annotations/"),
        ("Questions/", "Annotations/"),
        ("v2_Questions_mscoco/", "v2_Annotations_mscoco/"),
    ],
)
@pytest.mark.parametrize("photo", ["{}/COCO_{}_{:012d}.jpg", "images/{}/COCO_{}_{:012d}.jpg", "{0}/{2:012d}.jpg"])
def test_files_as_downloaded(tmp_path: Path, names: tuple[str, str], places: tuple[str, str], photo: str) -> None:
    """Each split has its photos in the folder of its name; questions without answers (test-dev) are left aside."""
    files = {}
    for subtype, first in (("train2014", 10), ("val2014", 20)):
        files[subtype] = [tmp_path / place / name.format(subtype) for place, name in zip(places, names, strict=True)]
        put_split(files[subtype][0], files[subtype][1], subtype, first)
        for image in (first, first + 1):
            put(tmp_path / photo.format(subtype, subtype, image), f"{subtype} {image}")
    put(tmp_path / places[0] / names[0].format("test-dev2015"), question_file("test-dev2015", (90, 3, "What?")))
    everything = open_dataset(tmp_path)
    assert [(own.split, own.id) for own in everything] == [
        ("train", "10"),
        ("train", "11"),
        ("val", "20"),
        ("val", "21"),
    ]
    assert everything[2].read() == b"val2014 20"
    val = open_dataset(tmp_path, "val")
    assert [(question.question, question.answer) for _, question in vqa_questions(val, 0, 1)] == [
        ("What is this?", "net"),
        ("How many?", "2"),
        ("Is it?", "yes"),
    ]
    for file in files["val2014"]:  # either file may be named
        assert open_dataset(file, "val") == val


def test_accuracy_is_the_benchmarks(tmp_path: Path) -> None:
    """Three people of ten who agree are enough: 0.9 for "mesh", 0.3 for "white", as VQA's own program counts."""
    put_split(tmp_path / V2[0].format("val2014"), tmp_path / V2[1].format("val2014"), "val2014", 20)
    for image in (20, 21):
        put(tmp_path / f"COCO_val2014_{image:012d}.jpg")
    questions = vqa_questions(open_dataset(tmp_path, "val"), 0, 1)
    for said, accuracy in (("net", 100.0), ("A mesh.", 90.0), ("white", 30.0), ("cat", 0.0)):
        assert by_kind([said, "2", "yes"], questions)["object"] == accuracy


def test_the_same_question_twice_has_its_own_answers(tmp_path: Path) -> None:
    put(tmp_path / V2[0].format("val2014"), question_file("val2014", (20, 20, "What?"), (21, 20, "What?")))
    put(tmp_path / V2[1].format("val2014"), answer_file("val2014", {20: ["net"] * 10, 21: ["cat"] * 10}))
    put(tmp_path / f"COCO_val2014_{20:012d}.jpg")
    assert by_kind(["net", "cat"], vqa_questions(open_dataset(tmp_path, "val"), 0, 1))["all"] == 100


def test_what_is_not_clear_is_refused(tmp_path: Path) -> None:
    questions, annotations = (tmp_path / name.format("val2014") for name in V2)
    put(tmp_path / "val2014" / f"COCO_val2014_{20:012d}.jpg")
    put(questions, question_file("val2014", (20, 20, "What?")))
    refused(tmp_path, questions.name, "no file of answers", "visualqa.org")
    refused(questions, "no file of answers")
    put(tmp_path.parent / "other" / annotations.name, answer_file("val2014", {20: ["net"]}))
    refused(questions, "no file of answers")  # the data set beside is another
    put(annotations, answer_file("val2014", {21: ["net"]}))
    refused(tmp_path, "questions[0]", annotations.name, "no answers to the question '20'")
    put(annotations, '{"annotations": [{"question_id": 20, "answers": [{"answer": 3}]}]}')
    refused(tmp_path, annotations.name, "$.annotations[0].answers[0].answer")
    put(annotations, answer_file("val2014", {20: ["net"]}))
    assert len(open_dataset(tmp_path)) == 1
    put(questions, question_file("val2014", (20, 21, "What?")))
    refused(tmp_path, f"COCO_val2014_{21:012d}.jpg", "not there")
    put(tmp_path / "val2014.zip", b"PK")
    refused(tmp_path, "if val2014.zip holds it")
    put(tmp_path / OK_VQA[0].format("val2014"), question_file("val2014", (20, 20, "What?")))
    put(tmp_path / OK_VQA[1].format("val2014"), answer_file("val2014", {20: ["net"]}))
    refused(tmp_path, "2 files of questions", "name the one to read")
    assert open_dataset(tmp_path / OK_VQA[1].format("val2014"))[0].extra["vqa"][0]["answers"] == ["net"]
    put(tmp_path / "captions_val2014.json", '{"images": [], "annotations": [{"caption": "a", "image_id": 1}]}')
    refused(tmp_path, "name the one to read")


def test_captions_and_questions_in_one_folder(tmp_path: Path) -> None:
    put_split(tmp_path / V2[0].format("val2014"), tmp_path / V2[1].format("val2014"), "val2014", 20)
    put(tmp_path / "dataset_coco.json", '{"images": [{"filename": "a.jpg"}]}')
    refused(tmp_path, "captions (dataset_coco.json) and questions (v2_OpenEnded", "name the file to read")


def test_questions_with_choices_are_left_aside(tmp_path: Path) -> None:
    """VQA 1.0 asks everything twice: openly, and with eighteen choices."""
    put_split(tmp_path / OK_VQA[0].format("val2014"), tmp_path / OK_VQA[1].format("val2014"), "val2014", 20)
    items = [{"image_id": 20, "question": "What?", "question_id": 20, "multiple_choices": ["net"]}]
    put(tmp_path / "MultipleChoice_mscoco_val2014_questions.json", json.dumps({"questions": items}))
    for image in (20, 21):
        put(tmp_path / f"COCO_val2014_{image:012d}.jpg")
    assert len(open_dataset(tmp_path)) == 2


@fuzz
@given(
    st.recursive(
        st.none() | st.integers(-1, 9**20) | st.text(max_size=3) | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["question_id", "image_id", "question", "answers", "answer", "questions", "annotations"]
                ),
                inner,
            )
        ),
        max_leaves=8,
    )
)
def test_no_broken_file_fails_otherwise(tmp_path: Path, value: Any) -> None:
    put(tmp_path / f"COCO_val2014_{1:012d}.jpg", b"a")
    good = question_file("val2014", (1, 1, "What?")), answer_file("val2014", {1: ["net"]})
    files = [tmp_path / name.format("val2014") for name in V2]
    for broken, name in enumerate(("questions", "annotations")):
        put(files[1 - broken], good[1 - broken])
        put(files[broken], json.dumps({"question_id": 1, name: [value, {"question_id": 1}]}))
        try:
            open_dataset(tmp_path)
        except InputError as error:
            assert "\n" not in str(error)


LAVIS = {"question_id": 20, "question": "What?", "answer": ["net", "net", "mesh"], "dataset": "vqa"}
VIZWIZ = {
    "question": "What?",
    "answers": [{"answer": text, "answer_confidence": "yes"} for text in ("net", "", "net", "mesh")],
    "answer_type": "other",
    "answerable": 1,
}
PLAIN = {"question": "What?", "answer": "net"}


@pytest.mark.parametrize(("record", "accuracy"), [(LAVIS, 33.3), (VIZWIZ, 33.3), (PLAIN, 0.0)])
def test_a_list_of_questions(tmp_path: Path, record: dict[str, Any], accuracy: float) -> None:
    """As LAVIS, VizWiz and people themselves write them: a record for each question, several of one photo."""
    other = record | {"question": "How many?", "question_id": 21, "answerable": 0}
    items = [record | {"image": "val/a.jpg"}, other | {"image": "val/a.jpg"}, record | {"image": "val/b.jpg"}]
    put(tmp_path / "Annotations" / "val.json", json.dumps(items))
    for name in ("a", "b"):
        put(tmp_path / "val" / f"{name}.jpg")
    photos = open_dataset(tmp_path, "val")
    assert [len(photo.extra["vqa"]) for photo in photos] == [2, 1]
    questions = [question.question for _, question in vqa_questions(photos, 0, 1)]
    assert questions == ["What?", "How many?", "What?"]
    assert by_kind(["mesh"] * 3, vqa_questions(photos, 0, 1))["all"] == accuracy


def test_a_table_of_questions(tmp_path: Path) -> None:
    """Its captions may be repeated beside each question."""
    put(tmp_path / "a.jpg")
    rows = ["a.jpg,a dog runs,What is it?,dog,0", "a.jpg,a dog runs,Is it a cat?,no,1", "b.jpg,a cat,,,2"]
    put(tmp_path / "b.jpg")
    put(tmp_path / "metadata.csv", "\n".join(["file_name,caption,question,answer,question_id", *rows]))
    photos = open_dataset(tmp_path)
    assert [photo.captions for photo in photos] == [("a dog runs",), ("a cat",)]
    assert [[(entry["question"], entry["answers"]) for entry in photo.extra.get("vqa", [])] for photo in photos] == [
        [("What is it?", ["dog"]), ("Is it a cat?", ["no"])],
        [],
    ]


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"answers": []}, "answers: expected a name"),
        ({"answer": {"a": 1}}, "answers"),
        ({"answer": "a", "vqa": 3}, "vqa"),
    ],
)
def test_a_question_without_an_answer_is_refused(tmp_path: Path, record: dict[str, Any], part: str) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "val.json", json.dumps([{"image": "a.jpg", "question": "What?"} | record]))
    refused(tmp_path, "[0]", part)


def test_nocaps(tmp_path: Path) -> None:
    """Its file has COCO's form; the name says the split."""
    image = {
        "id": 0,
        "open_images_id": "00ab",
        "file_name": "00ab.jpg",
        "domain": "near-domain",
        "coco_url": "https://x/val/00ab.jpg",
    }
    captions = [{"image_id": 0, "id": i, "caption": f"caption {i}"} for i in range(10)]
    put(
        tmp_path / "nocaps_val_4500_captions.json",
        json.dumps({"licenses": [], "images": [image], "annotations": captions}),
    )
    put(tmp_path / "nocaps_test_image_info.json", json.dumps({"images": [image | {"id": 5}]}))
    put(tmp_path / "val" / "00ab.jpg")
    (photo,) = open_dataset(tmp_path, "val")
    assert photo.captions == tuple(f"caption {i}" for i in range(10)) and photo.extra["domain"] == "near-domain"
