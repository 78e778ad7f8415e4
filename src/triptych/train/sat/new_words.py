"""More words for a trained Show, Attend and Tell: those that further training captions have and its vocabulary lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from triptych.models import SatModel
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import SPECIALS, WordVocabulary, split_words

RARE_WORD = 400  # the last words of a vocabulary, its rarest: what a new word begins as


def with_new_words(sat: SatModel, captions: Iterable[str], min_count: int) -> SatModel:
    """The model with the words that occur ``min_count`` times and that it lacks, behind its own, the commonest first.

    The rows of a new word in the embedding and in the output layer begin near the mean of the rows that are there (in the output layer of
    its rarest words), so that it is as unlikely as they are until it has been learnt. What the model says is hardly changed.
    """
    counts = Counter(word for text in captions for word in split_words(text))
    known = set(sat.vocabulary.words)
    new = [word for word, count in counts.most_common() if count >= min_count and word not in known]
    if not new:
        return sat
    old = sat.model
    model = ShowAttendTell(replace(old.config, vocab_size=len(known) + len(new)), old.encoder)
    state = old.state_dict()
    generator = torch.Generator().manual_seed(0)
    words = len(sat.vocabulary)
    for name, tensor in state.items():
        if name.startswith("decoder.") and len(tensor) == words and model.state_dict()[name].shape != tensor.shape:
            like = tensor[len(SPECIALS) :] if "embedding" in name else tensor[max(len(SPECIALS), words - RARE_WORD) :]
            state[name] = torch.cat([tensor, rows_like(like, len(new), generator)])
    model.load_state_dict(state)
    model.unfreeze()
    vocabulary = WordVocabulary((*sat.vocabulary.words, *new))
    whole = sat.config.encoder.stored
    return SatModel.new(model, vocabulary, sat.search, whole_encoder=whole)


def rows_like(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows near the mean of ``rows``, with a third of their spread; of a vector the mean itself."""
    mean = rows.mean(0)
    if rows.ndim == 1:
        return mean.expand(count).clone()
    spread = rows.std(0) if len(rows) > 1 else torch.zeros_like(mean)
    noise = torch.randn(count, rows.shape[1], generator=generator).to(rows.device)
    return mean + spread * noise / 3
