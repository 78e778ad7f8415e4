"""The trainer of Flamingo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from triptych.data.interleaved import Sequences
from triptych.errors import InputError
from triptych.models import FlamingoModel, in_bfloat16, save_flamingo
from triptych.models.frozen import ADDED
from triptych.systems.flamingo import Flamingo
from triptych.train.crops import draw_cells
from triptych.train.data import PhotoSet, TrainingData, caption_figures, validate_each
from triptych.train.features import JoinedFeatures
from triptych.train.flamingo.batches import FlamingoItems, SequenceEncoder, TaskMixture, padded
from triptych.train.flamingo.objective import FlamingoObjective
from triptych.train.flamingo.recipe import REWARDED, FlamingoRecipe
from triptych.train.flamingo.validation import (
    flamingo_caption_prompt,
    is_answered,
    validation_episodes,
    write_flamingo_captions,
)
from triptych.train.flamingo.warm_start import warm_start_resampler
from triptych.train.loop import uses_bf16
from triptych.train.self_critical import CaptionReward
from triptych.train.trainer import ParameterGroups


class FlamingoTrainer:
    """A ``train.trainer.Trainer``. The best state has the highest sum of two validation figures: CIDEr-D of captions without examples, and
    the share of correct answers to questions about two new names.

    A sequence is made for each photo of an epoch; its other pictures come from all data sets and the drawings.
    """

    metric = "score"

    def __init__(
        self, flamingo: FlamingoModel, data: TrainingData, recipe: FlamingoRecipe, drawings: PhotoSet | None = None
    ) -> None:
        """``drawings``: pictures with names, for training only. Raises InputError: a photo has no captions, or no sequence can be made."""
        data.check_captions()
        self.flamingo, self.data, self.recipe, self.drawings, self.mix = flamingo, data, recipe, drawings, data.mix
        self.drawn = list(drawings.photos) if drawings else []
        for drawing in self.drawn:
            if not drawing.captions:
                raise InputError(f"{drawing.name} has no captions: remove it from the data or give it some")
        shares = {task: share for task, share in recipe.shares.items() if share > 0 and (self.drawn or task != "name")}
        if not shares:
            raise InputError("names are learnt from drawings: give some with --drawings, or draw other tasks too")
        photos = data.photos
        self.encode = SequenceEncoder(flamingo.tokenizer, flamingo.model.config.image_id, recipe.max_tokens)
        self.tasks = TaskMixture(Sequences(photos, self.drawn, recipe.loop.seed, self.mix.draw), self.encode, shares)
        self.pictures = JoinedFeatures(data.features, *([drawings.features] if drawings else []))
        self.batch(range(min(recipe.loop.batch_size, len(photos))), 0)  # fails now if no sequence can be made
        reward_fn = None
        if REWARDED in shares:
            reward_fn = CaptionReward(photos, flamingo.tokenizer, recipe.sampling.bleu_weight)
        prompt = flamingo_caption_prompt(flamingo)
        self.objective = FlamingoObjective(flamingo.model, self.tasks.tasks, recipe, prompt, reward_fn)

    def identity(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "model": asdict(self.flamingo.model.config),
            "data": self.data.fingerprint(self.drawn),
            "shares": self.mix.shares,
        }

    def prepare(self, run: Path, new: bool) -> None:
        """The warm start; and the frozen language model in bfloat16 where autocast would convert it at every step."""
        recipe, flamingo = self.recipe, self.flamingo
        if new and recipe.rates.word_epochs:
            warm_start_resampler(run / "words", flamingo, ([*self.data.photos, *self.drawn], self.pictures), recipe)
        if uses_bf16(recipe.loop):
            in_bfloat16(flamingo.model.lm, flamingo.config.lm)

    def parameter_groups(self) -> ParameterGroups:
        return flamingo_parameter_groups(self.flamingo.model, self.recipe)

    def batch(self, rows: Sequence[int], seed: int) -> FlamingoItems:
        sequences, tasks = self.tasks(rows, seed)
        pictures = [picture for sequence in sequences for picture in sequence.pictures]
        grid = self.flamingo.model.vision_encoder.grid
        cells = draw_cells(self.pictures, pictures, grid, self.recipe.crops, seed)
        ids, labels, counts = padded(sequences, self.flamingo.end_id)
        return FlamingoItems(cells, counts, ids, labels, torch.tensor(tasks), torch.tensor(rows), seed)

    def validate(self) -> dict[str, float]:
        device = self.flamingo.model.resampler.latents.device
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, uses_bf16(self.recipe.loop)):
            figures = validate_each(self.data.validation, self.figures)
        gates = [abs(gate) for pair in self.flamingo.model.gates() for gate in pair]
        return figures | {"gates": sum(gates) / max(1, len(gates))}

    def figures(self, data: PhotoSet) -> dict[str, float]:
        flamingo, recipe = self.flamingo, self.recipe
        judged = data.photos[: recipe.validation.validation_photos]
        texts = write_flamingo_captions(flamingo, data.features, len(judged))
        figures = caption_figures(judged, texts)
        episodes = validation_episodes(data.photos, recipe.validation.validation_episodes, recipe.loop.seed)
        bound = (is_answered(flamingo.model, data.features, self.encode, flamingo.end_id, one) for one in episodes)
        figures["binding"] = sum(bound) / max(1, len(episodes))
        return figures | {"score": figures["CIDEr-D"] + figures["binding"]}

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        card = self.data.card(self.recipe, record, self.drawings)
        save_flamingo(directory, self.flamingo, card)


def flamingo_parameter_groups(model: Flamingo, recipe: FlamingoRecipe) -> ParameterGroups:
    """The gates with their own learning rate, and the rest; neither gates nor added tokens have weight decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gates = [p for name, p in named if name.endswith("_gate")]
    added = [p for name, p in named if name.startswith(ADDED)]
    rest = [p for name, p in named if not name.endswith("_gate") and not name.startswith(ADDED)]
    groups: ParameterGroups = [{"params": rest}]
    groups.append({"params": gates, "lr_scale": recipe.rates.gate_rate, "weight_decay": 0.0})
    return groups + ([{"params": added, "weight_decay": 0.0}] if added else [])
