"""Questions about two photos, whose captions say which of them is the answer."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from triptych.data.english.caption_facts import PARTICIPLES, Caption
from triptych.data.english.scenes import Scene
from triptych.data.english.word_lists import HINTS
from triptych.data.english.yes_no import there_is
from triptych.data.photos import Photo

SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")

TRIES = 50
"""How often two photos are drawn for each pair that is asked for."""


@dataclass(frozen=True)
class PairQuestion:
    """A question about two photos, which are given by their places in a sequence."""

    question: str
    left: int
    right: int
    answer: Literal["left", "right"]


def make_pairs(photos: Sequence[Photo], count: int, seed: int = 0) -> list[PairQuestion]:
    """``count`` questions about random pairs of ``photos``, the right answer as often left as right (if odd, but for one).

    Fewer where the captions hardly distinguish these photos.
    """
    rng = random.Random(seed)
    summaries = {i: _summary(photo.captions) for i, photo in enumerate(photos) if len(photo.captions) > 1}
    questions: list[tuple[str, int, int]] = []
    for _ in range(TRIES * count if len(summaries) > 1 else 0):
        if len(questions) == count:
            break
        place, other = rng.sample(list(summaries), 2)
        if question := _distinguishing(summaries[place], summaries[other], rng):
            questions.append((question, place, other))
    more = rng.randrange(2)
    answers = [SIDES[(more + i) % 2] for i in range(len(questions))]
    rng.shuffle(answers)
    return [
        PairQuestion(question, *((place, other) if answer == "left" else (other, place)), answer)
        for (question, place, other), answer in zip(questions, answers, strict=True)
    ]


@dataclass(frozen=True)
class _Summary:
    """What captions say: the things that two name, those that any hints at, and plain captions with the things they name."""

    named: frozenset[str]
    hinted: frozenset[str]
    phrases: tuple[tuple[str, frozenset[str]], ...]


@lru_cache(maxsize=2**15)
def _summary(captions: tuple[str, ...]) -> _Summary:
    scene = Scene(captions)
    named = frozenset(name for name, count in scene.named.items() if count >= 2 and name in HINTS)
    phrases = [
        (phrase, named.intersection(noun.name for noun in caption.nouns))
        for text, caption in zip(captions, scene.captions, strict=True)
        if (phrase := _phrase(text, caption))
    ]
    return _Summary(named, scene.hinted, tuple(phrases))


def _distinguishing(named: _Summary, other: _Summary, rng: random.Random) -> str | None:
    """A question about a thing, or a caption, that distinguishes the photo of ``named`` from ``other``."""
    things = sorted(named.named - other.hinted)
    forms = [
        [f"In which photo {there_is(name)}?" for name in things],
        [f"Which photo shows {phrase}?" for phrase, names in named.phrases if names.intersection(things)],
    ]
    return rng.choice(rng.choice([form for form in forms if form])) if things else None


def _phrase(text: str, caption: Caption) -> str | None:
    """A caption as a noun with what it does: "A dog runs in snow ." -> "a dog running in snow"; None if it is not that plain."""
    match, words = PLAIN.fullmatch(caption.shape), text.removesuffix(".").split()
    verb = str(caption.parts[match.start("verb")]) if match and match["verb"] else ""
    if not match or re.search(r'[";:?!()]', text) or (verb and verb not in words):
        return None
    if verb:
        at = words.index(verb)
        words[at] = PARTICIPLES[verb]
        if match["be"]:
            del words[at - 1]
    phrase = re.sub(r" (?=[,.']|-)", "", " ".join(words))
    return phrase[0].lower() + phrase[1:]


PLAIN = re.compile(r"n(?:pn)*(?:(?P<be>i?)(?P<verb>[gv])(?!.*&x)[^vi]*?|)\.?")
"""The shape of a caption that has one verb at most."""
