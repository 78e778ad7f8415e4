"""Things that captions name and the photos do not have (CHAIR, Rohrbach et al. 2018, "Object Hallucination in Image Captioning")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.data import Photo
from triptych.data.english.caption_facts import read_caption
from triptych.data.english.word_lists import NOUNS
from triptych.errors import InputError

MENTIONED_KINDS = ("animal", "clothes", "ride", "thing", "food", "instrument")
PERSON = "person"  # stands for all nouns that name people: captions and boxes seldom agree which
LISTED = 10  # of the things that are named wrongly most often


def mentioned_things(text: str) -> set[str]:
    """The things and people that a text names, by the nouns of ``NOUNS``; people are one thing."""
    nouns = {noun.name for noun in read_caption(text).nouns}
    things = {name for kind in MENTIONED_KINDS for name in nouns & NOUNS[kind].keys()}
    return things | ({PERSON} if nouns & NOUNS["human"].keys() else set())


def things_in(photo: Photo) -> set[str]:
    """What a photo has: what the captions of people name, and the categories of its boxes."""
    return {thing for text in (*photo.captions, *categories_of(photo)) for thing in mentioned_things(text)}


def categories_of(photo: Photo) -> set[str]:
    """What a photo has boxes of, such as ``cell phone``."""
    return {str(box["category"]) for box in photo.extra.get("objects") or () if box.get("category")}


def hallucination_metrics(captions: Mapping[str, str], photos: Sequence[Photo]) -> dict[str, Any]:
    """How many of the things that captions name are not in the photos, in percent.

    Args:
        captions: a caption of each photo, by the photo's id.

    Returns:
        ``CHAIR-i``: of all things named, the share that the photo lacks; ``CHAIR-s``: the share of captions with such a thing; ``named``:
        things named a caption; ``most often``: what is named wrongly most often.

    Raises:
        InputError: no photo has captions or boxes.
    """
    judged = [(captions[photo.id], things) for photo in photos if (things := things_in(photo))]
    if not judged:
        raise InputError("no photo has captions or boxes that name a thing: nothing tells what is in them")
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
