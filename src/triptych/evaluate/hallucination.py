"""Things that captions name but photos do not show (CHAIR, Rohrbach et al. 2018, "Object Hallucination in Image Captioning")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.data import Photo
from triptych.data.english.caption_facts import read_caption
from triptych.data.english.word_lists import NOUNS
from triptych.errors import InputError

MENTIONED_KINDS = ("animal", "clothes", "ride", "thing", "food", "instrument")
PERSON = "person"  # for all nouns that name people, on which captions and boxes seldom agree
LISTED = 10  # things that are wrongly named most often


def mentioned_things(text: str) -> set[str]:
    """The things that a text names, by the nouns of ``NOUNS``; all people are one thing."""
    nouns = {noun.name for noun in read_caption(text).nouns}
    things = {name for kind in MENTIONED_KINDS for name in nouns & NOUNS[kind].keys()}
    return things | ({PERSON} if nouns & NOUNS["human"].keys() else set())


def things_in(photo: Photo) -> set[str]:
    """The things that a photo shows: those that people's captions name, and the categories of its boxes."""
    return {thing for text in (*photo.captions, *categories_of(photo)) for thing in mentioned_things(text)}


def categories_of(photo: Photo) -> set[str]:
    """The categories of a photo's boxes, such as ``cell phone``."""
    return {str(box["category"]) for box in photo.extra.get("objects") or () if box.get("category")}


def hallucination_metrics(captions: Mapping[str, str], photos: Sequence[Photo]) -> dict[str, Any]:
    """The share of the things that captions name which are not in the photos.

    Args:
        captions: a caption of each photo, by the photo's id.

    Returns:
        ``CHAIR-i``: the percentage of all named things that the photo does not show; ``CHAIR-s``: the percentage of captions with such a
        thing; ``named``: things per caption; ``most often``: the things that are wrongly named most often.

    Raises:
        InputError: no photo has captions or boxes.
    """
    judged = [(captions[photo.id], things) for photo in photos if (things := things_in(photo))]
    if not judged:
        raise InputError("no photo has captions or boxes that name a thing: use data with captions or boxes")
    named = [mentioned_things(text) for text, _ in judged]
    wrong = [things - there for things, (_, there) in zip(named, judged, strict=True)]
    mentions = sum(map(len, named))
    return {
        "photos": len(judged),
        "CHAIR-i": round(100 * sum(map(len, wrong)) / max(1, mentions), 1),
        "CHAIR-s": round(100 * sum(map(bool, wrong)) / len(judged), 1),
        "named": round(mentions / len(judged), 2),
        "most often": dict(Counter(thing for things in wrong for thing in sorted(things)).most_common(LISTED)),
    }
