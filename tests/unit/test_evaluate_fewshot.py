"""The evaluation of new names: who is asked about what, and that only looking can answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_flamingo import flamingo_tasks

from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.evaluate.captioning import caption_examples, captions_by_id
from triptych.evaluate.fewshot import drawn_pairs, fewshot_metrics, noun_pairs
from triptych.evaluate.vqa import answer_questions, question_examples
from triptych.tasks.answer import Answer
from triptych.tasks.choices import GREY


def data_set(folder: Path, captions: list[list[str]], split: str = "test") -> Path:
    """Photos whose brightness is their number."""
    rows = []
    for i, texts in enumerate(captions):
        Image.fromarray(np.full((8, 8, 3), 3 * i, np.uint8)).save(folder / f"{i}.png")
        rows += [{"file_name": f"{i}.png", "caption": text, "split": split} for text in texts]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


class Seer:
    """Knows by brightness what a picture is, and reads the names off the examples."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.asked = kind, 0
        self.told: list[dict[Any, str]] = []  # what each kind was called, prompt by prompt

    def interleaved(self, images: list[Any], text: str, choices: tuple[str, ...], **settings: Any) -> Answer:
        self.asked += 1
        kinds = [self.kind_of(image) for image in images]
        names = [part.rpartition("This is a ")[2] for part in text.split("<|endofchunk|>")[:-1]]
        told = dict(zip(kinds, names, strict=False))
        self.told.append(told)
        assert len(images) == text.count("<image>") == len(names) + 1 and text.endswith("<image> This is a")
        return Answer(told.get(kinds[-1], choices[0]), "seer", 0.0, (), ())

    def kind_of(self, image: Any) -> Any:
        return self.kind(np.asarray(image)[0, 0, 0] // 3)


def test_looking_binds_any_names_and_blindness_none(tmp_path: Path) -> None:
    photos = [["a man on a beach"] * 3] * 5 + [["a dog in the snow"] * 3] * 5 + [["a dog in the grass"] * 3] * 3
    data = data_set(tmp_path, photos)
    seer = Seer(lambda i: i // 5)
    found = fewshot_metrics(seer, open_dataset(data, "test"), "test", [1, 4, 5], 40, 0)
    assert "5 examples" not in found  # five photos of each: four examples and a question
    for k in (1, 4):
        record = found[f"{k} examples"]
        assert record["kinds"] == 2
        assert record["made-up names"] == record["exchanged names"] == 100
        assert 20 < record["without photos"] < 80
    assert seer.asked == 2 * 3 * 40
    own = [told for told in seer.told if {"beach", "snow"} == set(told.values())]
    assert len(own) == 2 * 40 and all(told[0] == "snow" and told[1] == "beach" for told in own)


def test_drawings_are_shown_in_views_and_asked_about_by_another_one(tmp_path: Path) -> None:
    data = data_set(tmp_path, [[name] for name in ("owl", "cat", "pear", "boat") for _ in range(2)])
    shown: list[list[int]] = []

    class Watcher(Seer):
        def interleaved(self, images: list[Any], text: str, choices: tuple[str, ...], **settings: Any) -> Answer:
            shown.append([int(np.asarray(image)[4, 4, 0]) // 3 for image in images])
            return super().interleaved(images, text, choices)

        def kind_of(self, image: Any) -> int:
            return int(np.asarray(image)[4, 4, 0]) // 6

    found = fewshot_metrics(Watcher(None), open_dataset(data, "test"), "test", [1, 5, 6], 20, 0)
    assert found["1 examples"]["kinds"] == 4 and found["1 examples"]["made-up names"] == 100
    assert found["5 examples"]["made-up names"] == 100 and "6 examples" not in found  # five views of one drawing
    for *examples, query in (pictures for pictures in shown if 42 not in pictures):
        assert query not in examples and query ^ 1 in examples


def test_pairs_are_apart() -> None:
    from triptych.data import Photo

    def photo(i: int, *captions: str) -> Photo:
        return Photo(str(i), "test", captions, {}, Path("none"))

    photos = [photo(i, *["a man on a beach"] * 2) for i in range(3)]
    photos += [photo(9, *["a bike on a beach"] * 2), *(photo(20 + i, *["a man on a bike"] * 2) for i in range(2))]
    ((names, groups),) = noun_pairs(photos, "test")
    assert names == ("beach", "bike") and groups == ([0, 1, 2], [4, 5])
    assert noun_pairs(photos, "train") == []
    drawings = [photo(i, name) for i, name in enumerate(["a", "b", "a", "b", "c"])]
    assert drawn_pairs(drawings) == [(("a", "b"), ([0, 2], [1, 3]))]


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few pictures"):
        photos = open_dataset(data_set(tmp_path, [["a man on a beach"] * 3] * 3), "test")
        fewshot_metrics(Seer(None), photos, "test", [1], 5, 0)


def test_captions_with_examples_from_the_training_split(tmp_path: Path) -> None:
    rows = []
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 30 * i, np.uint8)).save(tmp_path / f"{i}.png")
        split = "train" if i < 4 else "test"
        rows += [{"file_name": f"{i}.png", "caption": f"a dog number {i}", "split": split} for _ in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    shots = caption_examples(train, 3)
    assert len({text for _, text in shots}) == 3 and all(text.startswith("a dog number ") for _, text in shots)
    assert not {text[-1] for _, text in shots} & {"4", "5"}
    model = flamingo_tasks()
    with_shots, without = captions_by_id(model, test, {"shots": shots}), captions_by_id(model, test, {})
    assert with_shots.keys() == without.keys() == {photo.id for photo in test} and with_shots != without
    with pytest.raises(InputError, match="5 examples, but only "):
        caption_examples(train, 5)


def test_questions_with_examples_from_training_photos(tmp_path: Path) -> None:
    """The same examples for all questions, with a grey photo in the place of the one that is meant."""
    rows = [
        {"file_name": f"{i}.png", "split": "train" if i < 4 else "test", "question": f"what is {i}?", "answer": f"a{i}"}
        for i in range(6)
    ]
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, photos = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    examples = question_examples(train, 2, 1, seed=0)
    assert len({text for _, text, _ in examples}) == 2
    assert all(text == f"what is {answer.removeprefix('a')}?" for _, text, answer in examples)
    model = flamingo_tasks()
    found = answer_questions(model, photos, 1, 0, {"beams": 2, "examples": examples})
    texts = [f"what is {i}?" for i in (4, 5)]
    images = [photo.image() for photo in photos]
    assert [answer.text for answer in found.answers] == [
        answer.text for answer in model.ask_with_examples(images, texts, examples, beams=2)
    ]
    blind = model.ask_with_examples([GREY, GREY], texts, examples, beams=2)
    assert [answer.logprob for answer in found.blind] == pytest.approx([answer.logprob for answer in blind], abs=1e-4)
    with pytest.raises(InputError, match="5 examples, but only 4 questions about training photos"):
        question_examples(train, 5, 1, seed=0)
