"""Choices in one form, what is taken from them, and questions read off their words."""

import numpy as np
import pytest

from triptych.errors import InputError
from triptych.tasks.choices import (
    BLIND_WEIGHT,
    MAX_BLIND_GAP,
    blind_share,
    check_choices,
    forms_for_scoring,
    in_other_order,
    normalised_logprobs,
)
from triptych.text.questions import (
    Presence,
    about_one_photo,
    alternatives_in,
    asks_for_description,
    asks_for_number,
    asks_to_compare,
    asks_what_is_shared,
    claim_asked_about,
    is_about_all,
    is_yes_no,
    one_picture_asked_about,
    presence_asked_about,
    statement,
)


@pytest.mark.parametrize(
    ("choices", "forms"),
    [
        (["a dog", "cat"], ["dog", "cat"]),
        (["Dog", "THE CAT"], ["dog", "cat"]),
        (["dogs", "a cat."], ["dog", "cat"]),
        (["an orange", "women", "city buses"], ["orange", "woman", "city bus"]),
        (["cookies", "ties", "ponies", "flies"], ["cookie", "tie", "pony", "fly"]),
        (["potatoes", "photos", "calves", "shoes"], ["potato", "photo", "calf", "shoe"]),
        (["Christmas", "canvas", "always", "species"], ["christmas", "canvas", "always", "species"]),
        (["puppies", "matches", "glass", "the tennis"], ["puppy", "match", "glass", "tennis"]),
        (["2", "three", "12"], ["two", "three", "12"]),
        (["two dogs", "one dog"], ["two dogs", "one dog"]),
        (["dog", "dogs"], ["dog", "dogs"]),  # what tells them apart is kept
        (["a dog", "dog"], ["a dog", "dog"]),
        (["Yes", "No!"], ["yes", "no"]),
        (["US", "us"], ["US", "us"]),
        (["a", "the"], ["a", "the"]),
        (["고양이", "개"], ["고양이", "개"]),
    ],
)
def test_forms(choices: list[str], forms: list[str]) -> None:
    assert forms_for_scoring(choices) == forms


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("yes", "give a list"),
        ({"yes": 1, "no": 2}, "give a list"),
        (["yes", 3], "3 is not a text"),
        (["yes"], "at least two"),
        (["yes", " yes "], "given twice"),
        (["yes", " "], "empty"),
    ],
)
def test_what_is_no_list_of_choices_is_refused(choices: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_choices(choices)  # type: ignore[arg-type]


def test_a_part_is_taken_and_all_of_what_is_far_below() -> None:
    taken = blind_share(np.array([-1.0, -3.0, -1.0 - MAX_BLIND_GAP - 2.0]))
    assert taken == pytest.approx([-BLIND_WEIGHT, -3 * BLIND_WEIGHT, BLIND_WEIGHT * (-1 - MAX_BLIND_GAP) - 2])
    assert np.exp(normalised_logprobs([1000.0, 1000.0])) == pytest.approx([0.5, 0.5])


def test_sides_change_places() -> None:
    assert in_other_order("Is the LEFT one nicer than the Right?") == "Is the RIGHT one nicer than the Left?"
    assert in_other_order("the first, not leftover") == "the second, not leftover"


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("Is it a dog or a cat?", ["a dog", "a cat"]),
        ("Is this indoors or outdoors?", ["indoors", "outdoors"]),
        ("Is the dog black or white?", ["black", "white"]),
        ("Is it red, green, or blue in the photo?", ["red", "green", "blue"]),
        ("Is the man walking or riding a bike?", ["walking", "riding a bike"]),
        ("Is the cat on the table or under the table?", ["on the table", "under the table"]),
        ("Does the photo show a dog or a cat?", ["a dog", "a cat"]),
        ("Which animal is this, a dog or a cat?", ["a dog", "a cat"]),
        ("What is it: red, green or blue?", ["red", "green", "blue"]),
        ("Is there a dog or a cat?", None),
        ("Do you like it or not?", None),
        ("Is the man young or very old?", None),
        ("Is it a dog?", None),
        ("Which is it, <image> or <image>?", None),
        ("What is it, red or red?", None),
    ],
)
def test_answers_that_a_question_offers(question: str, answers: list[str] | None) -> None:
    assert alternatives_in(question) == answers


