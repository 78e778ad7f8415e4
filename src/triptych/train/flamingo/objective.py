"""Flamingo's objective: cross-entropy over interleaved sequences of several tasks (``data.interleaved``).

The loss of a sequence is the mean over its labels times its task's weight, so that long and short ones count equally. Only the
resampler and the gated blocks are trained. The task ``scst`` has no sequence: captions are sampled and rewarded
(``train.self_critical``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.generate import Search
from triptych.systems.flamingo import Flamingo, FlamingoPrompt
from triptych.text.prompt import IGNORED
from triptych.train.flamingo.batches import FlamingoItems
from triptych.train.flamingo.recipe import REWARDED, FlamingoRecipe
from triptych.train.self_critical import CaptionReward, sample_captions, self_critical_loss


class FlamingoObjective(nn.Module):
    """-log p(text | earlier text, pictures), the mean over the labels of each row; ``last``: the mean of each task, for the log."""

    def __init__(
        self,
        model: Flamingo,
        tasks: Sequence[str],
        recipe: FlamingoRecipe,
        prompt: Sequence[int] = (),
        reward_fn: CaptionReward | None = None,
    ) -> None:
        """``prompt``: the ids of the prompt of a caption; ``reward_fn``: for the task ``scst``."""
        super().__init__()
        self.model, self.tasks, self.recipe, self.reward_fn = model, tasks, recipe, reward_fn
        self.weights = [recipe.weights.get(task, 1.0) for task in tasks]
        self.prompt: Tensor
        self.register_buffer("prompt", torch.tensor(prompt, dtype=torch.long), persistent=False)
        self.last: dict[str, float] = {}

    def forward(self, *items: Any) -> Tensor:
        """``items``: the fields of ``FlamingoItems``; the weighted mean loss of the rows."""
        batch = FlamingoItems(*items)
        losses = torch.zeros(len(batch.tasks), device=batch.image_features.device)
        sampled = torch.tensor([self.tasks[i] == REWARDED for i in batch.tasks.tolist()], device=losses.device)
        of_sampled = sampled.repeat_interleave(batch.counts)
        reward = {}
        if not sampled.all():
            counts, input_ids, labels = (x[~sampled] for x in (batch.counts, batch.input_ids, batch.labels))
            image_features = batch.image_features[~of_sampled]
            logprobs = token_logprobs(self.model, image_features, counts.tolist(), input_ids, labels)
            losses[~sampled] = -logprobs.sum(1) / (labels != IGNORED).sum(1)
        if sampled.any():
            photos = batch.photos[sampled].tolist()
            losses[sampled], reward["reward"] = self.reward_loss(batch.image_features[of_sampled], photos, batch.seed)
        self.last = {self.tasks[i]: losses[batch.tasks == i].mean().item() for i in set(batch.tasks.tolist())} | reward
        weights = torch.tensor(self.weights, device=losses.device)[batch.tasks]
        return (weights * losses).mean()  # Flamingo eq. 2: weighted sum over the data sets, here the tasks

    def reward_loss(self, image_features: Tensor, photos: Sequence[int], seed: int) -> tuple[Tensor, float]:
        """The self-critical loss of sampled captions of photos ``[P, L, Dv]``, and their mean reward; ``photos``: their numbers."""
        model, recipe, reward_fn, count = self.model, self.recipe, self.reward_fn, len(photos)
        assert reward_fn is not None
        device = image_features.device
        tokens = model.resampler(image_features, torch.ones(count, dtype=torch.long, device=device))
        prompt = self.prompt.expand(count, -1)
        sampling = Search(
            frozenset({reward_fn.end}),
            recipe.sampling.max_new_tokens,
            n_best=recipe.sampling.samples,
            temperature=recipe.sampling.temperature,
            banned=frozenset({model.config.image_id}),
        )
        start = FlamingoPrompt(prompt, tokens.detach(), [1] * count)
        labels, reward = (x.to(device) for x in sample_captions(model, start, reward_fn, photos, sampling, seed))
        rows = torch.arange(count, device=device).repeat_interleave(recipe.sampling.samples)
        flat = labels.flatten(0, 1)
        input_ids = torch.cat([prompt[rows], flat[:, :-1].clamp_min(0)], 1)
        hidden = model(input_ids, model.media(tokens, [1] * count).select(rows))[:, prompt.shape[1] - 1 :]
        logits = model.lm.logits(hidden[flat != IGNORED])
        return self_critical_loss(logits, labels, reward, sampling), reward.mean().item()


def token_logprobs(
    model: Flamingo, image_features: Tensor, counts: Sequence[int], input_ids: Tensor, labels: Tensor
) -> Tensor:
    """log p of each label, ``[B, T]``; 0 where it is IGNORED. Rows are padded on the right, so that no token attends to padding.

    ``image_features [P, L, Dv]`` of all rows in order, ``counts``: pictures of each row, ``input_ids`` and ``labels`` ``[B, T]``.
    """
    numbers = torch.cat([torch.arange(1, count + 1) for count in counts]).to(input_ids.device)
    media = model.media(model.resampler(image_features, numbers), counts)
    is_label = labels != IGNORED
    logits = model.lm.logits(model(input_ids, media)[is_label]).float()
    # Flamingo eq. 1: likelihood of the text given the pictures before it
    logprobs = -F.cross_entropy(logits, labels[is_label], reduction="none")
    return torch.zeros(labels.shape, device=labels.device).masked_scatter(is_label, logprobs)
