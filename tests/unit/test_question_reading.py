"""Questions as people word them: in what form they are read, and what they ask for."""

from math import exp, log
from typing import Any

import pytest
from PIL import Image
from tiny_blip2 import blip2_tasks
from tiny_flamingo import flamingo_tasks

from triptych.tasks import Answer
from triptych.tasks.asking import PictureQuestion, as_yes_or_no
from triptych.text.questions import (
    Claim,
    PicturesShowing,
    Presence,
    WhichPicture,
    alternatives_in,
    asks_for_description,
    claim_asked_about,
    is_counted,
    is_yes_no,
    names_one_of_several,
    one_picture_asked_about,
    pictures_showing,
    plain_question,
    presence_asked_about,
    which_picture,
)


@pytest.mark.parametrize(
    ("question", "plain"),
    [
        ("Can you tell me what the man is holding?", "what the man is holding?"),
        ("Could you please tell me which photo shows a dog?", "which photo shows a dog?"),
        ("Hello, do you know how many dogs there are?", "how many dogs there are?"),
        ("Can you see where they are?", "where they are?"),
        ("Please tell me if there is a dog in the photo or not.", "is there a dog in the photo."),
        ("Do you know whether the left dog is wet?", "is the left dog wet?"),
        ("Can you count the horses?", "How many horses are there?"),
        ("Count the number of people.", "How many people are there?"),
        ("Count to ten.", "Count to ten."),
        ("Is it a dog? Yes or no?", "Is it a dog?"),
        ("What is in the 2nd photo?", "What is in the second photo?"),
        ("What is in photo #2?", "What is in photo 2?"),
        ("What does picture three show?", "What does picture 3 show?"),
        ("Do you think the dog is happy?", "Do you think the dog is happy?"),
        ("Can you see any dogs?", "Can you see any dogs?"),
        ("Tell me a story.", "Tell me a story."),
    ],
)
def test_the_plain_form(question: str, plain: str) -> None:
    assert plain_question(question) == plain == plain_question(plain)


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Which of these photos has no animals?", WhichPicture("animals", True)),
        ("Which of these photos doesn't have a dog?", WhichPicture("a dog", True)),
        ("Which of the 3 photos shows a dog?", WhichPicture("a dog")),
        ("Which has a dog?", WhichPicture("a dog")),
        ("Which pic shows a dog?", WhichPicture("a dog")),
        ("Which one's got a dog?", WhichPicture("a dog")),
        ("Which one is the photo with a dog?", WhichPicture("a dog")),
        ("Which photo has nobody in it?", WhichPicture("people", True)),
        ("Is the dog in the left or the right photo?", WhichPicture("the dog")),
        ("Where is the dog, in photo 1 or photo 2?", WhichPicture("the dog")),
        ("Which dog has a ball?", None),
        ("Where is the dog, inside or outside?", None),
    ],
)
def test_which_picture(question: str, wanted: WhichPicture | None) -> None:
    assert which_picture(question) == wanted


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("How many photos show a dog?", PicturesShowing("a dog", True)),
        ("How many of them have any people in them?", PicturesShowing("people", True)),
        ("Which of these three pictures show snow?", PicturesShowing("snow", False)),
        ("Which photos contain dogs?", PicturesShowing("dogs", False)),
        ("Which of these photos shows a dog?", None),
        ("How many dogs are in the photos?", None),
        ("Which photos show no dog?", None),
        ("How many them have a dog?", None),
    ],
)
def test_all_pictures_that_show_something(question: str, wanted: PicturesShowing | None) -> None:
    assert pictures_showing(question) == wanted


@pytest.mark.parametrize("build", [flamingo_tasks, blip2_tasks])
def test_they_are_named_or_counted(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = build()
    black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))

    def detect(presence: Presence, question: PictureQuestion, choices: list[str], explain: bool) -> Answer:
        assert presence.thing == "a dog"
        light = question.images[0].getpixel((0, 0))[0]  # type: ignore[union-attr]
        return as_yes_or_no(Answer("", "toy", 0.0, (), ()), choices, 2.0 if light else -2.0, "matching")

    monkeypatch.setattr(tasks, "detect", detect)
    photos = [white, black, white]
    assert tasks.ask(photos, "Which photos show a dog?").text == "photo 1 and photo 3"
    assert tasks.ask(photos, "Can you tell me how many of them show a dog?").text == "two"
    assert tasks.ask(photos[:2], "Which photos show a dog?").text == "left"
    assert tasks.ask([black] * 2, "Which photos show a dog?").text == "none"
    assert tasks.ask([black] * 2, "How many photos show a dog?").text == "zero"
    assert tasks.ask([white] * 11, "How many photos show a dog?").text == "11"
    assert tasks.ask(photos, "How many photos show a dog?").logprob == pytest.approx(3 * log(1 / (1 + exp(-2))))


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Is there a dog in both?", Presence("a dog", "both")),
        ("Is there a dog in each of these?", Presence("a dog", "each of these")),
        ("Do both of them show a dog?", Presence("a dog", "both of them")),
        ("Is there nobody in the photo?", Presence("people", "the photo", True)),
        ("Does the image contain no people?", Presence("people", "the image", True)),
        ("Are no people in the photo?", Presence("people", "the photo", True)),
        ("Is this a photo without people?", Presence("people", "this", True)),
        ("Is the beach without any people?", Presence("people", "", True)),
        ("Is the left one a dog?", None),
        ("Is this picture a cat?", Presence("a cat", "this picture")),
    ],
)
def test_things_that_are_there_or_not(question: str, asked: Presence | None) -> None:
    assert presence_asked_about(question) == asked