@pytest.mark.parametrize(
    ("question", "presence"),
    [
        ("Is there a dog?", Presence("a dog")),
        ("Is there a dog in the photo?", Presence("a dog", "the photo")),
        ("are there any dogs in this picture ?", Presence("dogs", "this picture")),
        ("Is there a man on the left?", Presence("a man on the left")),
        ("Is there a dog in the left photo?", Presence("a dog", "the left photo")),
        ("Is there a dog in photo 2?", Presence("a dog", "photo 2")),
        ("Is there a dog in all of the pictures?", Presence("a dog", "all of the pictures")),
        ("Are there dogs in one of these three photos?", Presence("dogs", "one of these three photos")),
        ("Is there no dog in the photo?", Presence("dog", "the photo", missing=True)),
        ("Are there not any dogs here?", Presence("dogs", missing=True)),
        ("Is there a notebook?", Presence("a notebook")),
        ("Isn't there a dog?", Presence("a dog")),
        ("Does the photo show a dog?", Presence("a dog", "the photo")),
        ("Do both pictures contain dogs?", Presence("dogs", "both pictures")),
        ("Does the picture not show any dogs?", Presence("dogs", "the picture", missing=True)),
        ("Can you see a dog?", Presence("a dog")),
        ("Do you see any dogs in the photo?", Presence("dogs", "the photo")),
        ("Is this a photo of the beach?", Presence("the beach", "this")),
        ("Is it a dog?", Presence("a dog", "it")),
        ("Is a man on a horse in the photo?", Presence("a man on a horse", "the photo")),
        ("Is anyone in the photo?", Presence("people", "the photo")),
        ("Is there anybody?", Presence("people")),
        ("Is this a black and white photo?", None),
        ("Do the photos show the same dog?", None),
        ("Is the dog in the photo?", None),
        ("Does the dog have a ball?", None),
        ("Is there a cat or a dog?", Presence("a cat or a dog")),
        ("Is the dog running?", None),
        ("What is there?", None),
    ],
)
def test_things_asked_for(question: str, presence: Presence | None) -> None:
    assert presence_asked_about(question) == presence


@pytest.mark.parametrize(
    ("where", "everywhere"),
    [
        ("", False),
        ("the photos", False),
        ("any of these photos", False),
        ("both photos", True),
        ("each of the pictures", True),
        ("all of them", True),
    ],
)
def test_where_a_thing_must_be(where: str, everywhere: bool) -> None:
    assert Presence("a dog", where).everywhere == everywhere
    assert not Presence("dog", where, missing=True).everywhere  # what is missing is in no picture


@pytest.mark.parametrize(
    ("question", "pictures", "one"),
    [
        ("What animal is in the left photo?", 2, (0, "What animal is in the photo?")),
        ("What is on the right-hand picture?", 2, (1, "What is on the photo?")),
        ("What does photo 2 show?", 3, (1, "What does the photo show?")),
        ("Is the dog in the photo on the left running?", 2, (0, "Is the dog running?")),
        (
            "What is in the second one, and is the second one dark?",
            2,
            (1, "What is in the photo, and is the photo dark?"),
        ),
        ("What is the man in the second picture doing?", 2, (1, "What is the man doing?")),
        ("Describe the last image.", 4, (3, "Describe the photo.")),
        ("What is in the left photo?", 3, None),
        ("What is in photo 4?", 3, None),
        ("What is in the first photo?", 1, None),
        ("Is the left photo darker than the right photo?", 2, None),
        ("Is the dog of the first photo in the other?", 2, None),
        ("How do the first photo and the last photo differ?", 3, None),
        ("Which photo is like the left photo?", 2, None),
        ("What is left of the man?", 2, None),
        ("Is <image> the left photo?", 2, None),
    ],
)
def test_a_question_about_one_of_several_pictures(question: str, pictures: int, one: tuple[int, str] | None) -> None:
    assert one_picture_asked_about(question, pictures) == one


