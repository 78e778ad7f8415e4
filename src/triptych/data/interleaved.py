"""Sequences of pictures and text made from captioned photos and named drawings: from these Flamingo learns tasks in context.

A sequence is of one task, its examples one after the other, so that each is also a few-shot prompt for the next:

- caption, name (of a drawing), question (one kind of question about several photos): each with its picture;
- dialogue: several questions about one photo, then perhaps about another;
- pair: which of two photos shows something;
- compare: several pictures are captioned one by one (``captions_by_picture``), then what they have in common is asked, how they differ, or
  which shows something;
- binding: made-up names, the names of other things, or their own names exchanged, for two or three classes of pictures: only the sequence
  says which is which (the open-ended miniImageNet test of "Frozen", Tsimpoukelli et al. 2021). A name counts in the loss once
  every class has appeared with its own.

The classes of photos are nouns that at least ``AGREE`` captions have. Those in ``HELD_OUT`` never make a class nor a name in training,
and drawings of them are left out; captions and questions may still mention them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from triptych.data.english.caption_facts import mention_of, read_caption
from triptych.data.english.given import given_questions
from triptych.data.english.kinds import Question
from triptych.data.english.pairs import SIDES, make_pairs
from triptych.data.english.questions import make_questions
from triptych.data.photos import Photo
from triptych.text.prompt import CAPTION, photo_names, question_after_pictures, question_prompt, split_at_images
from triptych.text.vocabulary import plain_caption

AGREE = 3  # or all, where a photo has fewer captions
ENOUGH, TRIES = 6, 50  # photos of a class; pairs of classes that are drawn for one sequence
HELD_OUT: Mapping[str, tuple[str, ...]] = {
    "test": ("beach", "bike", "motorcycle", "pool", "snow", "table", "wave"),
    "val": ("car", "horse", "street", "boat", "swing"),
}
ALL_HELD_OUT = frozenset(noun for nouns in HELD_OUT.values() for noun in nouns)
TEMPLATES = ("", "This is a", "This is", "Name:", "Label:", "Class:", "It is called", "Here we see a")
CAPTION_REQUESTS = ("Describe the photo.", "What is in the photo?", "What do you see?", "What is happening?")
COMMON = ("What do the photos have in common?", "What do these pictures have in common?", "What is in all of them?")
NOTHING_MUCH = "nothing much"
DIFFER = ("How do the photos differ?", "How do these pictures differ?", "What is the difference?")
SYLLABLE = re.compile(r"\S+")
ONSETS = SYLLABLE.findall("b bl d dr f fl g gr k kl l m n p pl r s sk sn t tr v w z")
VOWELS, CODAS = "aeiou", SYLLABLE.findall("x g p t ck m n nt sh b")


class PicturePart(NamedTuple):
    """A picture, by its place among all pictures."""

    picture: int


class TextPart(NamedTuple):
    """A text. ``is_label``: it counts in the loss; ``ends_example``: the end of an example follows, which counts with it."""

    text: str
    is_label: bool = False
    ends_example: bool = False


Interleaved = list[PicturePart | TextPart]


def with_pictures(prompt: str, pictures: Sequence[int]) -> Interleaved:
    """A prompt (``prompt.py``) with its pictures in their places."""
    first, *others = split_at_images(prompt, len(pictures))
    parts: Interleaved = [TextPart(first)] if first else []
    for picture, text in zip(pictures, others, strict=True):
        parts += [PicturePart(picture), *([TextPart(text)] if text else [])]
    return parts


def answer_part(answer: str, is_label: bool = True) -> TextPart:
    return TextPart(f" {answer}", is_label, ends_example=True)


def example(picture: int, text: str, answer: str, is_label: bool = True) -> Interleaved:
    """A picture, the text after it, the answer."""
    return [PicturePart(picture), *([TextPart(f" {text}")] if text else []), answer_part(answer, is_label)]


@dataclass(frozen=True)
class Episode:
    """A few-shot prompt with a question whose right answer is ``choices[answer]``."""

    prompt: Interleaved
    choices: tuple[str, ...]
    answer: int


def classes(photos: Sequence[Photo], agree: int = AGREE) -> dict[str, list[int]]:
    """Nouns -> the photos of which ``agree`` captions, or all, have them."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, counts in enumerate(map(noun_counts, photos)):
        for noun, count in counts.items():
            if count >= min(agree, len(photos[place].captions)):
                places[noun].append(place)
    return {noun: places[noun] for noun in sorted(places)}


def noun_counts(photo: Photo) -> Counter[str]:
    """How many captions of a photo have each noun."""
    return Counter(noun for text in photo.captions for noun in {n.name for n in read_caption(text).nouns})


def only(
    left: Sequence[int], right: Sequence[int], mentions: Sequence[set[str]], names: tuple[str, str]
) -> tuple[list[int], list[int]]:
    """The photos of two classes whose captions never have the noun of the other class."""
    return [i for i in left if names[1] not in mentions[i]], [i for i in right if names[0] not in mentions[i]]


