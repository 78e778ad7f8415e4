"""Photos of a library that look like one photo, or like one another. Two photos are as similar as their features for contrast: the mean
over the queries of the cosine of the same query's features.

That says what photos show, not whether they are the same shot. So duplicates are confirmed: copies by the hash of the file, near
duplicates by comparing small grey versions, bursts by the times at which they were taken.
"""

from __future__ import annotations

import datetime
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.errors import InputError, TriptychError
from triptych.evidence import Floats
from triptych.io.fetch import read_source
from triptych.io.images import ImageSource, capture_time, decode_image, load_image
from triptych.library.find import Library
from triptych.library.matcher import Notice, PhotoMatcher, unreadable_photos
from triptych.library.table import check_model

GroupKind: TypeAlias = Literal["exact", "near", "burst"]

COMPARED = 1024  # photos whose similarities with all others are in memory
COMPARED_NEIGHBOURS = 32  # the most similar photos of each that are compared further
LEAST_SIMILAR = 0.45  # pairs below are not compared further: 99 of 100 photos reach it with themselves at half the size
NEAR_PIXELS = 0.96  # correlation of grey versions; of 800 different photos none reaches it
GREY_SIDE = 16  # pixels
BURST = datetime.timedelta(seconds=3)  # between two shots of one burst


@dataclass(frozen=True)
class SimilarPhoto:
    path: str
    similarity: float
    rank: int


@dataclass(frozen=True)
class PhotoGroup:
    """Photos that belong together, in order of their paths. ``similarity``: the lowest by which one of them was joined."""

    kind: GroupKind
    similarity: float
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Traits:
    """What two photos are compared by."""

    grey: Floats  # [GREY_SIDE^2], of mean 0 and length 1
    taken: datetime.datetime | None


def similar_photos(
    library: Library, model: PhotoMatcher, photo: ImageSource, k: int = 20, *, notice: Notice
) -> list[SimilarPhoto]:
    """The ``k`` photos of the library (fewer if there are fewer) most similar to ``photo``, the most similar first.

    Those that have disappeared are left out, and ``notice`` is called once.

    Raises InputError: the photo cannot be read, ``k`` is below 1, or the library is another model's.
    """
    if k < 1:
        raise InputError(f"k is {k}: give at least 1")
    check_model(library.name, library.fingerprint, model.fingerprint)
    features = model.itc_images([load_image(photo)])[0]
    photos, queries = library.features.shape[:2]
    similarity = library.features.reshape(photos, -1) @ features.reshape(-1) / queries
    gone: list[TriptychError] = []
    order = islice(_existing(library, np.argsort(-similarity, kind="stable"), gone), k)
    best = [SimilarPhoto(library.paths[row], float(similarity[row]), rank) for rank, row in enumerate(order, 1)]
    if gone:
        notice(unreadable_photos(gone))
    return best


def find_duplicates(
    library: Library, notice: Notice, progress: Callable[[int], None] = lambda photos: None
) -> list[PhotoGroup]:
    """Groups of copies, of bursts and of near duplicates, in order of their first paths; of copies, the first alone is compared further.

    Args:
        notice: called once if photos can no longer be read; those that have disappeared are in no group.
        progress: called with the number of photos compared since the last call.
    """
    by_hash: dict[str, list[int]] = defaultdict(list)
    unreadable: list[TriptychError] = []
    for row in sorted(_existing(library, range(len(library.paths)), unreadable), key=lambda row: library.paths[row]):
        by_hash[library.hashes[row]].append(row)
    groups = [_group(library, "exact", 1.0, rows) for rows in by_hash.values() if len(rows) > 1]
    links: dict[GroupKind, list[tuple[int, int, float]]] = {"near": [], "burst": []}
    traits: dict[int, Traits | None] = {}

    def traits_of(row: int) -> Traits | None:
        if row not in traits:
            try:
                traits[row] = read_traits(library.paths[row])
            except InputError as error:
                unreadable.append(error)
                traits[row] = None
        return traits[row]

    for one, other, similarity in similar_pairs(library, [rows[0] for rows in by_hash.values()], progress):
        first, second = traits_of(one), traits_of(other)
        if first is not None and second is not None and (kind := relation(first, second)) is not None:
            links[kind].append((one, other, similarity))
    if unreadable:
        notice(unreadable_photos(unreadable))
    for kind, joined in links.items():
        groups += [_group(library, kind, least, rows) for rows, least in connected(joined)]
    return sorted(groups, key=lambda group: (group.paths, group.kind))


