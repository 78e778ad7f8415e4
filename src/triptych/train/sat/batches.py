"""Captions as ids, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.data import Photo
from triptych.text.prompt import IGNORED
from triptych.text.vocabulary import BOS, EOS, PAD, WordVocabulary


def to_batch(captions: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Ids ``[B][K][words]`` with their end token -> ``input_ids`` and ``labels``, ``[B, K, T]``: shifted by one, padded."""
    length = max(len(ids) for row in captions for ids in row)
    input_ids = torch.full((len(captions), len(captions[0]), max(length, 1)), PAD)
    labels = torch.full_like(input_ids, IGNORED)
    for b, row in enumerate(captions):
        for k, ids in enumerate(row):
            input_ids[b, k, : len(ids)] = torch.tensor([BOS, *ids[:-1]][: len(ids)])
            labels[b, k, : len(ids)] = torch.tensor(ids)
    return input_ids, labels


def encode_captions(photo: Photo, vocabulary: WordVocabulary, count: int, max_words: int) -> list[list[int]]:
    """Exactly ``count`` captions as ids with the end token, cut at ``max_words``; repeated if there are fewer."""
    encoded = [[*vocabulary.encode(caption), EOS][:max_words] for caption in photo.captions]
    return [encoded[k % len(encoded)] for k in range(count)]
