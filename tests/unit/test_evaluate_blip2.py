"""Recall, choices and marks for answers, by hand."""

from dataclasses import replace
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
from triptych.errors import InputError
from triptych.evaluate.calibration import expected_calibration_error
from triptych.evaluate.choice import accuracy, choice_metrics, swapped, thing_pairs
from triptych.evaluate.retrieval import recall, reranked
from triptych.evaluate.vqa import answer_questions, by_kind, vqa_metrics, vqa_questions, written_answers
from triptych.tasks.choices import GREY


def test_recall_by_hand() -> None:
    # two photos; texts 0 and 1 belong to photo 0, text 2 to photo 1
    scores = torch.tensor([[0.9, 0.2, 0.8], [0.1, 0.6, 0.3]])
    found = recall(scores, scores, [0, 0, 1])
    assert found["text-to-image R@1"] == pytest.approx(33.33)  # only text 0 ranks its photo first
    assert found["image-to-text R@1"] == 50.0  # photo 1 likes text 1 better than its own
    assert found["text-to-image R@5"] == found["image-to-text R@5"] == 100.0


@pytest.mark.parametrize("score", [0.5, np.nan])
def test_a_model_with_one_score_for_everything_is_at_the_level_of_chance(score: float) -> None:
    scores = np.full((20, 20), score, np.float32)
    assert set(recall(scores, scores, range(20)).values()) == {5.0, 25.0, 50.0}  # R@1, 5, 10: of equal ones the first


def test_a_photo_without_texts_finds_none() -> None:
    scores = np.zeros((2, 1), np.float32)
    assert recall(scores, scores, [0])["image-to-text R@10"] == 50.0


def test_reranking_moves_candidates_only() -> None:
    model = blip2_tasks()
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)) for _ in range(5)]
    texts = ["a dog", "the cat", "a horse on the grass", "one bird", "is running", "dog on grass"]
    opened = [lambda p=photo: p for photo in photos]
    cosine, similarity, for_text, for_photo = reranked(model, opened, texts, candidates=2)
    np.testing.assert_array_equal(similarity, cosine)  # without consensus and querybank
    matches = {(m.image, m.text): m for m in model.match(photos, texts)}
    for i in range(5):
        for t in range(6):
            assert cosine[i, t].item() == pytest.approx(matches[i, t].itc_cosine, abs=1e-5)
            is_candidate = i in np.argsort(-cosine[:, t])[:2], t in np.argsort(-cosine[i])[:2]
            for scores, candidate in zip((for_text, for_photo), is_candidate, strict=True):
                if candidate:
                    assert scores[i, t].item() == pytest.approx(matches[i, t].rerank, abs=1e-2)


def test_others_than_the_candidates_keep_their_order_however_close_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, photos = blip2_tasks(), [Image.new("RGB", (12, 12), (n, n, n)) for n in range(40)]
    close = np.float32(0.5) + np.arange(40, dtype=np.float32) * np.float32(1e-6)
    rows = iter([close[:16], close[16:32], close[32:]])
    monkeypatch.setattr(model, "similarity_to", lambda *_: next(rows)[:, None])
    _, similarity, for_text, _ = reranked(model, [lambda p=photo: p for photo in photos], ["a dog"], candidates=1)
    assert for_text[:, 0].argmax() == 39
    np.testing.assert_array_equal(np.argsort(for_text[:, 0], kind="stable"), np.arange(40))
    assert len(set(similarity[:, 0])) == len(set(for_text[:, 0])) == 40


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


def test_the_calibration_error_by_hand() -> None:
    """Four answers at 0.95, of which three are right, and two at 0.55, both right: 4/6 * 0.2 + 2/6 * 0.45."""
    found = expected_calibration_error([0.95] * 4 + [0.55] * 2, [1, 1, 1, 0, 1, 1])
    assert found == pytest.approx(100 * (4 / 6 * 0.2 + 2 / 6 * 0.45), abs=0.06)
    assert expected_calibration_error([1.0, 0.0], [1, 0]) == 0.0


def photo(**extra: Any) -> Photo:
    return Photo("1", "test", (), extra, Path("none"))


