"""Fast binding: new names of two kinds of pictures are defined by examples in the prompt (after the open-ended miniImageNet of "Frozen",
Tsimpoukelli et al. 2021)."""

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

AGREED = 2  # captions of a photo that must have a noun
POOL = 4  # candidates for each of the nearest examples

View = Callable[[Image.Image], Image.Image]
Pair = tuple[tuple[str, str], tuple[list[int], list[int]]]  # the names of two kinds of pictures, the pictures' numbers


def fewshot_metrics(
    completer: Completes,
    photos: Sequence[Photo],
    split: str,
    shots: Sequence[int],
    episodes: int,
    seed: int,
    nearest: bool = False,
    prototypes: bool = True,
) -> dict[str, Any]:
    """Accuracy in percent for each number of examples: with made-up names, with the two kinds' own names exchanged, and with made-up
    names and grey pictures ("without photos"). Chance is 50%.

    The kinds are nouns of captions that are not in training (``HELD_OUT`` of the ``split``). In a data set of named drawings they are the
    names: the question shows one of a name's drawings, the examples are views of the others.

    ``nearest``: use those examples, out of up to ``POOL`` times as many, that are most similar to the picture of the question.
    ``prototypes``: see ``FlamingoTasks.interleaved``.

    Raises:
        InputError: there are too few pictures of two kinds.
    """
    drawn = all(len(photo.captions) == 1 for photo in photos)
    pairs = drawn_pairs(photos) if drawn else noun_pairs(photos, split)
    usable = {
        k: usable_pairs for k in shots if (usable_pairs := [pair for pair in pairs if has_enough(pair, k, drawn)])
    }
    if not usable:
        raise InputError(
            f"too few pictures of two kinds for {min(shots)} examples of each: give more, or lower --shots"
        )
    record: dict[str, Any] = {"episodes": episodes, "seed": seed, "prototypes": prototypes}
    record |= {"nearest": True} if nearest else {}
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
                right[name].append(chosen(completer, task, photos, prototypes) == task.answer)
                if given is new:
                    right["without photos"].append(chosen(completer, task, None, prototypes) == task.answer)
        kinds = {"kinds": float(len({name for names, _ in enough for name in names}))}
        record[f"{k} examples"] = kinds | {name: round(100 * sum(x) / len(x), 1) for name, x in right.items()}
    return record


def has_enough(pair: Pair, shots: int, drawn: bool) -> bool:
    """Whether both kinds have ``shots`` examples and one more picture for the question."""
    fewest = min(map(len, pair[1]))
    return shots <= len(VIEWS) * (fewest - 1) if drawn else shots < fewest


def views_but_one(
    rng: random.Random, groups: tuple[list[int], list[int]], pictures: int
) -> tuple[tuple[list[int], list[int]], list[int]]:
    """The views of all drawings of each kind but one, and that one. View v of picture p has the number p + v * ``pictures``."""
    kept, queries = [], []
    for group in groups:
        query, *others = rng.sample(group, len(group))
        queries.append(query)
        kept.append([picture + view * pictures for view in range(len(VIEWS)) for picture in others])
    return (kept[0], kept[1]), queries


def noun_pairs(photos: Sequence[Photo], split: str) -> list[Pair]:
    """All pairs of nouns that are not in training, with the photos that show one and not the other."""
    nouns = {noun: places for noun, places in classes(photos, AGREED).items() if noun in HELD_OUT.get(split, ())}
    mentions = [set(noun_counts(photo)) for photo in photos]
    names = sorted(nouns)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [(pair, only(nouns[pair[0]], nouns[pair[1]], mentions, pair)) for pair in pairs]


def drawn_pairs(pictures: Sequence[Photo]) -> list[Pair]:
    """Pairs of unrelated names that have several drawings: names are sorted by their ends, so that "cat face" and "dog face" are
    neighbours, and each of the first half is paired with one of the second half."""
    named: dict[str, list[int]] = defaultdict(list)
    for number, picture in enumerate(pictures):
        named[picture.captions[0]].append(number)
    names = sorted((name for name, numbers in named.items() if len(numbers) > 1), key=lambda name: name[::-1])
    half = len(names) // 2
    return [((a, b), (named[a], named[b])) for a, b in zip(names[:half], names[half:], strict=False)]


def chosen(completer: Completes, task: Episode, photos: Sequence[Photo] | None, prototypes: bool) -> int:
    """The index of the most likely name; ``photos`` None = with grey pictures."""
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
    answer = completer.interleaved(pictures, text, task.choices, prototypes=prototypes)
    return task.choices.index(answer.text)


def picture_view(photos: Sequence[Photo], number: int) -> Image.Image:
    """View ``number // len(photos)`` of a picture."""
    view, picture = divmod(number, len(photos))
    return VIEWS[view](photos[picture].image())


def largest_pool(groups: tuple[list[int], list[int]], shots: int, drawn: bool) -> int:
    """The number of candidates for the examples of each name: at most ``POOL * shots``, with one photo left for the question."""
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
    """The episode with only the ``count`` examples most similar to the picture of its question, the most similar last."""
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
