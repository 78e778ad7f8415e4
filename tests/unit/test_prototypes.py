"""Choices that the examples of a prompt show: which pictures are a choice's, and what they add to its score."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_flamingo import flamingo_tasks

from triptych.tasks.choices import normalised_logprobs
from triptych.tasks.flamingo import FlamingoTasks
from triptych.tasks.prototypes import PROTOTYPE_WEIGHT, examples_of, prototype_cosines
from triptych.text.prompt import END, IMAGE

NAMES = ["a dax", "a blicket"]


def example(text: str, pictures: int = 1) -> str:
    return f"{IMAGE * pictures} {text}{END}"


@pytest.mark.parametrize(
    ("examples", "pictures_of"),
    [
        (example("a dax") + example("a blicket"), [[0], [1]]),
        (example("This is a blicket.") + example("This is a dax.") + example("a dax"), [[1, 2], [0]]),
        (example("a dax", 2) + example("a dax") + example("a blicket"), [[2], [3]]),  # two pictures
        (f"a dax{END}" + example("a dax") + example("a blicket"), [[0], [1]]),  # no picture
        (example("a dax") + example("a wug") + example("a blicket"), [[0], [2]]),
        (example("a dax") + example("not adax"), None),
        (example("a dax"), None),
        ("", None),
    ],
)
def test_the_pictures_of_each_choice_are_read_off_the_examples(examples: str, pictures_of: Any) -> None:
    assert examples_of(f"{examples}{IMAGE} This is", NAMES) == pictures_of
    assert examples_of(f"{examples}{IMAGE} or {IMAGE}: this is", NAMES) is None
    assert examples_of(f"{examples}What is it?", NAMES) is None


def test_of_two_choices_an_example_says_the_longer_one() -> None:
    text = example("one dog") + example("dog") + f"{IMAGE} "
    assert examples_of(text, ["dog", "one dog"]) == [[1], [0]]


def test_a_prototype_is_the_mean_direction() -> None:
    directions = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, 0.8]], np.float32)
    cosines = prototype_cosines(directions, [[0, 1], [2]])
    np.testing.assert_allclose(cosines, [0.6 / np.sqrt(2), 0.8], atol=1e-6)


class Directions:
    """A consensus that expects of a picture what its brightness says."""

    def expected(self, pooled: Any) -> Any:
        return np.asarray(pooled, np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FlamingoTasks:
    tasks = flamingo_tasks()
    monkeypatch.setattr(FlamingoTasks, "consensus", Directions())
    bright = {10: [1, 0], 20: [0, 1], 30: [0.6, 0.8]}
    monkeypatch.setattr(
        tasks, "pooled", lambda images: np.array([bright[np.asarray(image)[0, 0, 0]] for image in images])
    )
    return tasks


def grey(brightness: int) -> Image.Image:
    return Image.new("RGB", (20, 20), (brightness,) * 3)


def test_the_cosine_with_the_prototype_is_added_to_the_log_probability(model: FlamingoTasks) -> None:
    shots = [(grey(10), "a dax"), (grey(20), "a blicket")]
    alone = model.complete(grey(30), shots, "this is", NAMES, prototypes=False)
    both = model.complete(grey(30), shots, "this is", NAMES)
    assert alone.scores is not None and both.scores is not None
    totals = [alone.scores[name] + PROTOTYPE_WEIGHT * cosine for name, cosine in zip(NAMES, (0.6, 0.8), strict=True)]
    assert list(both.scores.values()) == pytest.approx(normalised_logprobs(totals).tolist(), abs=1e-4)
    assert both.text == max(NAMES, key=both.scores.__getitem__)
    assert (alone.method, both.method) == ("language model", "prototypes")


def test_without_an_example_of_each_choice_the_language_model_chooses_alone(model: FlamingoTasks) -> None:
    shots = [(grey(10), "a dax"), (grey(20), "a wug")]
    answer = model.complete(grey(30), shots, "this is", NAMES)
    assert answer.method == "language model"
    alone = model.complete(grey(30), shots, "this is", NAMES, prototypes=False)
    assert answer.scores == pytest.approx(alone.scores, abs=1e-4)
