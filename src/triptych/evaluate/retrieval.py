"""Recall of retrieval: photos for a text, texts for a photo; by contrast, and after re-ranking by matching."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.progress import progress
from triptych.tasks import Matches

RANKS = (1, 5, 10)
DIRECTIONS = ("text-to-image", "image-to-text")


def recall(to_image: Tensor, to_text: Tensor, owners: Sequence[int]) -> dict[str, float]:
    """How often a right answer is among the k best, in percent, both ways.

    Args:
        to_image, to_text: ``[photos, texts]``, higher = fits better: what photos of a text, and texts of a photo, are sorted by.
        owners: the photo of each text.
    """
    owner = torch.as_tensor(owners)
    own = to_image[owner, torch.arange(len(owner))]
    text_ranks = (to_image > own).sum(0)  # photos before the right one
    is_own = owner == torch.arange(len(to_text))[:, None]
    best_own = to_text.masked_fill(~is_own, -torch.inf).amax(1, keepdim=True)
    image_ranks = (to_text > best_own).sum(1)
    return {
        f"{name} R@{k}": round(100 * (ranks < k).float().mean().item(), 2)
        for name, ranks in zip(DIRECTIONS, (text_ranks, image_ranks), strict=True)
        for k in RANKS
    }


def retrieval_metrics(matcher: Matches, photos: Sequence[Photo], candidates: int) -> dict[str, Any]:
    """Recall among all photos and their captions, with and without re-ranking the ``candidates`` best of each by ITM."""
    if len(photos) < 2:
        raise InputError(f"retrieval needs at least two photos with captions; there are {len(photos)}")
    started = time.perf_counter()
    texts = [caption for photo in photos for caption in photo.captions]
    owners = [i for i, photo in enumerate(photos) for _ in photo.captions]
    cosine, by_text, by_photo = reranked(matcher, [photo.image for photo in photos], texts, candidates)
    return {
        "texts": len(texts),
        "candidates": candidates,
        "itc": recall(cosine, cosine, owners),
        "itm": recall(by_text, by_photo, owners),
        "seconds": round(time.perf_counter() - started, 1),
    }


def reranked(
    matcher: Matches, photos: Sequence[Callable[[], Image.Image]], texts: Sequence[str], candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Three scores ``[photos, texts]``: contrast; for each text its best photos re-ranked; for each photo its best texts re-ranked.

    ``photos``: functions that open them, so that they are not all in memory. What is no candidate keeps its order below all that are.
    """
    text_features = matcher.itc_texts(texts)
    contrast = [(matcher.itc_images([photo()])[0] @ text_features.T).max(0) for photo in progress(photos, "contrast")]
    cosine = torch.from_numpy(np.stack(contrast))
    k = min(candidates, len(texts)), min(candidates, len(photos))
    for_photo = torch.zeros_like(cosine, dtype=torch.bool).scatter(1, cosine.topk(k[0], 1).indices, True)
    for_text = torch.zeros_like(cosine, dtype=torch.bool).scatter(0, cosine.topk(k[1], 0).indices, True)
    scores = torch.full_like(cosine, -torch.inf)
    for i, photo in progress(list(enumerate(photos)), "re-ranking"):
        rows = (for_photo[i] | for_text[i]).nonzero()[:, 0].tolist()
        for match in matcher.match(photo(), [texts[row] for row in rows]):
            scores[i, rows[match.text]] = match.rerank
    below = cosine - 1e4
    return cosine, torch.where(for_text, scores, below), torch.where(for_photo, scores, below)
