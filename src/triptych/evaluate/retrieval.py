"""Recall of retrieval: photos for a text, texts for a photo; by contrast, and after re-ranking by matching."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.tasks import Blip2Tasks, load_matcher

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


def retrieval_metrics(model: str, data: Path, split: str, limit: int | None, candidates: int) -> dict[str, Any]:
    """Recall among all photos and captions of ``split``, with and without re-ranking the ``candidates`` best of each by ITM."""
    photos = [photo for photo in open_dataset(data, split) if photo.captions][:limit]
    if len(photos) < 2:
        raise InputError(f"{data}: retrieval needs at least two photos with captions in the split {split!r}")
    matcher = load_matcher(model)
    started = time.perf_counter()
    texts = [caption for photo in photos for caption in photo.captions]
    owners = [i for i, photo in enumerate(photos) for _ in photo.captions]
    cosine, by_text, by_photo = reranked(matcher, [photo.image for photo in photos], texts, candidates)
    return {
        "model": model,
        "data": data.name,
        "split": split,
        "photos": len(photos),
        "texts": len(texts),
        "candidates": candidates,
        "itc": recall(cosine, cosine, owners),
        "itm": recall(by_text, by_photo, owners),
        "seconds": round(time.perf_counter() - started, 1),
        "recipe": matcher.info()["card"],
    }


@torch.inference_mode()
def reranked(
    matcher: Blip2Tasks, photos: Sequence[Any], texts: Sequence[str], candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Three scores ``[photos, texts]``: contrast; for each text its best photos re-ranked; for each photo its best texts re-ranked.

    ``photos``: functions that open them, so that they are not all in memory. What is no candidate keeps its order below all that are.
    """
    model = matcher.model
    input_ids, text_mask = matcher.word_pieces(texts)
    parts = zip(torch.split(input_ids, 256), torch.split(text_mask, 256), strict=True)
    text_features = torch.cat([model.text_features(ids, mask) for ids, mask in parts])
    features = torch.cat([torch.from_numpy(matcher.itc_images([photo()])) for photo in photos]).to(text_features.device)
    cosine = torch.stack([(queries @ text_features.T).amax(0) for queries in features])
    k = min(candidates, len(texts)), min(candidates, len(photos))
    for_photo = torch.zeros_like(cosine, dtype=torch.bool).scatter(1, cosine.topk(k[0], 1).indices, True)
    for_text = torch.zeros_like(cosine, dtype=torch.bool).scatter(0, cosine.topk(k[1], 0).indices, True)
    scores = torch.full_like(cosine, -torch.inf)
    console = Console(stderr=True)
    for i, photo in track(list(enumerate(photos)), "re-ranking", console=console, disable=not console.is_terminal):
        image = matcher.image_keys_values([photo()])
        queries = model.read_photos(image).queries
        for rows in torch.split((for_photo[i] | for_text[i]).nonzero()[:, 0], 128):
            width = int(text_mask[rows].sum(1).max())
            found = model.match(image, queries, text_features[rows], input_ids[rows, :width], text_mask[rows, :width])
            scores[i, rows] = found.rerank[0]
    below = cosine - 1e4
    return cosine, torch.where(for_text, scores, below), torch.where(for_photo, scores, below)
