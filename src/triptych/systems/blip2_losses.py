"""The three objectives of BLIP-2's first stage (Li et al. 2023, section 3.1) as pure functions.

Shapes: B photos and texts of this process, N photos and texts gathered from all processes (N = B with one), Q queries, E width of
their features, T tokens, V words. Text i of the gathered batch describes photo i; photos with equal ``image_ids`` are the same photo.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.errors import InputError
from triptych.text.prompt import IGNORED


def itc_similarity(query_features: Tensor, text_features: Tensor) -> Tensor:
    """How well each photo fits each text: the cosine of its best query, -1 to 1.

    ``query_features [B, Q, E]`` and ``text_features [N, E]``, both of length 1 in E -> ``[B, N]``.
    """
    return (query_features @ text_features.T).amax(1)  # BLIP-2 section 3.1: ITC similarity of the best query


def itc_loss(
    image_to_text: Tensor, text_to_image: Tensor, image_ids: Tensor, all_image_ids: Tensor, label_smoothing: float = 0.1
) -> Tensor:
    """Contrast of photos and texts, the mean of both directions.

    A photo that occurs several times in the batch has that many right answers, of equal weight.

    Args:
        image_to_text: ``[B, N]`` similarities of this process's photos to all texts, divided by the temperature.
        text_to_image: ``[B, N]`` similarities of this process's texts to all photos, divided by the temperature.
        image_ids: ``[B]``, of this process's photos.
        all_image_ids: ``[N]``, of all photos.
        label_smoothing: the share of the target that is spread evenly over the N candidates.
    """
    same = (image_ids[:, None] == all_image_ids).float()
    # BLIP-2 section 3.1: ITC loss, both directions
    targets = (1 - label_smoothing) * same / same.sum(1, keepdim=True) + label_smoothing / same.shape[1]
    return (F.cross_entropy(image_to_text.float(), targets) + F.cross_entropy(text_to_image.float(), targets)) / 2


def hard_negatives(
    similarity: Tensor,
    image_ids: Tensor,
    all_image_ids: Tensor,
    generator: torch.Generator | None = None,
    easy: float = 0.0,
) -> Tensor:
    """For each row a candidate of another photo, drawn by its similarity: ``[B]`` indices into the gathered batch.

    Args:
        similarity: ``[B, N]``, divided by the temperature.
        image_ids, all_image_ids: as in ``itc_loss``.
        easy: the share that is drawn evenly instead (the paper: 0). It gives matching negatives that it can tell apart when its training
            starts after that of contrast.

    Raises:
        InputError: a batch without a second photo.
    """
    same = image_ids[:, None] == all_image_ids
    if same.all(1).any():
        raise InputError("matching needs two different photos in a batch: make the batch larger")
    # BLIP-2 section 3.1: ITM hard negatives
    weights = similarity.detach().float().masked_fill(same, -torch.inf).softmax(1)
    weights = (1 - easy) * weights + easy * (~same) / (~same).sum(1, keepdim=True)
    return weights.multinomial(1, generator=generator).squeeze(1)


def itm_pairs(
    image_to_text: Tensor,
    text_to_image: Tensor,
    image_ids: Tensor,
    all_image_ids: Tensor,
    first: int = 0,
    generator: torch.Generator | None = None,
    easy: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The pairs for matching, as indices into the gathered batch: photos (positive, negative, positive) with texts (positive, positive,
    negative).

    Args:
        image_to_text, text_to_image, image_ids, all_image_ids: as in ``itc_loss``.
        first: the index of this process's first row in the gathered batch.
        easy: as in ``hard_negatives``.

    Returns:
        ``image_rows [3B]``, ``text_rows [3B]``; the first B pairs match.
    """
    # BLIP-2 section 3.1: ITM negatives, a photo for each text and a text for each photo
    positive = torch.arange(first, first + len(image_ids), device=image_ids.device)
    image = hard_negatives(text_to_image, image_ids, all_image_ids, generator, easy)
    text = hard_negatives(image_to_text, image_ids, all_image_ids, generator, easy)
    return torch.cat([positive, image, positive]), torch.cat([positive, positive, text])


def itm_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of match or no match. ``logits [3B, 2]`` of the pairs of ``itm_pairs``; class 1 = they match."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(logits) // 3] = 1
    # BLIP-2 section 3.1: ITM loss
    return F.cross_entropy(logits.float(), labels)


def itg_loss(logits: Tensor, input_ids: Tensor, text_mask: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Grounded generation: the mean over the words that follow [DEC] of -log p(word | photo, earlier words).

    Args:
        logits: ``[B, T, V]``; position t predicts word t + 1.
        input_ids: ``[B, T]``, beginning with [DEC].
        text_mask: ``[B, T]``, False on padding.
    """
    labels = input_ids.masked_fill(~text_mask, IGNORED)[:, 1:]
    # BLIP-2 section 3.1: ITG loss
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing
    )
