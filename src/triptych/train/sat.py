"""Recipe of Show, Attend and Tell: cross-entropy (soft or hard attention), then self-critical training.

Two objectives over one model. ``xe``: SAT eq. 14, or with hard attention the bound of eq. 10 with its REINFORCE gradient.
``scst``: samples of each photo, rewarded by CIDEr-D and BLEU against the mean of the photo's other samples (``train.self_critical``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from triptych.checkpoints.config import Card
from triptych.data import Photo
from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.metrics.captions import score_captions
from triptych.models import SatModel, sat_search, save_sat
from triptych.systems.show_attend_tell import HardAttentionLoss, ShowAttendTell, caption_loss, doubly_stochastic_penalty
from triptych.text.prompt import IGNORED
from triptych.text.vocabulary import BOS, EOS, PAD, WordVocabulary
from triptych.train.features import Features
from triptych.train.loop import LoopConfig, fit
from triptych.train.self_critical import Reward, independent_seeds, self_critical_loss


@dataclass(frozen=True)
class SatRecipe:
    """``tail_rate``: learning rate of the encoder's trained layers, as a share of the decoder's. ``hard_share``: the share of batches in
    which hard attention draws its cells; the others use the expectation (the paper: half). ``temperature``: of the policy that
    self-critical training samples from and improves; at 1 the samples of a smoothed model are too far from what a search finds.
    ``bleu_weight``: of the mean of BLEU-1 to 4 beside CIDEr-D in its reward."""

    objective: str = "xe"  # xe or scst
    captions_per_photo: int = 5
    max_words: int = 18
    label_smoothing: float = 0.1
    penalty: float = 1.0
    penalty_reduction: Literal["sum", "mean"] = "mean"
    tail_rate: float = 0.05
    hard_share: float = 0.5
    mirror: bool = True
    temperature: float = 0.5
    bleu_weight: float = 2.0
    validation_photos: int = 500
    beams: int = 5
    length_penalty: float = 1.0
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.objective not in ("xe", "scst"):
            raise InputError(f"unknown objective {self.objective!r}: choose xe or scst")
        if self.objective == "scst" and self.captions_per_photo < 2:
            raise InputError(
                "self-critical training compares the samples of a photo: captions_per_photo must be 2 or more"
            )

    @property
    def search(self) -> Search:
        """How captions are made when they are judged."""
        return sat_search(beams=self.beams, length_penalty=self.length_penalty)


class CrossEntropy(nn.Module):
    def __init__(self, model: ShowAttendTell, recipe: SatRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.hard_loss = HardAttentionLoss()

    def forward(self, maps: Tensor, input_ids: Tensor, labels: Tensor, seed: int) -> Tensor:
        generator = None
        if self.model.config.attention == "hard":
            draws = torch.Generator(maps.device).manual_seed(seed)
            if torch.rand(1, generator=draws, device=maps.device).item() < self.recipe.hard_share:
                generator = draws
        output = self.model(maps, input_ids, generator)
        if generator is not None:
            return self.hard_loss(output, labels)
        penalty = doubly_stochastic_penalty(output.alpha, labels != IGNORED, self.recipe.penalty_reduction)
        return caption_loss(output.logits, labels, self.recipe.label_smoothing) + self.recipe.penalty * penalty


class SelfCritical(nn.Module):
    """``train.self_critical`` over the model's samples. Without dropout: on-policy.

    ``references``: ids of the captions of each training photo, the end token included.
    """

    def __init__(self, model: ShowAttendTell, recipe: SatRecipe, references: Sequence[Sequence[Sequence[int]]]) -> None:
        super().__init__()
        if model.config.attention == "hard":
            raise InputError(
                "self-critical training is for soft attention: hard attention has its own REINFORCE gradient"
            )
        self.model, self.recipe, self.reward = model, recipe, Reward(references, recipe.bleu_weight)

    def forward(self, maps: Tensor, rows: Sequence[int], seed: int) -> Tensor:
        samples = self.recipe.captions_per_photo
        sampling = replace(
            self.recipe.search,
            beams=1,
            n_best=samples,
            temperature=self.recipe.temperature,
            max_new_tokens=self.recipe.max_words,
        )
        self.model.eval()
        found = generate(self.model, maps, sampling, independent_seeds(len(maps), seed))
        texts = [h.ids + ((EOS,) if h.finished else ()) for hypotheses in found for h in hypotheses]
        reward = self.reward(texts, [row for row in rows for _ in range(samples)]).to(maps.device).view(-1, samples)
        input_ids, labels = (
            x.to(maps.device) for x in to_batch([texts[i : i + samples] for i in range(0, len(texts), samples)])
        )
        return self_critical_loss(self.model(maps, input_ids).logits[labels != IGNORED], labels, reward, sampling)


def to_batch(captions: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Ids ``[B][K][words]`` (the end token included) -> ``input_ids``, ``labels`` [B, K, T]: shifted by one, padded."""
    length = max(len(ids) for row in captions for ids in row)
    input_ids = torch.full((len(captions), len(captions[0]), max(length, 1)), PAD)
    labels = torch.full_like(input_ids, IGNORED)
    for b, row in enumerate(captions):
        for k, ids in enumerate(row):
            input_ids[b, k, : len(ids)] = torch.tensor([BOS, *ids[:-1]][: len(ids)])
            labels[b, k, : len(ids)] = torch.tensor(ids)
    return input_ids, labels


