"""Whether a thing is there: what a model's parts and the consensus say is added up; counts are left to the language model."""

from collections.abc import Callable
from math import nan
from pathlib import Path

import numpy as np
import pytest
from pictures import block_photos
from PIL import Image
from tiny_blip2 import blip2_tasks
from tiny_flamingo import flamingo_tasks

from triptych.tasks import Answer, Blip2Tasks
from triptych.tasks.asking import PictureQuestion, total_logprobs
from triptych.tasks.choices import YES_NO
from triptych.tasks.detection import (
    caption_claim_logit,
    caption_detection_logit,
    claim_logit,
    count_logit,
    detection_logit,
    gain_of_yes,
)
from triptych.text.questions import is_counted, presence_question


@pytest.fixture(scope="module")
def model() -> Blip2Tasks:
    return blip2_tasks()


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return block_photos(2)


def logit_of(model: Blip2Tasks, photo: Image.Image, thing: str) -> float:
    question = PictureQuestion([photo], f"Is there {thing} in the photo?")
    yes, no = total_logprobs(model.score_forms(question, YES_NO))
    (match,) = model.match(photo, f"a photo of {thing}")
    return detection_logit(float(yes - no), match.itc_cosine, nan)


@pytest.mark.parametrize("question", ["Is there a dog?", "is there a dog in this picture?"])
def test_a_thing_is_found_by_all_parts(model: Blip2Tasks, photos: list[Image.Image], question: str) -> None:
    answer = model.ask(photos[0], question)
    logit = logit_of(model, photos[0], "a dog")
    assert answer.text == ("yes" if logit > 0 else "no") and answer.method == "matching"
    assert answer.probabilities["yes"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    turned = model.ask(photos[0], question, ["No.", "Yes."])
    assert turned.text == ("Yes." if logit > 0 else "No.")


def probability_of_yes(answer: Answer) -> float:
    return float(answer.probabilities["yes"])


def expected_probability(logit: float) -> object:
    return pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)


@pytest.mark.parametrize(
    ("where", "decides"), [("", np.argmax), (" in any photo", np.argmax), (" in both photos", np.argmin)]
)
def test_of_several_photos_the_likeliest_decides_and_is_the_evidence(
    model: Blip2Tasks, photos: list[Image.Image], where: str, decides: Callable[[list[float]], int]
) -> None:
    for order in (photos, photos[::-1]):
        logits = [logit_of(model, photo, "a dog") for photo in order]
        best = int(decides(logits))
        answer = model.ask(order, f"Is there a dog{where}?", explain=True)
        assert probability_of_yes(answer) == expected_probability(logits[best])
        assert answer.evidence is not None
        maps = np.zeros_like(answer.evidence.maps)
        maps[:, best] = model.match_evidence(order[best], "a photo of a dog").maps[:, 0]
        np.testing.assert_allclose(answer.evidence.maps, maps, atol=1e-5)
        assert maps.shape[1] == 2