def test_accuracy_by_kind_uses_what_people_said() -> None:
    counted = photo(vqa=[{"question": "How many?", "answer": "two", "answers": ["two"] * 2 + ["three"] * 8}])
    questions = [*vqa_questions([counted], 0, 1), (photo(), Question("What?", "dog", "object"))]
    found = by_kind(["two", "cat"], questions)
    assert found == {"all": 30.0, "number": 60.0, "object": 0.0}


def test_the_blind_answer_needs_no_photo() -> None:
    model = blip2_tasks()
    answers = [answer.text for answer in written_answers(model, [GREY] * 2, ["what is it?", "is it a dog?"], {})]
    alone = [written_answers(model, [GREY], [question], {})[0].text for question in ("what is it?", "is it a dog?")]
    assert answers == alone and answers[1] in ("yes", "no")


@pytest.fixture
def captioned(tmp_path: Path) -> list[Photo]:
    """Photos of plain colours that captions tell apart."""
    texts = ["a dog runs on the grass", "a cat sits on a couch", "a man rides a horse"]
    photos = []
    for i in range(6):
        Image.new("RGB", (12, 12), (40 * i, 255 - 40 * i, 90)).save(tmp_path / f"{i}.png")
        photos.append(Photo(str(i), "test", (texts[i % 3],) * 3, {}, tmp_path / f"{i}.png"))
    return photos


def test_questions_of_photos_are_marked_beside_the_blind_baselines(captioned: list[Photo]) -> None:
    model = blip2_tasks()
    found = answer_questions(model, captioned, per_photo=3, seed=0)
    record = vqa_metrics(found, captioned, per_photo=3, seed=0)
    assert record["questions"] == len(found.questions) == len(found.records()) > 4
    for name in ("model accuracy", "without photo", "commonest answer", "calibration error"):
        assert 0 <= record[name]["all"] <= 100
    assert {r["without photo"] for r in found.records() if r["question"].startswith("Is ")} <= {"yes", "no"}
    with pytest.raises(InputError, match="no question"):
        answer_questions(model, [replace(captioned[0], captions=())], per_photo=3, seed=0)


def test_choices_are_measured_by_matching_by_words_and_in_mixed_wording(captioned: list[Photo]) -> None:
    record = choice_metrics(blip2_tasks(), captioned, pairs=4, seed=0)
    for name in ("matching", "language model"):
        assert record[name]["position: left chosen"] == 50.0  # the order of the photos decides nothing
        assert record[name]["in both orders"] == record[name]["accuracy"]
    assert set(record["wording"]) == {"as it is", "article", "capitals", "plural", "synonym", "same answer"}
    assert record["wording"]["as it is"] == record["wording"]["article"] == record["wording"]["capitals"]
    with pytest.raises(InputError, match="at least two photos"):
        choice_metrics(blip2_tasks(), captioned[:1], pairs=4, seed=0)


def test_pairs_about_boxes_tell_two_photos_apart() -> None:
    def boxed(name: str, captions: tuple[str, ...], *categories: str) -> Photo:
        return Photo(name, "test", captions, {"objects": [{"category": c} for c in categories]}, Path(name))

    photos = [
        boxed("a", ("A dog.",), "dog", "cell phone"),
        boxed("b", ("A man phones.",), "person"),
        boxed("c", ("A puppy with a phone.",), "umbrella"),
        Photo("d", "test", ("A horse.",), {}, Path("d")),
    ]
    pairs = thing_pairs(photos, 40, seed=0)
    assert len(pairs) == 40 and {pair.answer for pair in pairs} == {"left", "right"}
    assert pairs == thing_pairs(photos, 40, seed=0) and thing_pairs(photos[2:], 4, seed=0) == []
    has = {0: {"a dog", "a cell phone"}, 1: {"a person"}, 2: {"an umbrella"}}
    for pair in pairs:
        right, wrong = (pair.left, pair.right) if pair.answer == "left" else (pair.right, pair.left)
        thing = pair.question.removeprefix("Which photo shows ").removesuffix("?")
        assert thing in has[right] and (right, wrong) != (0, 2)  # a caption of the third names both
