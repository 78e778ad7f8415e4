"""The frozen language model's logits of captions and answers behind soft prompts, in one pass over all their tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.nn import masks
from triptych.nn.decoder import Decoder, Prompt, TokenContext, left_pad
from triptych.nn.qformer import ImageKeysValues
from triptych.nn.t5 import T5, T5State
from triptych.systems.blip2 import Blip2
from triptych.text.prompt import IGNORED
from triptych.train.blip2.batches import PICTURE, AnswerRows


def caption_logits(lm: Decoder | T5, soft_prompt: Tensor, prompt: tuple[Tensor, Tensor], captions: Tensor) -> Tensor:
    """The language model's logits ``[N, V]`` for the N tokens of all ``captions [P, K, T]`` that are not IGNORED.

    A T5 encodes each photo's prompt once, and its decoder writes the captions. For another language model the K captions of a photo are
    branches of one row, packed behind what they share, so that it is read once and there is hardly any padding.

    Args:
        soft_prompt: ``[P, Q, E]``.
        prompt: ids before the photo, and between it and the captions.
    """
    before, after = prompt
    photos, count, length = captions.shape
    if isinstance(lm, T5):
        pieces = [lm.embed(before).expand(photos, -1, -1), soft_prompt, lm.embed(after).expand(photos, -1, -1)]
        state = lm.read(Prompt(torch.cat(pieces, 1)))
        rows = torch.arange(photos, device=captions.device)[:, None].expand(-1, count)
        return written_logits(lm, state.reorder(rows), captions.flatten(0, 1))
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
    """The language model's logits ``[N, V]`` for the N tokens of all answers."""
    lm = model.network
    question = (rows.question_ids, rows.question_mask) if model.config.instructed else None
    queries = model.read_photos(image.select(rows.photos), question).queries
    soft_prompts = model.soft_prompt(queries).flatten(0, 1).float()  # as the residual stream, also under autocast
    x = lm.embed(rows.input_ids.clamp_min(0))
    x = x.masked_scatter((rows.input_ids == PICTURE)[..., None], soft_prompts)
    if isinstance(lm, T5):
        return t5_answer_logits(lm, x, rows.labels)
    return lm.logits(lm(x, rows.token_mask)[rows.labels != IGNORED]).float()


def t5_answer_logits(lm: T5, x: Tensor, labels: Tensor) -> Tensor:
    """``answer_logits`` of an encoder-decoder, from rows as a decoder alone would read them.

    Args:
        x: ``[M, T, E]``, prompts with answers behind them; the encoder reads up to where the answer begins.
        labels: ``[M, T]``, what follows each.
    """
    is_label = labels != IGNORED
    starts = is_label.int().argmax(1).tolist()
    answers = [row[mask] for row, mask in zip(labels, is_label, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=IGNORED)
    state = lm.read(left_pad([row[: start + 1] for row, start in zip(x, starts, strict=True)]))
    return written_logits(lm, state, padded)


def written_logits(lm: T5, state: T5State, texts: Tensor) -> Tensor:
    """``[N, V]``, for the N tokens of ``texts [R, T]`` that are not IGNORED, written after the R prompts in ``state``, which is used up."""
    start = texts.new_full((len(texts), 1), lm.config.start_id)
    logits = lm.score(torch.cat([start, texts[:, :-1].clamp_min(0)], 1), state)
    return logits[texts != IGNORED].float()


def right_answers(model: Blip2, image: ImageKeysValues, rows: AnswerRows) -> int:
    """The number of answers that greedy decoding gives word for word: each of their tokens is the likeliest."""
    is_label = rows.labels != IGNORED
    wrong = answer_logits(model, image, rows).argmax(-1) != rows.labels[is_label]
    return len(rows.labels) - len(set(is_label.nonzero()[wrong, 0].tolist()))
