"""Recall of retrieval, photos for a text and texts for a photo: by contrast, and re-ranked by matching."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.progress import batches, progress
from triptych.evidence import Floats
from triptych.logits import to_numpy
from triptych.tasks import Matches

RANKS = (1, 5, 10)
PHOTOS_TOGETHER = 16
DIRECTIONS = ("text-to-image", "image-to-text")


def recall(to_image: Any, to_text: Any, owners: Sequence[int]) -> dict[str, float]:
    """How often a right answer is among the k best, in percent, in both directions.

    Args:
        to_image: ``[photos, texts]``, the scores that the photos for a text are sorted by, higher = better; NumPy's or torch's.
        to_text: the same for the texts for a photo.
        owners: the photo of each text.
    """
    is_own = np.asarray(owners) == np.arange(len(to_text))[:, None]
    text_ranks, image_ranks = ranks_of_right(to_numpy(to_image).T, is_own.T), ranks_of_right(to_numpy(to_text), is_own)
    return {
        f"{name} R@{k}": round(100 * float((ranks < k).mean()), 2)
        for name, ranks in zip(DIRECTIONS, (text_ranks, image_ranks), strict=True)
        for k in RANKS
    }


def ranks_of_right(scores: Floats, is_right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rank of the first right answer in each row of ``scores [N, C]``, from 0; beyond all ``RANKS`` where a row has none.

    Equal scores are sorted by column and NaN comes last, so that a model with one score for everything is at the level of chance.
    """
    sorted_right = np.take_along_axis(is_right, np.argsort(-scores, axis=1, kind="stable"), 1)
    return np.where(sorted_right.any(1), sorted_right.argmax(1), max(RANKS))


def retrieval_metrics(matcher: Matches, photos: Sequence[Photo], candidates: int) -> dict[str, Any]:
    """Recall among all photos and their captions: by contrast (``itc``), by contrast with consensus and querybank (``similarity``), and
    with the ``candidates`` best of these re-ranked by matching (``itm``).

    Raises:
        InputError: fewer than two photos.
    """
    if len(photos) < 2:
        raise InputError(f"retrieval needs at least two photos with captions, found {len(photos)}: give more")
    started = time.perf_counter()
    texts = [caption for photo in photos for caption in photo.captions]
    owners = [i for i, photo in enumerate(photos) for _ in photo.captions]
    cosine, similarity, by_text, by_photo = reranked(matcher, [photo.image for photo in photos], texts, candidates)
    return {
        "texts": len(texts),
        "candidates": candidates,
        "itc": recall(cosine, cosine, owners),
        "similarity": recall(similarity, similarity, owners),
        "itm": recall(by_text, by_photo, owners),
        "seconds": round(time.perf_counter() - started, 1),
    }


def reranked(
    matcher: Matches, photos: Sequence[Callable[[], Image.Image]], texts: Sequence[str], candidates: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Four scores ``[photos, texts]``: contrast; similarity; for each text its best photos re-ranked; for each photo its best texts
    re-ranked.

    ``photos``: functions that open them, so that not all are in memory. Others than the candidates keep their order below these.
    """
    searched = matcher.search_texts(texts)
    scored = []
    for part in batches(photos, PHOTOS_TOGETHER, "contrast"):
        images = [photo() for photo in part]
        contrast, pooled = matcher.search_features(images)
        cosines = (contrast @ searched.features.T).max(1)
        scored.append((cosines, matcher.similarity_to(searched, contrast, pooled)))
    cosine, similarity = (np.concatenate(each) for each in zip(*scored, strict=True))
    for_photo, for_text = best_of(similarity, candidates, 1), best_of(similarity, candidates, 0)
    scores = np.full_like(similarity, -np.inf)
    for i, photo in progress(list(enumerate(photos)), "re-ranking"):
        rows = np.flatnonzero(for_photo[i] | for_text[i]).tolist()
        for match in matcher.match(photo(), [texts[row] for row in rows]):
            scores[i, rows[match.text]] = match.rerank
    below = similarity + (scores[np.isfinite(scores)].min() - similarity.max() - 1)
    return cosine, similarity, np.where(for_text, scores, below), np.where(for_photo, scores, below)


def best_of(scores: Floats, count: int, axis: int) -> NDArray[np.bool_]:
    """True at the ``count`` highest scores along an axis."""
    order = np.argsort(-scores, axis=axis, kind="stable")
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, order[:, :count] if axis == 1 else order[:count], True, axis)
    return chosen
