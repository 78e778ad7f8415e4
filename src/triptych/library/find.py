"""A text -> the photos it describes. ITC looks at every photo of the library; the best by it are sorted by similarity, for which consensus
and querybank count too, and ITM reads the first of them from disk and ranks them.

All features are held in memory and compared in one matrix product: 10,000 photos of 16 queries take some 20 ms on two cores,
and LanceDB's own flat search of a multivector column several times that.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.errors import InputError
from triptych.io.images import load_image
from triptych.library.matcher import TOGETHER, Notice, PairScores, PhotoMatcher, unreadable_photos
from triptych.library.table import check_model, open_table, read_features, table_description, table_stamp
from triptych.tasks.probability import check_probability, everyday_words, naming_probability, standard_scores

LEAST_CANDIDATES = 32  # that matching ranks, where contrast alone chooses them
SHORTLIST = 500  # photos whose similarity is computed


@dataclass(frozen=True)
class Library:
    """What is searched: the library as it was when it was opened. ``features`` for contrast are ``[N, Q, E]``, of unit length in E."""

    name: str
    fingerprint: str
    paths: tuple[str, ...]
    hashes: tuple[str, ...]  # sha256 of each file
    features: NDArray[np.float32]
    pooled: NDArray[np.float16]  # [N, D]; D is 0 in old libraries, and with models without a consensus

    def cosines(self, text: NDArray[np.float32]) -> NDArray[np.float32]:
        """ITC of every photo with the text ``[E]``: the largest cosine over the photo's queries (BLIP-2 section 3.1)."""
        photos, queries, width = self.features.shape
        return (self.features.reshape(-1, width) @ text).reshape(photos, queries).max(1)


@dataclass(frozen=True)
class FoundPhoto:
    """A photo and how well the text fits it: ``score`` is the re-ranking's, ``probability`` that people would name it so."""

    path: str
    score: float
    itc_cosine: float
    itm_prob: float
    probability: float
    rank: int


def open_library(library: str | os.PathLike[str]) -> Library:
    """Read a library into memory; safe while another process indexes into it.

    Raises InputError: there is none, or no photo is in it.
    """
    table = open_table(library)
    (paths, hashes), features = read_features(table, ["path", "sha256"])
    if not paths:
        raise InputError(f"{library}: holds no photos yet; index some with: triptych index DIR --library {library}")
    fingerprint = table_description(table)["fingerprint"]
    names, contrast = tuple(map(os.fsdecode, paths)), features.contrast.astype(np.float32)
    return Library(str(library), fingerprint, names, tuple(hashes), contrast, features.pooled)


class SearchedLibrary:
    """A library that is searched again and again: read into memory at the first search, and anew once it has changed. Thread-safe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self._lock = Lock()
        self._opened: tuple[Hashable, Library] | None = None

    def open(self) -> Library:
        """Raises InputError as ``open_library``."""
        with self._lock:
            stamp = table_stamp(self.path)  # before it is read: a change in between is not missed
            if self._opened is None or self._opened[0] != stamp:
                self._opened = None  # so that there is room for the other
                self._opened = stamp, open_library(self.path)
            return self._opened[1]


def find(
    library: Library,
    model: PhotoMatcher,
    text: str,
    k: int = 20,
    candidates: int | None = None,
    *,
    at_least: float = 0.0,
    notice: Notice,
) -> list[FoundPhoto]:
    """The ``k`` photos (fewer if there are fewer) that ``text`` fits best, the best one first.

    Args:
        candidates: how many photos are re-ranked by matching; by default ``k``, where the library has pooled features, else
            ``max(2 * k, 32)``. The next best takes the place of one that cannot be read, and ``notice`` is called at the end.
        at_least: leave out photos of a lower probability (``tasks.probability``), 0 to below 1.

    Raises:
        InputError: an empty text, ``k``, ``candidates`` or ``at_least`` out of bounds, another model's library, or no photo left.
    """
    if not text.strip():
        raise InputError("there is nothing to look for: give a text, such as 'a dog in the snow'")
    check_probability(at_least)
    if model.unknown_texts([text]):
        notice(InputError(f"the model knows no word of {text!r}: what it finds is chance"))
    if candidates is None:
        candidates = k if library.pooled.size else max(2 * k, LEAST_CANDIDATES)
    if not 1 <= k <= candidates:
        raise InputError(f"k must be at least 1 and at most the {candidates} candidates that are ranked, not {k}")
    check_model(library.name, library.fingerprint, model.fingerprint)
    failed: list[InputError] = []
    photos = islice(_readable(library, most_similar_first(library, model, text), failed), candidates)
    matches: list[tuple[int, PairScores]] = []
    while group := list(islice(photos, TOGETHER)):
        matches += [(group[match.image][0], match) for match in model.match([photo for _, photo in group], [text])]
    if not matches:
        raise InputError(f"{library.name}: none of its photos can be read, the first: {failed[0]}")
    if failed:
        notice(unreadable_photos(failed))
    likely = zip(matches, probabilities(library, model, matches), strict=True)
    best = sorted(((row, m, p) for (row, m), p in likely if p >= at_least), key=lambda one: -one[1].rerank)[:k]
    return [
        FoundPhoto(library.paths[row], float(m.rerank), float(m.itc_cosine), float(m.itm_prob), p, rank)
        for rank, (row, m, p) in enumerate(best, 1)
    ]


def most_similar_first(library: Library, model: PhotoMatcher, text: str) -> NDArray[np.int64]:
    """The rows of all photos in the order of contrast, the best ``SHORTLIST`` of them in that of their similarity."""
    order = np.argsort(-library.cosines(model.itc_texts([text])[0]), kind="stable")
    if library.pooled.size:
        best = order[:SHORTLIST]
        pooled = library.pooled[best].astype(np.float32)
        similarity = model.similarity_of_features(library.features[best], pooled, [text])[:, 0]
        order[:SHORTLIST] = best[np.argsort(-similarity, kind="stable")]
    return order


def probabilities(library: Library, model: PhotoMatcher, matches: Sequence[tuple[int, PairScores]]) -> list[float]:
    """The probability that people would name the photo so, for each pair of a row of the library and its scores."""
    everyday = model.itc_texts(everyday_words())  # [V, E]
    background = np.stack([(library.features[row] @ everyday.T).max(0) for row, _ in matches])
    cosines = np.array([[match.itc_cosine] for _, match in matches])
    itm = np.array([match.itm_prob for _, match in matches])
    presence = np.full_like(itm, np.nan)  # a query says more than the name of a thing
    likely: list[float] = naming_probability(standard_scores(cosines, background)[:, 0], itm, presence).tolist()
    return likely


def _readable(library: Library, rows: Iterable[int], failed: list[InputError]) -> Iterator[tuple[int, Image.Image]]:
    for row in rows:
        try:
            yield row, load_image(library.paths[row])
        except InputError as error:
            failed.append(error)