def encode_captions(photo: Photo, vocabulary: WordVocabulary, recipe: SatRecipe) -> list[list[int]]:
    """Exactly ``captions_per_photo`` captions as ids with the end token, cut at ``max_words``; repeated where there are fewer."""
    encoded = [[*vocabulary.encode(caption), EOS][: recipe.max_words] for caption in photo.captions]
    return [encoded[k % len(encoded)] for k in range(recipe.captions_per_photo)]


def captions_of(
    model: ShowAttendTell, features: Features, vocabulary: WordVocabulary, search: Search, photos: int, batch: int = 32
) -> list[str]:
    """Generated captions of the first ``photos`` photos."""
    texts = []
    device = next(model.parameters()).device
    for first in range(0, photos, batch):
        rows = range(first, min(first + batch, photos))
        found = generate(model, features[rows, [0] * len(rows)].to(device), search)
        texts += [vocabulary.decode(hypotheses[0].ids) for hypotheses in found]
    return texts


def train(
    run: Path,
    model: ShowAttendTell,
    vocabulary: WordVocabulary,
    train_data: tuple[Sequence[Photo], Features],
    val_data: tuple[Sequence[Photo], Features],
    recipe: SatRecipe,
    notes: Mapping[str, Any] | None = None,
    whole_encoder: bool = False,
) -> dict[str, Any]:
    """Train in ``run``; ``run/best`` is the checkpoint with the best generated CIDEr-D on the validation photos.

    ``notes`` go into the checkpoint's card; ``whole_encoder``: the checkpoint keeps the frozen layers too. Returns the record of the
    best validation. Photos without captions are an error: there is nothing to learn from them.
    """
    photos, features = train_data
    val_photos, val_features = val_data[0][: recipe.validation_photos], val_data[1]
    for photo in (*photos, *val_photos):
        if not photo.captions:
            raise InputError(f"{photo.name} has no captions: remove it from the data or give it some")
    encoded = [encode_captions(photo, vocabulary, recipe) for photo in photos]
    references = {photo.id: photo.captions for photo in val_photos}

    objective: CrossEntropy | SelfCritical
    if recipe.objective == "scst":
        corpus = [[[*vocabulary.encode(caption), EOS] for caption in photo.captions] for photo in photos]
        objective = SelfCritical(model, recipe, corpus)
    else:
        objective = CrossEntropy(model, recipe)

    def batch(rows: Sequence[int], seed: int) -> tuple[Any, ...]:
        mirrored = torch.randint(2 if recipe.mirror else 1, (len(rows),), generator=torch.Generator().manual_seed(seed))
        maps = features[rows, mirrored.tolist()]
        if recipe.objective == "scst":
            return maps, rows, seed
        return maps, *to_batch([encoded[row] for row in rows]), seed

    def validate() -> dict[str, float]:
        texts = captions_of(model, val_features, vocabulary, recipe.search, len(val_photos))
        scores = score_captions(dict(zip(references, texts, strict=True)), references, meteor=False)
        return {name: value for name, value in scores.items() if value is not None}

    def save_best(record: dict[str, Any]) -> None:
        card = Card(recipe=asdict(recipe), validation=record, photos=len(photos), **(notes or {}))
        save_sat(run / "best", SatModel.new(model, vocabulary, recipe.search, whole_encoder=whole_encoder), card)

    decoder = [p for p in model.decoder.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": decoder}]
    tail = [p for p in model.encoder.layers[model.encoder.cut :].parameters() if p.requires_grad]
    if tail:
        groups.append({"params": tail, "lr_scale": recipe.tail_rate})
    data = hashlib.sha256(repr([(p.id, p.captions) for p in (*photos, *val_photos)]).encode()).hexdigest()
    identity = {"recipe": asdict(recipe), "model": asdict(model.config), "cut": model.encoder.cut, "data": data}
    run.mkdir(parents=True, exist_ok=True)
    return fit(run, objective, groups, len(photos), batch, validate, save_best, recipe.loop, identity)