@pytest.mark.parametrize(
    ("question", "claim"),
    [
        ("Is the dog running?", ("the dog", "is", "running")),
        ("are the man's shoes blue ?", ("the man's shoes", "are", "blue")),
        ("Is the man wearing a red hat?", ("the man", "is", "wearing a red hat")),
        ("Is the brick building red?", ("the brick building", "is", "red")),
        ("Is that woman sitting on a bench?", ("that woman", "is", "sitting on a bench")),
        ("Is the dog in the water?", None),
        ("Is this a dog?", None),
        ("Is the animal a dog?", None),
        ("Is the photo blurred?", None),
        ("Is the dog black or white?", None),
        ("Is it raining?", None),
        ("Is the dog?", None),
        ("Is there a dog?", None),
        ("What is the dog eating?", None),
    ],
)
def test_claims_asked_about(question: str, claim: tuple[str, str, str] | None) -> None:
    asked = claim_asked_about(question)
    assert (asked and asked[:3]) == claim and not (asked and asked.denied)


@pytest.mark.parametrize(
    ("request_", "description"),
    [
        ("Describe this image.", True),
        ("Describe the photo in one sentence", True),
        ("describe what you see in this picture.", True),
        ("Please describe what you see in this image.", True),
        ("Can you describe the photo, please?", True),
        ("Caption this image", True),
        ("Write a caption for this photo", True),
        ("Give me a short description of this image.", True),
        ("Generate a concise, descriptive alt text for the image.", True),
        ("Describe it", True),
        ("Describe", True),
        ("Describe the dog.", False),
        ("Describe the colour of the car in this photo.", False),
        ("Describe the image to the left of the dog", False),
        ("Write a poem about this photo", False),
        ("What is in the photo?", True),
        ("What is happening?", True),
        ("What's going on in this picture?", True),
        ("Tell me about this photo.", True),
        ("What is happening in the kitchen?", False),
        ("What is the dog doing?", False),
        ("What's in this image?", True),
        ("What\u2019s in this picture", True),
        ("What do you see?", True),
        ("What can you see in this photo?", True),
        ("What does the photo show?", True),
        ("What is in the dog's mouth?", False),
        ("What animal is in the photo?", False),
        ("What is in the photo on the left?", False),
        ("What do you see on the table?", False),
        ("What does the man hold?", False),
        ("Is there a description of the image?", False),
        ("", False),
    ],
)
def test_requests_for_a_description(request_: str, description: bool) -> None:
    assert asks_for_description(request_) == description


def test_kinds_of_questions() -> None:
    assert is_yes_no("Is the dog running?") and is_yes_no("does he run?")
    assert not is_yes_no("Is it a cat or a dog?") and not is_yes_no("What is it?")
    for question in (
        "How do they differ?",
        "Which one is bigger?",
        "What is in both pictures?",
        "What is in all of them?",
    ):
        assert is_about_all(question)
    assert not is_about_all("What colour is it?") and not is_about_all("Describe the photo.")
    assert asks_what_is_shared("What do the photos have in common?") and asks_what_is_shared(
        "What animal is in all photos?"
    )
    assert not asks_what_is_shared("How do they differ?")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Which of the two photos shows a dog?", "a dog"),
        ("Which of these has a red car?", "a red car"),
        ("What picture contains a bike?", "a bike"),
        ("In which photo do you see a cat?", "a cat"),
        ("In which photo are people eating?", "people eating"),
    ],
)
def test_more_statements(question: str, expected: str) -> None:
    assert statement(question) == expected


@pytest.mark.parametrize(
    ("question", "number"),
    [
        ("How many dogs are there?", True),
        ("how many people can you see in the photo", True),
        ("What is the number of boats?", True),
        ("What's the number of the bus?", True),
        ("How is the weather?", False),
        ("What number is on the shirt?", False),
        ("What color is the dog?", False),
    ],
)
def test_questions_for_a_number(question: str, number: bool) -> None:
    assert asks_for_number(question) == number


@pytest.mark.parametrize(
    ("question", "alone"),
    [
        ("What animals are in these photos?", "What animal is in the photo?"),
        ("What is in each of the three pictures?", "What is in the picture?"),
        ("How many people are in each photo?", "How many people are in the photo?"),
        ("Describe all images.", "Describe the image."),
        ("What is the photographer doing?", "What is the photographer doing?"),
    ],
)
def test_a_question_about_several_photos_is_asked_of_one(question: str, alone: str) -> None:
    assert about_one_photo(question) == alone


def test_questions_that_compare_photos() -> None:
    assert all(map(asks_to_compare, ("How do these differ?", "What is the difference?", "How are they different?")))
    assert not any(map(asks_to_compare, ("What different animals are in the photos?", "What do they share?")))
