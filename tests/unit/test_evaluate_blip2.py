"""Recall, choices and marks for answers, by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip2 import blip2_tasks

from triptych.data import Photo
from triptych.data.english.kinds import Question
from triptych.data.english.pairs import PairQuestion
from triptych.evaluate.choice import accuracy, swapped
from triptych.evaluate.retrieval import recall, reranked
from triptych.evaluate.vqa import by_kind, marked, without_photo


def test_recall_by_hand() -> None:
    # two photos; texts 0 and 1 belong to photo 0, text 2 to photo 1
    scores = torch.tensor([[0.9, 0.2, 0.8], [0.1, 0.6, 0.3]])
    found = recall(scores, scores, [0, 0, 1])
    assert found["text-to-image R@1"] == pytest.approx(33.33)  # only text 0 ranks its photo first
    assert found["image-to-text R@1"] == 50.0  # photo 1 likes text 1 better than its own
    assert found["text-to-image R@5"] == found["image-to-text R@5"] == 100.0


def test_ties_with_the_right_answer_are_not_held_against_it_but_better_ones_are() -> None:
    scores = torch.tensor([[0.5, 0.5], [0.5, 0.7]])
    found = recall(scores, scores, [0, 1])
    assert found["text-to-image R@1"] == 100.0
    assert found["image-to-text R@1"] == 100.0


def test_reranking_moves_candidates_only() -> None:
    model = blip2_tasks()
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)) for _ in range(5)]
    texts = ["a dog", "the cat", "a horse on the grass", "one bird", "is running", "dog on grass"]
    opened = [lambda p=photo: p for photo in photos]
    cosine, for_text, for_photo = reranked(model, opened, texts, candidates=2)
    matches = {(m.image, m.text): m for m in model.match(photos, texts)}
    for i in range(5):
        for t in range(6):
            assert cosine[i, t].item() == pytest.approx(matches[i, t].itc_cosine, abs=1e-5)
            is_candidate = i in cosine[:, t].topk(2).indices, t in cosine[i].topk(2).indices
            for scores, candidate in zip((for_text, for_photo), is_candidate, strict=True):
                expected = matches[i, t].rerank if candidate else cosine[i, t].item() - 1e4
                assert scores[i, t].item() == pytest.approx(expected, abs=1e-2)


def test_choices_by_hand() -> None:
    asked = [PairQuestion("which?", 0, 1, "left"), PairQuestion("which?", 2, 3, "right")]
    both = [q for question in asked for q in (question, swapped(question))]
    assert [(q.left, q.right, q.answer) for q in both] == [
        (0, 1, "left"),
        (1, 0, "right"),
        (2, 3, "right"),
        (3, 2, "left"),
    ]
    found = accuracy(["left", "right", "left", "left"], both)
    assert found == {
        "accuracy": 75.0,
        "when left": 100.0,
        "when right": 50.0,
        "in both orders": 50.0,
        "position: left chosen": 75.0,
    }


def test_marks() -> None:
    yes = Question("Is there a dog?", "yes", "yes/no")
    assert marked("Yes.", yes, []) == 1.0 and marked("no", yes, []) == 0.0
    assert marked("a dog", Question("What?", "dog", "object"), []) == 1.0
    people = ["yes", "yes", "no", *["maybe"] * 7]
    assert marked("yes", yes, people) == pytest.approx(0.6)
    assert marked("2", Question("How many?", "two", "number"), []) == 1.0
    assert marked("maybe", yes, people) == 1.0


def photo(**extra: Any) -> Photo:
    return Photo("1", "test", (), extra, Path("none"))


def test_accuracy_by_kind_uses_what_people_said() -> None:
    stated = photo(vqa=[{"question": "How many?", "answer": "two", "answers": ["two"] * 2 + ["three"] * 8}])
    asked = [(stated, Question("How many?", "two", "number")), (photo(), Question("What?", "dog", "object"))]
    found = by_kind(["two", "cat"], asked)
    assert found == {"all": 30.0, "number": 60.0, "object": 0.0}


def test_the_blind_answer_needs_no_photo() -> None:
    model = blip2_tasks()
    answers = without_photo(model, ["what is it?", "is it a dog?"])
    assert answers == [without_photo(model, ["what is it?"])[0], without_photo(model, ["is it a dog?"])[0]]