def made_up_name(rng: random.Random, held_out: bool = False) -> str:
    """A word without a meaning: "dax", "blicket". A third of them never occur in training (``held_out``)."""
    while True:
        syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice((1, 1, 2)))]
        name = "".join(syllables) + rng.choice(CODAS)
        if (hashlib.sha256(name.encode()).digest()[0] < 85) == held_out:
            return name


def made_up_names(rng: random.Random, count: int, held_out: bool = False) -> list[str]:
    """So many different made-up names."""
    names: list[str] = []
    while len(names) < count:
        if (name := made_up_name(rng, held_out)) not in names:
            names.append(name)
    return names


def binding(
    rng: random.Random, groups: Sequence[Sequence[int]], names: Sequence[str], template: str, order: Sequence[int]
) -> Interleaved:
    """Pictures of the groups in this order (a group's number each), each with its group's name, a label once all have been named."""
    drawn = [rng.sample(list(group), len(group)) for group in groups]
    used, parts = Counter[int](), Interleaved()
    for group in order:
        picture = drawn[group][used[group] % len(drawn[group])]
        parts += example(picture, template, names[group], is_label=len(used) == len(groups))
        used[group] += 1
    return parts


def episode(
    rng: random.Random,
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
    shots: int,
    queries: Sequence[int] | None = None,
) -> Episode:
    """``shots`` examples of each group in random order, then a picture that none showed: the group's of ``queries``, if given."""
    order = [group for group in range(len(groups)) for _ in range(shots)]
    rng.shuffle(order)
    answer = rng.randrange(len(groups))
    *prompt, _ = binding(rng, groups, names, "This is a", [*order, answer])
    if queries is not None:
        last = max(place for place, part in enumerate(prompt) if isinstance(part, PicturePart))
        prompt[last] = PicturePart(queries[answer])
    return Episode(prompt, tuple(names), answer)


