"""Things that captions name: which of them a photo has, and how many it has not."""

from pathlib import Path

import pytest

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.hallucination import hallucination_metrics, mentioned_things, things_in


def photo(name: str, captions: tuple[str, ...], objects: tuple[str, ...] = ()) -> Photo:
    boxes = [{"category": category, "box": [0, 0, 1, 1]} for category in objects]
    return Photo(name, "test", captions, {"objects": boxes} if boxes else {}, Path(name))


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("Two men with a bicycle.", {"person", "bike"}),
        ("A stuffed bear on a couch.", {"toy", "couch"}),
        ("A hot dog and a dog.", {"hotdog", "dog"}),
        ("cell phone", {"phone"}),
        ("tv", {"television"}),
        ("tennis racket", {"racket"}),
        ("dining table", {"table"}),
        ("A street in the snow.", set()),
    ],
)
def test_things_are_named_alike_by_captions_and_boxes(text: str, things: set[str]) -> None:
    assert mentioned_things(text) == things


def test_a_photo_has_what_any_caption_or_box_names() -> None:
    assert things_in(photo("a", ("A puppy runs.", "A man with his dog."), ("car", "cell phone"))) == {
        "dog",
        "person",
        "car",
        "phone",
    }


def test_wrong_things_are_counted_by_mention_and_by_caption() -> None:
    photos = [photo("a", ("A dog runs.",)), photo("b", (), ("zebra",)), photo("c", ("Nothing.",))]
    record = hallucination_metrics({"a": "A dog with a ball.", "b": "Two zebras.", "c": "A cat."}, photos)
    assert record == {"photos": 2, "CHAIR-i": 33.3, "CHAIR-s": 50.0, "named": 1.5, "most often": {"ball": 1}}


def test_without_captions_and_boxes_there_is_nothing_to_judge_by() -> None:
    with pytest.raises(InputError, match="no photo has captions or boxes"):
        hallucination_metrics({"a": "A dog."}, [photo("a", ())])
