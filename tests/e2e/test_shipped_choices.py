"""The shipped models on the bundled photos: the photo decides, not the wording of the choices nor the order of the photos."""

from pathlib import Path

import pytest

import triptych
from triptych.tasks import Blip2Tasks, FlamingoTasks

EXAMPLES = Path(triptych.__file__).parent / "examples"
PHOTO = {name: EXAMPLES / f"{name}.jpg" for name in ("dog", "baseball", "gull", "kitchen", "pizzas")}

pytestmark = pytest.mark.parts


@pytest.fixture(scope="module", params=["blip2", "flamingo"])
def model(request: pytest.FixtureRequest, load_once: None) -> Blip2Tasks | FlamingoTasks:
    return triptych.load(request.param)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "choices",
    [("a dog", "cat"), ("Dog", "cat"), ("dogs", "cat"), ("dog", "a cat"), ("the dog", "cats"), ("DOG.", "Cat")],
)
def test_a_dog_is_a_dog_however_it_is_spelt(model: Blip2Tasks | FlamingoTasks, choices: tuple[str, str]) -> None:
    answer = model.ask(PHOTO["dog"], "What animal is in the photo?", choices)
    assert answer.text == choices[0]
    assert answer.probabilities is not None and sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.probabilities[choices[0]] > 0.7


@pytest.mark.parametrize(
    ("pair", "question"),
    [
        (("kitchen", "pizzas"), "In which photo is a pizza in the oven?"),
        (("dog", "baseball"), "Which photo shows a dog?"),
        (("dog", "kitchen"), "Which of the two photos shows a dog?"),
    ],
)
def test_the_same_photo_is_chosen_in_both_orders(
    model: Blip2Tasks | FlamingoTasks, pair: tuple[str, str], question: str
) -> None:
    left, right = (PHOTO[name] for name in pair)
    found, turned = model.compare(left, right, question), model.compare(right, left, question)
    assert {found.text, turned.text} == {"left", "right"}
    assert found.method == ("matching" if isinstance(model, Blip2Tasks) else "caption likelihood")
    if "dog" in question:
        assert found.text == "left"


def test_there_is_a_dog(model: Blip2Tasks | FlamingoTasks) -> None:
    assert model.ask(PHOTO["dog"], "Is there a dog in the photo?").text == "yes"
    elsewhere = model.ask(PHOTO["gull"], "Is there a dog in the photo?")
    seen = model.ask(PHOTO["dog"], "Is there a dog in the photo?")
    assert elsewhere.scores is not None and seen.scores is not None
    assert elsewhere.scores["yes"] < seen.scores["yes"]
    if isinstance(model, Blip2Tasks):
        assert elsewhere.text == "no"