class Sequences:
    """Makes sequences of pictures: photos with captions come first, then drawings, whose first caption is their name."""

    def __init__(
        self,
        photos: Sequence[Photo],
        drawings: Sequence[Photo],
        seed: int = 0,
        draw: Callable[[random.Random], int] | None = None,
    ) -> None:
        """``draw``: the place of a further photo of a sequence of captions; None = each photo is as likely."""
        self.photos = photos
        self.draw = draw or (lambda rng: rng.randrange(len(photos)))
        made = make_questions(photos, seed)
        self.questions = [given_questions(photo) or own for photo, own in zip(photos, made, strict=True)]
        self.by_kind: dict[str, list[int]] = defaultdict(list)
        for place, questions in enumerate(self.questions):
            for kind in {question.kind for question in questions}:
                self.by_kind[kind].append(place)
        self.mentions = [set(noun_counts(photo)) for photo in photos]
        self.classes = {
            noun: places
            for noun, places in classes(photos).items()
            if len(places) >= ENOUGH and noun not in ALL_HELD_OUT
        }
        self.drawn: dict[str, list[int]] = defaultdict(list)
        for place, drawing in enumerate(drawings):
            if not ALL_HELD_OUT & set(noun_counts(drawing)):
                self.drawn[drawing.captions[0]].append(len(photos) + place)
        self.names = [*self.classes, *self.drawn]
        self.makers: Mapping[str, Callable[[random.Random, int], Interleaved]] = {
            "caption": self.captions,
            "name": self.names_of_drawings,
            "question": self.same_kind,
            "dialogue": self.dialogue,
            "pair": self.pair,
            "compare": self.compare,
            "binding": self.bound,
        }

    def captions(self, rng: random.Random, first: int) -> Interleaved:
        parts = Interleaved()
        for place in [first, *(self.draw(rng) for _ in range(8))]:
            photo = self.photos[place]
            caption = plain_caption(rng.choice((*photo.captions, *photo.written)))
            parts += [*with_pictures(CAPTION, [place]), answer_part(caption)]
        return parts

    def caption(self, rng: random.Random, place: int, noun: str | None = None) -> str:
        """One of a photo's captions; with ``noun``, one that has it."""
        captions = self.photos[place].captions
        if noun is not None:
            captions = tuple(text for text in captions if noun in {n.name for n in read_caption(text).nouns})
        return plain_caption(rng.choice(captions))

    def names_of_drawings(self, rng: random.Random, first: int) -> Interleaved:
        template, parts = rng.choice(TEMPLATES), Interleaved()
        for name in rng.sample([*self.drawn], min(8, len(self.drawn))):
            parts += example(rng.choice(self.drawn[name]), template, name)
        return parts

    def same_kind(self, rng: random.Random, first: int) -> Interleaved:
        if not self.questions[first]:
            return []
        kind = rng.choice(sorted({question.kind for question in self.questions[first]}))
        parts = Interleaved()
        for place in [first, *(rng.choice(self.by_kind[kind]) for _ in range(4))]:
            parts += self.answered(rng.choice([q for q in self.questions[place] if q.kind == kind]), [place])
        return parts

    def answered(self, question: Question, pictures: Sequence[int]) -> Interleaved:
        return [*with_pictures(question_prompt(question.question, 1), pictures), answer_part(question.answer)]

    def dialogue(self, rng: random.Random, first: int) -> Interleaved:
        parts = Interleaved()
        for place in [first, rng.randrange(len(self.photos))]:
            questions = self.questions[place]
            turns = [(q.question, q.answer) for q in rng.sample(questions, min(3, len(questions)))]
            turns.insert(rng.randrange(len(turns) + 1), (rng.choice(CAPTION_REQUESTS), self.caption(rng, place)))
            for i, (question, answer) in enumerate(turns):
                parts += (
                    with_pictures(question_prompt(question, 1), [place])
                    if i == 0
                    else [TextPart(question_after_pictures(question))]
                )
                parts.append(answer_part(answer))
        return parts

    def pair(self, rng: random.Random, first: int) -> Interleaved:
        """Each question is drawn alone: together they would have as many left as right answers, which gives the last one away."""
        parts = Interleaved()
        for _ in range(3):
            places = [first, *(rng.randrange(len(self.photos)) for _ in range(3))]
            for pair in make_pairs([self.photos[place] for place in places], 1, rng.randrange(1 << 30)):
                parts += with_pictures(question_prompt(pair.question, 2), [places[pair.left], places[pair.right]])
                parts.append(answer_part(pair.answer))
        return parts

    def compare(self, rng: random.Random, first: int) -> Interleaved:
        """Two or three pictures, captioned one by one, then a question that the captions answer."""
        nouns = sorted(self.mentions[first] & self.classes.keys())
        common = rng.choice(nouns) if nouns and rng.random() < 0.5 else None  # all show this, or anything
        places, captions = [first], [self.caption(rng, first, common)]
        for _ in range(rng.choice((1, 1, 2))):
            places.append(rng.choice(self.classes[common]) if common else rng.randrange(len(self.photos)))
            captions.append(self.caption(rng, places[-1], common))
        names = photo_names(len(places))
        parts = Interleaved()
        for name, place, caption in zip(names, places, captions, strict=True):
            parts += [*with_pictures(f"{name}: {CAPTION}", [place]), answer_part(caption)]
        if len(places) == 2 and rng.random() < 0.4:
            for pair in make_pairs([self.photos[place] for place in places], 1, rng.randrange(1 << 30)):
                side = pair.answer if pair.left == 0 else SIDES[pair.answer == "left"]  # as they stand here
                return [*parts, TextPart(question_after_pictures(pair.question)), answer_part(side)]
        if rng.random() < 0.5:
            return [*parts, TextPart(question_after_pictures(rng.choice(COMMON))), answer_part(in_common(captions))]
        the = "the " if len(places) == 2 else ""
        differ = ", ".join(f"{the}{name.lower()} shows {text}" for name, text in zip(names, captions, strict=True))
        return [*parts, TextPart(question_after_pictures(rng.choice(DIFFER))), answer_part(differ)]

    def bound(self, rng: random.Random, first: int) -> Interleaved:
        """Two or three kinds of drawings, or two kinds of photos; empty where the data set has fewer than two."""
        drawn = min(rng.choice((2, 2, 2, 3)), len(self.drawn))
        groups = self.drawings(rng, drawn) if drawn > 1 and rng.random() < 0.5 else self.nouns(rng)
        if not groups:
            return []
        own, kind = [*groups], rng.random()
        others = [name for name in self.names if name not in groups]
        if kind < 0.25:
            names = [*own[1:], own[0]]
        elif kind < 0.4 and len(others) >= len(own):
            names = rng.sample(others, len(own))
        else:
            names = made_up_names(rng, len(own))
        order = [group for _ in range(12 // len(own)) for group in range(len(own))]
        rng.shuffle(order)
        return binding(rng, [*groups.values()], names, rng.choice(TEMPLATES), order)

    def drawings(self, rng: random.Random, count: int) -> dict[str, list[int]]:
        return {name: self.drawn[name] for name in rng.sample([*self.drawn], count)}

    def nouns(self, rng: random.Random) -> dict[str, list[int]]:
        """Two nouns, each with photos that do not show the other; empty where there are too few such photos."""
        for _ in range(TRIES if len(self.classes) > 1 else 0):
            names = left, right = rng.sample([*self.classes], 2)
            groups = only(self.classes[left], self.classes[right], self.mentions, (left, right))
            if min(map(len, groups)) >= ENOUGH:
                return dict(zip(names, groups, strict=True))
        return {}


def in_common(captions: Sequence[str]) -> str:
    """What all captions name: ``"both show a dog and grass"``; else people or animals, if all name some."""
    both = "both" if len(captions) == 2 else "all"
    each = [read_caption(text).nouns for text in captions]
    names = [{noun.name for noun in nouns} for nouns in each]
    shared = [n.name for n in each[0] if n.name not in ALL_HELD_OUT and all(n.name in own for own in names)]
    if shared:
        return f"{both} show {' and '.join(mention_of(name) for name in dict.fromkeys(shared[:2]))}"
    for kind, named in (("human", "people"), ("animal", "animals")):
        if all(any(noun.kind == kind for noun in nouns) for nouns in each):
            return f"{both} show {named}"
    return NOTHING_MUCH
