"""Fast binding: two names and what they mean are told in the prompt alone (after the open-ended miniImageNet of "Frozen", Tsimpoukelli
et al. 2021)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image, ImageOps

from triptych.data import Photo
from triptych.data.interleaved import (
    HELD_OUT,
    Episode,
    Interleaved,
    PicturePart,
    TextPart,
    classes,
    episode,
    made_up_names,
    noun_counts,
    only,
)
from triptych.errors import InputError
from triptych.evaluate.progress import progress
from triptych.evidence import Floats
from triptych.io.images import ImageSource
from triptych.tasks import Completes
from triptych.tasks.capabilities import Model
from triptych.tasks.choices import GREY
from triptych.tasks.examples import unit_features
from triptych.text.prompt import END, IMAGE

AGREED = 2  # captions that must have a noun
POOL = 4  # examples for each one that is kept

View = Callable[[Image.Image], Image.Image]
Pair = tuple[tuple[str, str], tuple[list[int], list[int]]]  # what two kinds of pictures are called, and where they are


def fewshot_metrics(
    completer: Completes,
    photos: Sequence[Photo],
    split: str,
    shots: Sequence[int],
    episodes: int,
    seed: int,
    nearest: bool = False,
) -> dict[str, Any]:
    """Accuracy in percent for each number of examples: with made-up names, with the two kinds' own names exchanged, and with made-up
    names before grey pictures (blind). Chance is 50%.

    The kinds are nouns of captions that are no classes in training (``HELD_OUT`` of the ``split``). Of a data set of named drawings they
    are the names: the examples are views of all of a name's drawings but one, the question shows that one.

    ``nearest``: of up to ``POOL`` times as many examples, those most like the picture of the question are used, the most similar last.

    Raises:
        InputError: there are too few pictures of two kinds.
    """
    drawn = all(len(photo.captions) == 1 for photo in photos)
    pairs = drawn_pairs(photos) if drawn else noun_pairs(photos, split)
    usable = {
        k: usable_pairs for k in shots if (usable_pairs := [pair for pair in pairs if has_enough(pair, k, drawn)])
    }
    if not usable:
        raise InputError(f"there are too few pictures of two kinds for {min(shots)} examples of each")
    record: dict[str, Any] = {"episodes": episodes, "seed": seed} | ({"nearest": True} if nearest else {})
    features = PictureFeatures(completer, photos)
    for k, enough in usable.items():
        right: dict[str, list[bool]] = defaultdict(list)
        for i in progress(range(episodes), f"{k} examples"):
            rng = random.Random(f"{seed} {k} {i}")
            names, groups = rng.choice(enough)
            queries = None
            if drawn:
                groups, queries = views_but_one(rng, groups, len(photos))
            new = made_up_names(rng, 2, held_out=True)
            for name, given in (("made-up names", new), ("exchanged names", names[::-1])):
                pool = largest_pool(groups, k, drawn) if nearest else k
                task = episode(random.Random(f"{seed} {i}"), groups, given, pool, queries=queries)
                task = keep_nearest(task, 2 * k, features) if nearest else task
                right[name].append(chosen(completer, task, photos) == task.answer)
                if given is new:
                    right["without photos"].append(chosen(completer, task, None) == task.answer)
        kinds = {"kinds": float(len({name for names, _ in enough for name in names}))}
        record[f"{k} examples"] = kinds | {name: round(100 * sum(x) / len(x), 1) for name, x in right.items()}
    return record


def has_enough(pair: Pair, shots: int, drawn: bool) -> bool:
    """Whether both kinds have so many examples and one picture more."""
    fewest = min(map(len, pair[1]))
    return shots <= len(VIEWS) * (fewest - 1) if drawn else shots < fewest


def views_but_one(
    rng: random.Random, groups: tuple[list[int], list[int]], pictures: int
) -> tuple[tuple[list[int], list[int]], list[int]]:
    """Of each kind the views of all drawings but one (view v of picture p is number p + v * ``pictures``), and that one."""
    kept, queries = [], []
    for group in groups:
        query, *others = rng.sample(group, len(group))
        queries.append(query)
        kept.append([place + view * pictures for view in range(len(VIEWS)) for place in others])
    return (kept[0], kept[1]), queries


def noun_pairs(photos: Sequence[Photo], split: str) -> list[Pair]:
    """Every two nouns that training left out, with the photos that show one and nothing of the other."""
    nouns = {noun: places for noun, places in classes(photos, AGREED).items() if noun in HELD_OUT.get(split, ())}
    mentions = [set(noun_counts(photo)) for photo in photos]
    names = sorted(nouns)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [(pair, only(nouns[pair[0]], nouns[pair[1]], mentions, pair)) for pair in pairs]


def drawn_pairs(pictures: Sequence[Photo]) -> list[Pair]:
    """The names that several drawings have in pairs that have nothing to do with one another: each with the one half of them further on in
    the order of their ends ("cat face" and "dog face" are neighbours there)."""
    named: dict[str, list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        named[picture.captions[0]].append(place)
    names = sorted((name for name, places in named.items() if len(places) > 1), key=lambda name: name[::-1])
    half = len(names) // 2
    return [((a, b), (named[a], named[b])) for a, b in zip(names[:half], names[half:], strict=False)]


def chosen(completer: Completes, task: Episode, photos: Sequence[Photo] | None) -> int:
    """Which name the model finds the likeliest; ``photos`` None = before grey pictures."""
    pictures: list[ImageSource] = []
    text = ""
    for part in task.prompt:
        if isinstance(part, TextPart):
            text += part.text + END * part.ends_example
            continue
        text += IMAGE
        if photos is None:
            pictures.append(GREY)
        else:
            pictures.append(picture_view(photos, part.picture))
    answer = completer.interleaved(pictures, text, task.choices)
    return task.choices.index(answer.text)


def picture_view(photos: Sequence[Photo], number: int) -> Image.Image:
    """View ``number // len(photos)`` of a picture."""
    view, place = divmod(number, len(photos))
    return VIEWS[view](photos[place].image())


