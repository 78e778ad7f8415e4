"""The two objectives of Show, Attend and Tell.

Cross-entropy: SAT eq. 14, or with hard attention the bound of eq. 10 and its REINFORCE gradient. Self-critical: sampled captions
rewarded by CIDEr-D and BLEU (``train.self_critical``), perhaps guided (``guidance``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.generate import Guidance, Search, generate
from triptych.models import sat_search
from triptych.systems.show_attend_tell import HardAttentionLoss, ShowAttendTell, caption_loss, doubly_stochastic_penalty
from triptych.text.prompt import IGNORED
from triptych.text.vocabulary import EOS
from triptych.train.sat.batches import to_batch
from triptych.train.sat.recipe import SatLoss, SatRecipe
from triptych.train.self_critical import Reward, independent_seeds, self_critical_loss


def validation_search(recipe: SatRecipe) -> Search:
    """The search for captions in validation."""
    return sat_search(beams=recipe.validation.beams, length_penalty=recipe.validation.length_penalty)


class CrossEntropy(nn.Module):
    """Teacher forcing; ``hard_share`` of the steps of a model with hard attention draw cells."""

    def __init__(self, model: ShowAttendTell, loss: SatLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.hard_loss = HardAttentionLoss()

    def forward(self, maps: Tensor, input_ids: Tensor, labels: Tensor, seed: int) -> Tensor:
        """``maps [B, C, h, w]`` of the encoder's trunk, ``input_ids`` and ``labels`` ``[B, K, T]`` -> the loss."""
        generator = None
        if self.model.config.attention == "hard":
            draws = torch.Generator(maps.device).manual_seed(seed)
            # SAT section 4.1: expected attention in a share of the steps
            if torch.rand(1, generator=draws, device=maps.device).item() < self.loss.hard_share:
                generator = draws
        output = self.model(maps, input_ids, generator)
        if generator is not None:
            return self.hard_loss(output, labels)
        penalty = doubly_stochastic_penalty(output.alpha, labels != IGNORED, self.loss.penalty_reduction)
        # SAT eq. 14: L_d
        return caption_loss(output.logits, labels, self.loss.label_smoothing) + self.loss.penalty * penalty


class SelfCritical(nn.Module):
    """``train.self_critical`` over the model's samples, without dropout, so that it is on-policy.

    ``references``: ids of the captions of each training photo, with their end token.
    """

    def __init__(self, model: ShowAttendTell, recipe: SatRecipe, references: Sequence[Sequence[Sequence[int]]]) -> None:
        super().__init__()
        if model.config.attention == "hard":
            raise InputError(
                "self-critical training is for soft attention: hard attention has its own REINFORCE gradient"
            )
        self.model, self.reward = model, Reward(references, recipe.reward.bleu_weight)
        self.sampling = replace(
            validation_search(recipe),
            beams=1,
            n_best=recipe.captions.captions_per_photo,
            temperature=recipe.reward.temperature,
            max_new_tokens=recipe.captions.max_words,
        )

    def forward(self, maps: Tensor, rows: Sequence[int], seed: int, guidance: Guidance | None = None) -> Tensor:
        """``maps [B, C, h, w]`` of the training photos ``rows [B]``, perhaps with guidance of their words -> the loss."""
        samples = self.sampling.n_best
        self.model.eval()
        beams = generate(self.model, maps, self.sampling, independent_seeds(len(maps), seed), guidance)
        texts = [h.ids + ((EOS,) if h.finished else ()) for hypotheses in beams for h in hypotheses]
        reward = self.reward(texts, [row for row in rows for _ in range(samples)]).to(maps.device).view(-1, samples)
        input_ids, labels = (
            x.to(maps.device) for x in to_batch([texts[i : i + samples] for i in range(0, len(texts), samples)])
        )
        logits = self.model(maps, input_ids).logits  # [B, K, T, V]
        if guidance is not None:
            added = torch.zeros(len(maps), logits.shape[-1], device=logits.device)
            added[:, torch.from_numpy(guidance.tokens)] = torch.from_numpy(guidance.weights).to(added)
            logits = logits.float() + added[:, None, None]
        return self_critical_loss(logits[labels != IGNORED], labels, reward, self.sampling)