@pytest.mark.parametrize(
    ("question", "things"),
    [
        ("Is there a dog or a cat?", ["a dog", "a cat"]),
        ("Are there any cars or people in the photo?", ["cars", "people"]),
        ("Do you see any horses or any cows?", ["horses", "cows"]),
        ("Is there neither a dog nor a cat?", ["a dog", "a cat"]),
        ("Is there a man and a dog?", ["a man and a dog"]),
    ],
)
def test_one_of_several_things(question: str, things: list[str]) -> None:
    presence = presence_asked_about(question)
    assert presence is not None and [part.thing for part in presence.parts] == things
    assert is_yes_no(question) and alternatives_in(question) is None


@pytest.mark.parametrize(
    ("question", "claim"),
    [
        ("Isn't the cat black?", Claim("the cat", "is", "black")),
        ("Is the cat not sleeping?", Claim("the cat", "is", "sleeping", denied=True)),
        ("Are the dogs not wet?", Claim("the dogs", "are", "wet", denied=True)),
        ("Is not the cat black?", None),
        ("Is the not so young man running?", None),
    ],
)
def test_claims_that_are_denied(question: str, claim: Claim | None) -> None:
    assert claim_asked_about(question) == claim
    assert claim is None or claim.question == question.replace("n't", "").replace(" not", "")


@pytest.mark.parametrize(
    ("question", "offered"),
    [
        ("What sport is this? Tennis, baseball or golf?", ["Tennis", "baseball", "golf"]),
        ("What's this - a dog or a cat?", ["a dog", "a cat"]),
        ("Is the cat sleeping or awake?", ["sleeping", "awake"]),
        ("Is the cat black or orange and white?", ["black", "orange and white"]),
        ("Are there two or three horses?", ["two", "three"]),
        ("Indoors or outdoors?", ["Indoors", "outdoors"]),
        ("Is anyone wearing a hat or a helmet?", None),
        ("Is he or she running?", None),
        ("Red, green or blue?", ["Red", "green", "blue"]),
        ("Describe the dog or the cat.", None),
        ("A caption with ten words or fewer?", None),
    ],
)
def test_answers_that_a_question_offers(question: str, offered: list[str] | None) -> None:
    assert alternatives_in(question) == offered and is_yes_no(question) == ("anyone" in question)


@pytest.mark.parametrize(
    ("question", "alone"),
    [
        ("What is in the second?", (1, "What is in the photo?")),
        ("What animal is on the left?", (0, "What animal is on the photo?")),
        ("Describe the last.", (1, "Describe the photo.")),
        ("Is the first photo brighter than the second?", None),
        ("Is the dog in the left or the right photo?", None),
        ("What is on the left side of the road?", None),
    ],
)
def test_the_picture_that_is_named(question: str, alone: tuple[int, str] | None) -> None:
    assert one_picture_asked_about(question, 2) == alone


@pytest.mark.parametrize(
    "question",
    [
        "describe photo",
        "Give me a caption for each.",
        "Write captions for these images",
        "Describe the scene.",
        "Describe them.",
    ],
)
def test_requests_for_captions(question: str) -> None:
    assert asks_for_description(question)


def test_places_that_are_no_pictures() -> None:
    assert names_one_of_several("What is on the right?") and not names_one_of_several("What is right next to the man?")
    assert not names_one_of_several("What is the first thing you notice?")
    assert is_counted("just one horse") and is_counted("fewer than three dogs") and not is_counted("a horse")


WHITE = Image.new("RGB", (32, 32), "white")


def yes_of(answer: Answer) -> float:
    return float((answer.probabilities or {})["yes"])


@pytest.mark.parametrize("build", [flamingo_tasks, blip2_tasks])
def test_a_denied_claim_is_the_opposite(build: Any) -> None:
    tasks = build()
    positive, negated = (yes_of(tasks.ask(WHITE, f"Is the dog {word}wet?")) for word in ("", "not "))
    assert positive + negated == pytest.approx(1) and abs(positive - negated) > 1e-3
    assert yes_of(tasks.ask(WHITE, "Isn't the dog wet?")) == pytest.approx(positive, abs=1e-6)


@pytest.mark.parametrize("build", [flamingo_tasks, blip2_tasks])
def test_of_two_things_the_likelier_decides(build: Any) -> None:
    tasks = build()
    dog, cat = (yes_of(tasks.ask(WHITE, f"Is there a {thing}?")) for thing in ("dog", "cat"))
    assert abs(dog - cat) > 1e-5
    assert yes_of(tasks.ask(WHITE, "Is there a dog or a cat?")) == pytest.approx(max(dog, cat), abs=1e-6)
    assert yes_of(tasks.ask(WHITE, "Is there neither a dog nor a cat?")) == pytest.approx(1 - max(dog, cat), abs=1e-6)


@pytest.mark.parametrize("build", [flamingo_tasks, blip2_tasks])
def test_each_of_several_photos_is_described(build: Any) -> None:
    tasks, black = build(), Image.new("RGB", (32, 32))
    captions = [tasks.caption(photo).text for photo in (WHITE, black)]
    assert tasks.ask([WHITE, black], "Describe both photos.").text == f"left: {captions[0]}; right: {captions[1]}"


def test_streams_and_dialogues_read_the_plain_form() -> None:
    polite = "Could you tell me if there is a dog or not?"
    for build in (flamingo_tasks, blip2_tasks):
        assert "".join(build().stream(WHITE, polite)) == build().ask(WHITE, "Is there a dog?").text
    chat = flamingo_tasks().chat()
    chat.add(WHITE)
    chat.ask("What is this?")
    assert chat.asked_about(chat.begin(polite)) is not None
    assert chat.asked_about(chat.begin("Could you tell me why?")) is None
