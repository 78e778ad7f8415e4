"""Where BLIP-2 looked: what a text attended to among the queries, times what the queries attended to in the photo.

Attention is the mean over heads and layers. Spans are the tokens of each word: (first, behind the last).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.nn.qformer import ImageKeysValues, QFormerOutput
from triptych.systems.blip2 import Blip2
from triptych.tasks.writing import Spans

Maps = NDArray[np.float32]


def joined(pieces: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Word pieces (``##`` goes on with a word) as words, and their spans."""
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    for i, piece in enumerate(pieces):
        if piece.startswith("##") and words:
            words[-1] += piece[2:]
            spans[-1] = (spans[-1][0], i + 1)
        else:
            words.append(piece)
            spans.append((i, i + 1))
    return tuple(words), spans


def answer_maps(model: Blip2, pieces: Sequence[Tensor], seen: QFormerOutput, ids: Sequence[int], spans: Spans) -> Maps:
    """Of what the language model wrote behind the prompt ``pieces``: its attention to the soft prompts times the queries' to their photos.

    Returns ``[words, N, h, w]``.
    """
    assert model.lm is not None
    text = torch.tensor(ids[:-1], dtype=torch.long, device=seen.queries.device)
    layers = model.lm.attention_maps(model.prompt([[*pieces, text]]).inputs)
    attention = torch.stack([layer[0].mean(0) for layer in layers]).mean(0)[
        -len(ids) :
    ]  # [T, S]: of each token's making
    starts = np.cumsum([0, *map(len, pieces)])
    queries = model.config.qformer.queries
    soft = torch.stack([attention[:, start : start + queries] for start in starts[1:-1:2]], 1)  # [T, N, Q]
    looked = torch.einsum("tnq,nql->tnl", soft, cells(model, seen))
    return on_grid(model, by_word(looked, spans))


def grounded_maps(model: Blip2, image: ImageKeysValues, ids: Sequence[int], spans: Spans) -> Maps:
    """Of what the Q-Former wrote about one photo (``ids`` with [DEC] in front): ``[words, 1, h, w]``."""
    seen = model.qformer.encode_image(image, with_maps=True)
    text = torch.tensor([ids[:-1]], device=seen.queries.device)
    told = model.qformer.continue_text(text, seen.past, with_maps=True)
    attention = inner(told)[0, :, : model.config.qformer.queries]
    return on_grid(model, by_word(attention @ cells(model, seen)[0], spans)[:, None])


def match_maps(model: Blip2, image: ImageKeysValues, input_ids: Tensor, text_mask: Tensor, spans: Spans) -> Maps:
    """Of one text read together with a photo (ITM), then of the best query of contrast (ITC): ``[words + 1, 1, h, w]``."""
    assert model.heads is not None
    both = model.qformer.encode_both(image, input_ids, text_mask, with_maps=True)
    queries = model.config.qformer.queries
    attention = inner(both)[0, queries + 1 : -1, :queries]  # without [CLS] and [SEP]
    alone = model.qformer.encode_image(image, with_maps=True)
    similarity = model.heads.image_features(alone.queries)[0] @ model.text_features(input_ids, text_mask)[0]
    best = cells(model, alone)[0, similarity.argmax()]
    words = by_word(attention @ cells(model, both)[0], spans)
    return on_grid(model, torch.cat([words, best[None]])[:, None])


def cells(model: Blip2, seen: QFormerOutput) -> Tensor:
    """Where each query looked: ``[N, Q, L]``; a class token is no place."""
    looked = torch.stack([layer.cells for layer in seen.maps if layer.cells is not None]).mean(0)
    height, width = model.vision_encoder.grid
    return looked[..., -height * width :]


def inner(seen: QFormerOutput) -> Tensor:
    """How queries and words looked at one another: ``[R, rows, S]``."""
    return torch.stack([layer.inner for layer in seen.maps]).mean(0)


def by_word(looked: Tensor, spans: Spans) -> Tensor:
    """``[T, ..]`` of tokens -> ``[words, ..]``, the sum over a word's tokens."""
    return torch.stack([looked[first:behind].sum(0) for first, behind in spans])


def on_grid(model: Blip2, maps: Tensor) -> Maps:
    return maps.view(*maps.shape[:-1], *model.vision_encoder.grid).float().cpu().numpy()
