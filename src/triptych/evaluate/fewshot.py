"""Fast binding: two names and what they mean are told in the prompt alone (after the open-ended miniImageNet of "Frozen", Tsimpoukelli
et al. 2021)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from triptych.data import Photo, open_dataset
from triptych.data.interleaved import HELD_OUT, Episode, Said, Shown, classes, episode, made_up_name, noun_counts, only
from triptych.errors import InputError
from triptych.images import ImageSource
from triptych.prompt import END, IMAGE
from triptych.tasks import FlamingoTasks, load_completer

GREY = Image.new("RGB", (32, 32), (127, 127, 127))
AGREED = 2  # captions that must have a noun

Pair = tuple[tuple[str, str], tuple[list[int], list[int]]]  # what two kinds of pictures are called, and where they are


def fewshot_metrics(
    model: str, data: Path, split: str, limit: int | None, shots: Sequence[int], episodes: int, seed: int
) -> dict[str, Any]:
    """Accuracy in percent for each number of examples: with made-up names, with the two kinds' own names exchanged, and with made-up
    names before grey pictures (blind). Chance is 50%.

    The kinds are nouns of captions that training never used as classes (``HELD_OUT``); or, of a data set of named pictures, the names.
    """
    photos = [photo for photo in open_dataset(data, split) if photo.captions][:limit]
    pairs = drawn_pairs(photos) if all(len(p.captions) == 1 for p in photos) else noun_pairs(photos, split)
    usable = [k for k in shots if any(min(map(len, groups)) > k for _, groups in pairs)]
    if not usable:
        raise InputError(
            f"{data}: the split {split!r} has too few pictures of two kinds for {min(shots)} examples of each"
        )
    completer = load_completer(model)
    record: dict[str, Any] = {"model": model, "data": data.name, "split": split, "episodes": episodes, "seed": seed}
    record["kinds"] = len({name for names, _ in pairs for name in names})
    console = Console(stderr=True)
    for k in usable:
        enough = [pair for pair in pairs if min(map(len, pair[1])) > k]
        right: dict[str, list[bool]] = defaultdict(list)
        for i in track(range(episodes), f"{k} examples", console=console, disable=not console.is_terminal):
            rng = random.Random(f"{seed} {k} {i}")
            names, groups = rng.choice(enough)
            new = made_up_names(rng)
            for name, given in (("made-up names", new), ("exchanged names", names[::-1])):
                found = episode(random.Random(f"{seed} {i}"), groups, given, k)
                right[name].append(chosen(completer, found, photos) == found.answer)
                if given is new:
                    right["without photos"].append(chosen(completer, found, None) == found.answer)
        record[f"{k} examples"] = {name: round(100 * sum(x) / len(x), 1) for name, x in right.items()}
    return record | {"recipe": completer.info()["card"]}


def made_up_names(rng: random.Random) -> tuple[str, str]:
    while True:
        names = made_up_name(rng, held_out=True), made_up_name(rng, held_out=True)
        if names[0] != names[1]:
            return names


def noun_pairs(photos: Sequence[Photo], split: str) -> list[Pair]:
    """Every two nouns that training left out, with the photos that show one and nothing of the other."""
    nouns = {noun: places for noun, places in classes(photos, AGREED).items() if noun in HELD_OUT.get(split, ())}
    mentions = [set(noun_counts(photo)) for photo in photos]
    names = sorted(nouns)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [(pair, only(nouns[pair[0]], nouns[pair[1]], mentions, pair)) for pair in pairs]


def drawn_pairs(pictures: Sequence[Photo]) -> list[Pair]:
    """Every two neighbours among the names that several pictures have, in alphabetical order of the names' ends."""
    named: dict[str, list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        named[picture.captions[0]].append(place)
    names = sorted((name for name, places in named.items() if len(places) > 1), key=lambda name: name[::-1])
    half = len(names) // 2
    return [((a, b), (named[a], named[b])) for a, b in zip(names[:half], names[half:], strict=False)]


def chosen(completer: FlamingoTasks, found: Episode, photos: Sequence[Photo] | None) -> int:
    """Which name the model finds the likeliest; ``photos`` None = before grey pictures."""
    shown: list[ImageSource] = []
    text = ""
    for part in found.prompt:
        if isinstance(part, Shown):
            shown.append(photos[part.picture].image() if photos is not None else GREY)
            text += IMAGE
        else:
            text += written(part)
    answer = completer.interleaved(shown, text, found.choices)
    return found.choices.index(answer.text)


def written(part: Said) -> str:
    return part.text + END * part.ends
