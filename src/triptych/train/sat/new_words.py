"""Adding words of further training captions to the vocabulary of a trained Show, Attend and Tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from triptych.models import SatModel
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import SPECIALS, WordVocabulary, split_words

RAREST_WORDS = 400  # the last words of a vocabulary, which new words start like


def with_new_words(sat: SatModel, captions: Iterable[str], min_count: int) -> SatModel:
    """The model with the words that occur ``min_count`` times and that it lacks, after its own, the most frequent first.

    The new rows of the embedding start near the mean of the others, those of the output layer near the mean of the rarest words, so that a
    new word is as unlikely as those until it is learnt. The model's captions hardly change.
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
            first = len(SPECIALS) if "embedding" in name else max(len(SPECIALS), words - RAREST_WORDS)
            state[name] = torch.cat([tensor, rows_like(tensor[first:], len(new), generator)])
    model.load_state_dict(state)
    model.unfreeze()
    vocabulary = WordVocabulary((*sat.vocabulary.words, *new))
    whole = sat.config.encoder.stored
    return SatModel.new(model, vocabulary, sat.search, whole_encoder=whole)


def rows_like(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows near the mean of ``rows``, with a third of their standard deviation; for a vector the mean itself."""
    mean = rows.mean(0)
    if rows.ndim == 1:
        return mean.expand(count).clone()
    spread = rows.std(0) if len(rows) > 1 else torch.zeros_like(mean)
    noise = torch.randn(count, rows.shape[1], generator=generator).to(rows.device)
    return mean + spread * noise / 3
