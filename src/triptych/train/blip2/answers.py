"""What the frozen language model makes of captions and answers behind soft prompts, in one pass over all their tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.nn import masks
from triptych.nn.decoder import Decoder, TokenContext
from triptych.nn.qformer import ImageKeysValues
from triptych.systems.blip2 import Blip2
from triptych.text.prompt import IGNORED
from triptych.train.blip2.batches import PICTURE, AnswerRows


def caption_logits(lm: Decoder, soft_prompt: Tensor, prompt: tuple[Tensor, Tensor], captions: Tensor) -> Tensor:
    """``[N, V]``, for the N tokens of all ``captions [P, K, T]`` that are not IGNORED.

    The K captions of a photo share what stands before them: they are branches of one row, packed behind it, so that it is read once
    and padding hardly at all.

    Args:
        soft_prompt: ``[P, Q, E]``.
        prompt: ids before the photo, and between it and the captions.
    """
    before, after = prompt
    photos, count, length = captions.shape
    texts = [lm.embed(ids).expand(photos, -1, -1) for ids in (before, after[:-1])]
    prefix = torch.cat([texts[0], soft_prompt, texts[1]], 1)
    start = prefix.shape[1]
    padding = captions.flatten(1) == IGNORED
    longest = int((~padding).sum(1).max())
    packed = padding.int().argsort(dim=1, stable=True)[:, :longest]  # the captions' tokens in their order, then padding
    shifted = torch.cat([after[-1:].expand(photos, count, 1), captions[..., :-1].clamp_min(0)], 2)
    x = torch.cat([prefix, lm.embed(shifted.flatten(1).gather(1, packed))], 1)
    before_captions = torch.arange(start, device=x.device).expand(photos, -1)
    x, positions = lm.add_positions(x, torch.cat([before_captions, start + packed % length], 1))
    context = TokenContext(masks.branches(start, packed // length), False, positions)
    for block in lm.blocks:
        x = block(x, context)
    return lm.logits(lm.final_hidden(x[:, start:])[~padding.gather(1, packed)]).float()


def answer_logits(model: Blip2, image: ImageKeysValues, rows: AnswerRows) -> Tensor:
    """``[N, V]``: of the frozen language model, for the N tokens of all answers."""
    lm = model.decoder
    question = (rows.question_ids, rows.question_mask) if model.config.instructed else None
    queries = model.read_photos(image.select(rows.photos), question).queries
    soft_prompts = model.soft_prompt(queries).flatten(0, 1).float()  # as the residual stream, also under autocast
    x = lm.embed(rows.input_ids.clamp_min(0))
    x = x.masked_scatter((rows.input_ids == PICTURE)[..., None], soft_prompts)
    return lm.logits(lm(x, rows.token_mask)[rows.labels != IGNORED]).float()


def right_answers(model: Blip2, image: ImageKeysValues, rows: AnswerRows) -> int:
    """How many answers greedy decoding gives word for word: those of which each token is the likeliest."""
    is_label = rows.labels != IGNORED
    wrong = answer_logits(model, image, rows).argmax(-1) != rows.labels[is_label]
    return len(rows.labels) - len(set(is_label.nonzero()[wrong, 0].tolist()))
