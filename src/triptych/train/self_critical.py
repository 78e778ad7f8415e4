"""Self-critical training: sampled captions become more likely the more their reward exceeds that of the photo's other samples.

Rennie et al. 2017, "Self-critical sequence training for image captioning", with the baseline of Luo 2020, "A better variant of
self-critical sequence training": the mean reward of the other samples. Shapes: P photos, K samples of each, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from triptych.data import Photo
from triptych.generate import Hypothesis, Search, StepModel, generate
from triptych.metrics.bleu import bleu
from triptych.metrics.cider import CiderD, Tokens
from triptych.metrics.tokenize import ptb_tokenize
from triptych.text.prompt import IGNORED
from triptych.text.tokenizer import TextTokenizer


class Reward:
    """CIDEr-D plus ``bleu_weight`` times the mean of BLEU-1 to 4.

    ``references``: the captions of each training photo as tokens, with an end token, so that the reward counts a proper end.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]], bleu_weight: float) -> None:
        self.references, self.bleu_weight, self.cider = references, bleu_weight, CiderD(references)

    def __call__(self, texts: Sequence[Tokens], photos: Sequence[int]) -> Tensor:
        """The reward of each text against the captions of its photo, ``[len(texts)]``."""
        scores = self.cider.score_items(texts, photos)
        if self.bleu_weight:
            _, each = bleu(texts, [self.references[photo] for photo in photos])
            scores = scores + self.bleu_weight * each.mean(1)
        return torch.from_numpy(scores).float()


class CaptionReward:
    """The reward of a language model's samples, over the words that caption metrics count."""

    def __init__(self, photos: Sequence[Photo], tokenizer: TextTokenizer, bleu_weight: float) -> None:
        self.decode, self.end = tokenizer.decode, min(tokenizer.eos_ids)
        self.reward = Reward([[[*ptb_tokenize(c), self.end] for c in photo.captions] for photo in photos], bleu_weight)

    def __call__(self, hypotheses: Sequence[Sequence[Hypothesis]], photos: Sequence[int]) -> Tensor:
        """The rewards ``[P, K]`` of the K samples of each photo; ``photos``: its index among the training photos."""
        texts: list[Tokens] = []
        for hypothesis in chain.from_iterable(hypotheses):
            words: list[str | int] = [*ptb_tokenize(self.decode(hypothesis.ids))]
            texts.append([*words, self.end] if hypothesis.finished else words)
        owners = [photo for photo, samples in zip(photos, hypotheses, strict=True) for _ in samples]
        return self.reward(texts, owners).view(len(photos), -1)


def sample_captions(
    model: StepModel[Any, Any],
    prompt: Any,
    reward_fn: CaptionReward,
    photos: Sequence[int],
    sampling: Search,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Draw K = ``sampling.n_best`` captions of each of ``photos``: their labels ``[P, K, T]`` and rewards ``[P, K]``."""
    hypotheses = generate(model, prompt, sampling, independent_seeds(len(photos), seed))
    return to_labels(hypotheses, reward_fn.end), reward_fn(hypotheses, photos)


def independent_seeds(photos: int, seed: int) -> list[int]:
    """A seed for each photo, so that the P * K draws of a step are independent."""
    return torch.randint(2**62, (photos,), generator=torch.Generator().manual_seed(seed)).tolist()


def to_labels(hypotheses: Sequence[Sequence[Hypothesis]], end: int) -> Tensor:
    """``[P, K, T]``: the ids of the samples, then ``end`` if the sample is finished, then IGNORED."""
    texts = [[[*h.ids, end] if h.finished else [*h.ids] for h in samples] for samples in hypotheses]
    longest = max(len(ids) for samples in texts for ids in samples)
    return torch.tensor([[ids + [IGNORED] * (longest - len(ids)) for ids in samples] for samples in texts])


def self_critical_loss(logits: Tensor, labels: Tensor, reward: Tensor, sampling: Search) -> Tensor:
    """-(r - b) log p(sample), the mean over tokens.

    Args:
        logits: ``[N, V]``, for the N tokens of all ``labels [P, K, T]`` that are not IGNORED, in their order.
        reward: ``[P, K]``; b is the mean of the photo's other samples.
        sampling: the settings of the draw, which define p.
    """
    advantage = reward - (reward.sum(1, keepdim=True) - reward) / (reward.shape[1] - 1)
    is_label = labels != IGNORED
    scores = logits.float() / sampling.temperature
    if sampling.banned:
        scores = scores.index_fill(-1, torch.tensor(sorted(sampling.banned), device=scores.device), -torch.inf)
    logprobs = scores.log_softmax(-1).gather(1, labels[is_label][:, None])[:, 0]
    return -(advantage[..., None].expand(labels.shape)[is_label] * logprobs).mean()
