"""The trainer of Show, Attend and Tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from triptych.generate import Guidance, Search, generate
from triptych.models import SatModel, save_sat
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import EOS, WordVocabulary
from triptych.train.crops import mirrored
from triptych.train.cross_fitting import ExpectedWords
from triptych.train.data import PhotoSet, TrainingData, caption_figures, validate_each
from triptych.train.features import Features
from triptych.train.sat.batches import encode_captions, to_batch
from triptych.train.sat.guidance import expected_words
from triptych.train.sat.objective import CrossEntropy, SelfCritical, validation_search
from triptych.train.sat.recipe import SatRecipe
from triptych.train.trainer import ParameterGroups


class SatTrainer:
    """A ``train.trainer.Trainer``; the best state has the highest CIDEr-D of generated validation captions."""

    metric = "CIDEr-D"
    expected: ExpectedWords | None = None

    def __init__(self, sat: SatModel, data: TrainingData, recipe: SatRecipe) -> None:
        """Raises InputError: a photo has no captions."""
        data.check_captions()
        self.sat, self.data, self.recipe, self.mix = sat, data, recipe, data.mix
        self.features = data.features
        captions = recipe.captions
        self.captions = [
            encode_captions(photo, sat.vocabulary, captions.captions_per_photo, captions.max_words)
            for photo in data.photos
        ]
        self.search = replace(validation_search(recipe), once=cache(sat.vocabulary.repetitions))
        self.objective: nn.Module = self.make_objective()

    def make_objective(self) -> CrossEntropy | SelfCritical:
        model, vocabulary = self.sat.model, self.sat.vocabulary
        if self.recipe.objective == "xe":
            return CrossEntropy(model, self.recipe.loss)
        references = [[[*vocabulary.encode(text), EOS] for text in photo.captions] for photo in self.data.photos]
        return SelfCritical(model, self.recipe, references)

    def identity(self) -> dict[str, Any]:
        model = self.sat.model
        return {
            "recipe": asdict(self.recipe),
            "model": asdict(model.config),
            "cut": model.encoder.cut,
            "data": self.data.fingerprint(),
            "shares": self.mix.shares,
        }

    def prepare(self, run: Path, new: bool) -> None:
        """The guidance of self-critical training."""
        if self.recipe.guidance:
            self.expected = expected_words(self.sat, self.data, run, self.recipe.guidance, new)

    def parameter_groups(self) -> ParameterGroups:
        """The decoder, and the encoder's trained layers with their own learning rate."""
        model = self.sat.model
        groups: ParameterGroups = [{"params": [p for p in model.decoder.parameters() if p.requires_grad]}]
        tail = [p for p in model.encoder.layers[model.encoder.cut :].parameters() if p.requires_grad]
        return [*groups, {"params": tail, "lr_scale": self.recipe.loss.tail_rate}] if tail else groups

    def batch(self, rows: Sequence[int], seed: int) -> tuple[Any, ...]:
        maps = self.features[rows, mirrored(len(rows), self.recipe.captions.mirror, seed)]
        if self.recipe.objective == "scst":
            return maps, rows, seed, self.expected and self.expected.of_training_photos(rows)
        return maps, *to_batch([self.captions[row] for row in rows]), seed

    def validate(self) -> dict[str, float]:
        return validate_each(self.data.validation, self.figures)

    def figures(self, photos: PhotoSet) -> dict[str, float]:
        judged = photos.photos[: self.recipe.validation.validation_photos]
        guidance = None
        if self.expected is not None:
            guidance = self.expected.of_validation_photos(photos, len(judged))
        texts = write_sat_captions(
            self.sat.model, photos.features, self.sat.vocabulary, self.search, len(judged), guidance
        )
        return caption_figures(judged, texts)

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        card = self.data.card(self.recipe, record)
        save_sat(directory, replace(self.sat, search=self.search), card)


def write_sat_captions(
    model: ShowAttendTell,
    features: Features,
    vocabulary: WordVocabulary,
    search: Search,
    photos: int,
    guidance: Guidance | None = None,
    batch: int = 32,
) -> list[str]:
    """Generated captions of the first ``photos`` photos. ``guidance``: of these."""
    texts = []
    device = next(model.parameters()).device
    for first in range(0, photos, batch):
        rows = range(first, min(first + batch, photos))
        own = guidance and guidance._replace(weights=guidance.weights[list(rows)])
        beams = generate(model, features[rows, [0] * len(rows)].to(device), search, guidance=own)
        texts += [vocabulary.decode(hypotheses[0].ids) for hypotheses in beams]
    return texts