def test_a_question_about_one_of_several_photos_is_about_that_one(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    for tasks in (model, flamingo_tasks()):
        alone = [probability_of_yes(tasks.ask(photo, "Is there a dog?")) for photo in photos]
        for place, names in enumerate(
            (("left photo", "first picture", "photo 1"), ("right photo", "last one", "photo 2"))
        ):
            for name in names:
                the = "" if name[-1].isdigit() else "the "
                answer = tasks.ask(photos, f"Is there a dog in {the}{name}?")
                assert probability_of_yes(answer) == pytest.approx(alone[place], abs=1e-4)


def test_a_free_question_about_one_of_several_photos_is_answered_as_if_it_were_alone(
    model: Blip2Tasks, photos: list[Image.Image]
) -> None:
    for tasks in (model, flamingo_tasks()):
        for place, name in enumerate(("left", "right")):
            alone = tasks.ask(photos[place], "What is in the photo?", explain=True)
            answer = tasks.ask(photos, f"What is in the {name} photo?", explain=True)
            assert (answer.text, answer.method) == (alone.text, alone.method)
            assert answer.evidence is not None and alone.evidence is not None
            np.testing.assert_allclose(answer.evidence.maps[:, place], alone.evidence.maps[:, 0], atol=1e-5)
            assert not answer.evidence.maps[:, 1 - place].any()
        chosen = tasks.ask(photos, "What animal is in the left photo?", ["dog", "cat"]).probabilities
        expected = tasks.ask(photos[0], "What animal is in the photo?", ["dog", "cat"]).probabilities
        assert chosen == pytest.approx(expected, abs=1e-4)


def test_a_stream_about_one_of_several_photos_is_about_that_one(photos: list[Image.Image]) -> None:
    tasks = flamingo_tasks()
    alone = [*tasks.stream(photos[1], "What is in the photo?")]
    assert [*tasks.stream(photos, "What is in the right photo?")] == alone


def test_no_means_that_no_photo_shows_it(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    for tasks in (model, flamingo_tasks()):
        there = probability_of_yes(tasks.ask(photos, "Are there any dogs in the photos?"))
        missing = probability_of_yes(tasks.ask(photos, "Are there no dogs in the photos?"))
        assert missing == pytest.approx(1 - there, abs=1e-4)


def test_the_photo_without_a_thing_is_the_other_one(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    for tasks in (model, flamingo_tasks()):
        shows = tasks.compare(*photos, "Which photo shows a dog?").probabilities
        lacks = tasks.compare(*photos, "Which photo does not show a dog?").probabilities
        assert (lacks["left"], lacks["right"]) == pytest.approx((shows["right"], shows["left"]), abs=1e-4)


def test_other_names_stand_for_the_photos_in_their_order(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    for tasks in (model, flamingo_tasks()):
        expected = tasks.compare(*photos, "Which photo shows a dog?")
        answer = tasks.compare(*photos, "Which photo shows a dog?", ["a", "b"])
        assert answer.method == expected.method and answer.text == {"left": "a", "right": "b"}[expected.text]
        assert [*answer.probabilities.values()] == pytest.approx([*expected.probabilities.values()], abs=1e-4)
        as_named = tasks.compare(*photos, "Which photo shows a dog?", ["the right one", "the left one"])
        assert as_named.probabilities["the left one"] == pytest.approx(expected.probabilities["left"], abs=1e-4)


def test_a_count_is_for_the_language_model(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    question = PictureQuestion(photos[:1], "Are there two dogs?")
    logit = count_logit(gain_of_yes(model.score_forms(question, YES_NO)))
    for answer in (
        model.ask(photos[0], question.text),
        model.ask(photos[0], question.text, ["no", "yes"], explain=True),
    ):
        assert answer.text == ("yes" if logit > 0 else "no") and answer.method == "language model"
        assert answer.probabilities["yes"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert count_logit(1.0) > count_logit(0.0)
    several = PictureQuestion(photos, "Are there two dogs?")
    assert model.ask(photos, several.text) == model.choose_answer(several, YES_NO)


@pytest.mark.parametrize("presence", [-2.0, nan])
def test_flamingo_counts_by_the_likelihood_of_captions(presence: float, photos: list[Image.Image]) -> None:
    tasks = flamingo_tasks()
    gain = float(tasks.likelihood.gains(["two dogs"], photos[:1])[0, 0])
    tasks.presence_logits = lambda images, things: np.full((1, 1), presence, np.float32)  # type: ignore[method-assign]
    probabilities = tasks.ask(photos[0], "Are there two dogs?").probabilities
    logit = caption_detection_logit(gain, presence, counted=True)
    assert probabilities["yes"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert logit != caption_detection_logit(gain, presence)


@pytest.mark.parametrize("known", [True, False])
def test_a_claim_is_judged_by_all_parts(
    model: Blip2Tasks, photos: list[Image.Image], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    presence = -2.0 if known else nan
    monkeypatch.setattr(
        model,
        "presence_logits",
        lambda images, things: np.full((1, 1), presence if things == ["running"] else 99, np.float32),
    )
    question = "Is the dog running?"
    yes, no = total_logprobs(model.score_forms(PictureQuestion(photos[:1], question), YES_NO))
    claim, noun = model.match(photos[0], ["the dog is running", "dog"])
    logit = claim_logit(float(yes - no), claim.itc_cosine - noun.itc_cosine, presence)
    for answer in (model.ask(photos[0], question), model.ask(photos[0], question, ["No.", "Yes."])):
        assert answer.text.lower().strip(".") == ("yes" if logit > 0 else "no") and answer.method == "matching"
        probability = next(p for name, p in answer.probabilities.items() if name.lower().startswith("yes"))
        assert probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    evidence = model.ask(photos[0], question, explain=True).evidence
    assert evidence is not None
    np.testing.assert_allclose(evidence.maps, model.match_evidence(photos[0], "the dog is running").maps, atol=1e-5)


def test_a_claim_about_two_photos_is_for_the_language_model(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    question = PictureQuestion(photos, "Is the dog running?")
    assert model.ask(photos, question.text) == model.choose_answer(question, YES_NO)


def test_each_part_speaks_for_or_against_a_claim() -> None:
    for presence in (-1.0, nan):
        base = claim_logit(0.5, 0.1, presence)
        assert claim_logit(1.5, 0.1, presence) > base < claim_logit(0.5, 0.2, presence)
    assert claim_logit(0.5, 0.1, 0.0) > claim_logit(0.5, 0.1, -1.0)


@pytest.mark.parametrize("presence", [-2.0, nan])
def test_flamingo_judges_a_claim_by_the_likelihood_of_captions(
    photos: list[Image.Image], presence: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = flamingo_tasks()
    monkeypatch.setattr(tasks, "presence_logits", lambda images, things: np.full((1, 1), presence, np.float32))
    claim, noun = tasks.likelihood.gains(["the dog is running", "dog"], photos[:1])[0].tolist()
    logit = caption_claim_logit(claim - noun, presence)
    answer = tasks.ask(photos[0], "Is the dog running?")
    assert answer.text == ("yes" if logit > 0 else "no") and answer.method == "caption likelihood"
    assert answer.probabilities["yes"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert caption_claim_logit(1.0, presence) > caption_claim_logit(0.0, presence)
    assert caption_claim_logit(1.0, -1.0) > caption_claim_logit(1.0, -2.0)


def test_each_part_speaks_for_or_against() -> None:
    base = detection_logit(1.0, 0.3, -4.0)
    assert detection_logit(2.0, 0.3, -4.0) > base < detection_logit(1.0, 0.4, -4.0)
    assert detection_logit(1.0, 0.3, -3.0) > base
    unknown = detection_logit(1.0, 0.3, nan)
    assert detection_logit(2.0, 0.3, nan) > unknown < detection_logit(1.0, 0.4, nan)


@pytest.mark.parametrize(("presence", "found"), [(9.0, "yes"), (-20.0, "no")])
@pytest.mark.parametrize("system", ["flamingo", "blip2"])
def test_captions_to_expect_speak_for_or_against(
    system: str, presence: float, found: str, photos: list[Image.Image], tmp_path: Path
) -> None:
    tasks = {"flamingo": flamingo_tasks, "blip2": blip2_tasks}[system]()

    class KnowsDogs:
        def presence_logits(self, pooled: np.ndarray, names: list[str]) -> np.ndarray:
            return np.full((len(pooled), 1), presence if names == ["dog"] else np.nan, np.float32)

        def agreement(self, pooled: np.ndarray, texts: list[str]) -> np.ndarray:
            return np.zeros((len(pooled), len(texts)), np.float32)

    unknown = tasks.ask(photos[0], "Is there a xylophone?").probabilities["yes"]
    tasks.consensus_file, tasks.__dict__["consensus"] = tmp_path / "consensus.npz", KnowsDogs()
    assert tasks.ask(photos[0], "Is there a dog?").text == found
    again = tasks.ask(photos[0], "Is there a xylophone?").probabilities["yes"]
    assert again == pytest.approx(unknown, abs=1e-4)


def test_where_presence_is_unknown_the_gain_alone_decides() -> None:
    assert caption_detection_logit(0.5, nan) < 0 < caption_detection_logit(0.7, nan)
    assert caption_detection_logit(-5, 0.0) > 0 > caption_detection_logit(5, -4.0)


@pytest.mark.parametrize(
    ("thing", "question", "counted"),
    [
        ("a dog", "Is there a dog in the photo?", False),
        ("snow", "Is there snow in the photo?", False),
        ("dogs", "Are there dogs in the photo?", False),
        ("grass", "Is there grass in the photo?", False),
        ("people", "Are there people in the photo?", False),
        ("two dogs", "Are there two dogs in the photo?", True),
        ("an umbrella with stripes", "Is there an umbrella with stripes in the photo?", False),
    ],
)
def test_a_thing_is_asked_for_as_in_training(thing: str, question: str, counted: bool) -> None:
    assert presence_question(thing) == question and is_counted(thing) is counted


def test_a_choice_is_weighed_by_the_language_model_and_by_the_words_to_expect(
    model: Blip2Tasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    question, choices = "What animal is it?", ["a dog", "cats"]
    alone = np.log([*model.ask(photos[0], question, choices).probabilities.values()])  # without consensus
    expected = {"dog": -1.0, "cat": 2.0}
    monkeypatch.setattr(
        model, "presence_logits", lambda images, forms: np.array([[expected.get(form, nan) for form in forms]])
    )
    together = model.ask(photos[0], question, choices).probabilities
    gap = 0.5 * (alone[0] - alone[1]) + 0.5 * (-1.0 - 2.0)
    assert together["a dog"] == pytest.approx(1 / (1 + np.exp(-gap)), abs=1e-4)
    monkeypatch.undo()
    for images, text, of in ((photos[0], question, ["a dog", "a zebra"]), (photos[0], "How many are there?", choices)):
        before = model.ask(images, text, of).probabilities
        monkeypatch.setattr(
            model, "presence_logits", lambda images, forms: np.array([[expected.get(form, nan) for form in forms]])
        )
        assert model.ask(images, text, of).probabilities == pytest.approx(before, abs=1e-4)
        monkeypatch.undo()


@pytest.mark.parametrize("question", ["Is it a dog or a cat?", "Which animal is it, a dog or a cat?"])
def test_answers_that_a_question_offers_are_its_choices(
    model: Blip2Tasks, photos: list[Image.Image], question: str
) -> None:
    for tasks in (model, flamingo_tasks()):
        expected = tasks.ask(photos[0], question, ["a dog", "a cat"])
        assert tasks.ask(photos[0], question).probabilities == pytest.approx(expected.probabilities, abs=1e-4)