def relation(one: Traits, other: Traits) -> GroupKind | None:
    """What two similar photos are to each other. Shots of one burst have different times; a copy in another size has the same."""
    apart = None if one.taken is None or other.taken is None else abs(one.taken - other.taken)
    if apart is not None and datetime.timedelta(0) < apart <= BURST:
        return "burst"
    if float(one.grey @ other.grey) >= NEAR_PIXELS:
        return "near"
    return "burst" if apart == datetime.timedelta(0) else None


def similar_pairs(
    library: Library, rows: list[int], progress: Callable[[int], None]
) -> Iterator[tuple[int, int, float]]:
    """Pairs of ``rows`` that are at least ``LEAST_SIMILAR``, each once; of a photo the ``COMPARED_NEIGHBOURS`` most similar."""
    queries = library.features.shape[1]
    for first in range(0, len(rows), COMPARED):
        part = rows[first : first + COMPARED]
        block = library.features[part].reshape(len(part), -1) / queries
        similarity = np.concatenate(
            [
                block @ library.features[rows[start : start + COMPARED]].reshape(-1, block.shape[1]).T
                for start in range(0, len(rows), COMPARED)
            ],
            1,
        )
        for i, row in enumerate(part):
            similarity[i, : first + i + 1] = -1.0  # itself, and pairs that were met before
            best = np.argpartition(-similarity[i], min(COMPARED_NEIGHBOURS, len(rows) - 1))[:COMPARED_NEIGHBOURS]
            for j in best[similarity[i, best] >= LEAST_SIMILAR].tolist():
                yield row, rows[j], float(similarity[i, j])
            progress(1)


def connected(links: list[tuple[int, int, float]]) -> list[tuple[list[int], float]]:
    """The rows that links join, directly or through others, and the weakest link of each such group."""
    group_of: dict[int, list[int]] = {}
    for one, other, _ in links:
        small, large = sorted((group_of.setdefault(one, [one]), group_of.setdefault(other, [other])), key=len)
        if small is not large:
            large += small
            group_of.update(dict.fromkeys(small, large))
    weakest: dict[int, float] = {}
    for one, _, similarity in links:
        group = id(group_of[one])
        weakest[group] = min(similarity, weakest.get(group, 1.0))
    groups = {id(group): group for group in group_of.values()}
    return [(sorted(group), weakest[key]) for key, group in groups.items()]


def read_traits(path: str) -> Traits:
    """Raises InputError: the photo cannot be read."""
    data, name = read_source(path)
    photo = decode_image(data, name, 2 * GREY_SIDE).convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BOX)
    grey: NDArray[np.float32] = np.asarray(photo, np.float32).ravel()
    grey = grey - grey.mean()
    return Traits(grey / (np.linalg.norm(grey) + 1e-6), capture_time(data))


def _existing(library: Library, rows: Iterable[int], gone: list[TriptychError]) -> Iterator[int]:
    """The rows whose photos are still there; an error for each of the others is added to ``gone``."""
    for row in rows:
        if os.path.exists(library.paths[row]):  # noqa: PTH110  (thousands of them)
            yield row
        else:
            gone.append(InputError(f"{library.paths[row]}: no such file"))


def _group(library: Library, kind: GroupKind, similarity: float, rows: list[int]) -> PhotoGroup:
    return PhotoGroup(kind, similarity, tuple(sorted(library.paths[row] for row in rows)))