def largest_pool(groups: tuple[list[int], list[int]], shots: int, drawn: bool) -> int:
    """Examples of each name to choose from: at most ``POOL`` times ``shots``, and one photo is left for the question."""
    return min(POOL * shots, min(map(len, groups)) - (not drawn))


class PictureFeatures:
    """Features of pictures by their numbers, ``[D]``, each computed once."""

    def __init__(self, model: Model, photos: Sequence[Photo]) -> None:
        self.model, self.photos = model, photos
        self._features: dict[int, Floats] = {}

    def __getitem__(self, number: int) -> Floats:
        if number not in self._features:
            self._features[number] = unit_features(self.model, [picture_view(self.photos, number)])[0]
        return self._features[number]


def keep_nearest(task: Episode, count: int, features: PictureFeatures) -> Episode:
    """The episode with only the ``count`` examples most like the picture of its question, the most similar last."""
    examples: list[Interleaved] = [[]]
    for part in task.prompt:
        examples[-1].append(part)
        if isinstance(part, TextPart) and part.ends_example:
            examples.append([])
    *examples, question = examples

    def picture_of(parts: Interleaved) -> Floats:
        return features[next(part.picture for part in parts if isinstance(part, PicturePart))]

    order = sorted(examples, key=lambda parts: float(picture_of(parts) @ picture_of(question)))
    return replace(task, prompt=[part for parts in (*order[-count:], question) for part in parts])


def turned(degrees: float) -> View:
    return lambda picture: picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))


def smaller(picture: Image.Image) -> Image.Image:
    """Two thirds of the size, on white."""
    width, height = picture.size
    small = picture.resize((width * 2 // 3, height * 2 // 3))
    framed = Image.new("RGB", picture.size, (255, 255, 255))
    framed.paste(small, (width // 6, height // 6))
    return framed


VIEWS: tuple[View, ...] = (lambda picture: picture, ImageOps.mirror, turned(12), turned(-12), smaller)
