"""Recipe of Flamingo: cross-entropy over interleaved sequences of several tasks (``data.interleaved``).

Each sequence counts as much as the others, by the mean over its learnt tokens times its task's weight. Only the resampler and the
gated blocks are trained. The task ``scst`` is no sequence: a photo's captions are sampled, and those better than the others become
likelier (``train.self_critical``).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.checkpoints.config import Card
from triptych.data import Photo
from triptych.data.interleaved import HELD_OUT, Episode, Sequences, classes, episode, made_up_names, noun_counts, only
from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.metrics.captions import score_captions
from triptych.models import FlamingoModel, in_bfloat16, save_flamingo
from triptych.systems.flamingo import Flamingo, FlamingoPrompt, flamingo_prompt
from triptych.text.prompt import CAPTION, IGNORED, split_at_images
from triptych.train.crops import cells_of, crop_cells
from triptych.train.features import Features
from triptych.train.flamingo.batches import REWARDED, Batch, Mixture, Rows, padded
from triptych.train.loop import LoopConfig, fit, uses_bf16
from triptych.train.self_critical import CaptionReward, sample_captions, self_critical_loss
from triptych.train.words import CaptionWords, WordObjective, caption_text, learn_words, speak_words

SHARES = {
    "caption": 0.3,
    "name": 0.08,
    "question": 0.12,
    "dialogue": 0.12,
    "pair": 0.08,
    "compare": 0.06,
    "binding": 0.24,
}
TASKS = (*SHARES, REWARDED)


@dataclass(frozen=True)
class FlamingoRecipe:
    """``shares``: how often each task is drawn; ``weights``: of its sequences in the loss, 1 unless told. ``gate_rate``: the learning
    rate of the gates as a multiple of the rest's: they begin shut. ``cells``, ``window``: see ``crop_cells``.
    ``word_epochs``: of the warm start (``train.words``) before; 0 = none, as when a run goes on from another.
    ``samples``, ``max_new_tokens``, ``temperature``, ``bleu_weight``: of the task ``scst``: captions drawn of each photo, their tokens at
    most with the end (one that has not ended by then lacks it in its reward), what they are drawn from, and the weight of the mean of
    BLEU-1 to 4 beside CIDEr-D in their reward.
    ``validation_photos``: captioned without an example; ``validation_episodes``: of two new names, three examples each."""

    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    weights: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int = 112
    mirror: bool = True
    cells: float = 0.5
    window: float = 0.7
    gate_rate: float = 10.0
    word_epochs: int = 6
    samples: int = 5
    max_new_tokens: int = 16
    temperature: float = 0.5
    bleu_weight: float = 1.0
    validation_photos: int = 200
    validation_episodes: int = 60
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if unknown := (set(self.shares) | set(self.weights)) - set(TASKS):
            raise InputError(f"unknown task {', '.join(sorted(unknown))}: choose {', '.join(TASKS)}")
        if not any(share > 0 for share in self.shares.values()):
            raise InputError("no task is drawn: give one a share above 0")
        if self.shares.get(REWARDED) and self.samples < 2:
            raise InputError("samples of a photo are compared with one another: samples must be 2 or more")


class FlamingoObjective(nn.Module):
    """-log p(text | what came before, pictures), over the learnt tokens of each row; ``last`` keeps each task's mean for the log."""

    def __init__(
        self,
        model: Flamingo,
        tasks: Sequence[str],
        recipe: FlamingoRecipe,
        prompt: Sequence[int] = (),
        reward_fn: CaptionReward | None = None,
    ) -> None:
        """``prompt``: the ids that ask for a photo's caption; ``reward_fn``: of sampled captions, where ``tasks`` sample any."""
        super().__init__()
        self.model, self.tasks, self.recipe, self.reward_fn = model, tasks, recipe, reward_fn
        self.weights = [recipe.weights.get(task, 1.0) for task in tasks]
        self.prompt: Tensor
        self.register_buffer("prompt", torch.tensor(prompt, dtype=torch.long), persistent=False)
        self.last: dict[str, float] = {}

    def forward(
        self,
        image_features: Tensor,
        counts: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        tasks: Tensor,
        photos: Tensor,
        seed: int,
    ) -> Tensor:
        losses = torch.zeros(len(tasks), device=image_features.device)
        sampled = torch.tensor([self.tasks[i] == REWARDED for i in tasks.tolist()], device=losses.device)
        of_sampled = sampled.repeat_interleave(counts)
        reward = {}
        if not sampled.all():
            rows = [x[~sampled] for x in (counts, input_ids, labels)]
            logprobs = token_logprobs(self.model, image_features[~of_sampled], rows[0].tolist(), *rows[1:])
            losses[~sampled] = -logprobs.sum(1) / (rows[2] != IGNORED).sum(1)
        if sampled.any():
            losses[sampled], reward["reward"] = self.reward_loss(
                image_features[of_sampled], photos[sampled].tolist(), seed
            )
        self.last = {self.tasks[i]: losses[tasks == i].mean().item() for i in set(tasks.tolist())} | reward
        weights = torch.tensor(self.weights, device=losses.device)[tasks]
        return (weights * losses).mean()  # Flamingo eq. 2: weighted sum over the data sets, here the tasks

    def reward_loss(self, image_features: Tensor, photos: Sequence[int], seed: int) -> tuple[Tensor, float]:
        """Of captions that the model draws of photos ``[P, L, Dv]``: the loss (``train.self_critical``) and the mean reward."""
        model, recipe, reward_fn, count = self.model, self.recipe, self.reward_fn, len(photos)
        assert reward_fn is not None
        device = image_features.device
        tokens = model.resampler(image_features, torch.ones(count, dtype=torch.long, device=device))
        prompt = self.prompt.expand(count, -1)
        sampling = Search(
            frozenset({reward_fn.end}),
            recipe.max_new_tokens,
            n_best=recipe.samples,
            temperature=recipe.temperature,
            banned=frozenset({model.config.image_id}),
        )
        asked = FlamingoPrompt(prompt, tokens.detach(), [1] * count)
        labels, reward = (x.to(device) for x in sample_captions(model, asked, reward_fn, photos, sampling, seed))
        rows = torch.arange(count, device=device).repeat_interleave(recipe.samples)
        flat = labels.flatten(0, 1)
        input_ids = torch.cat([prompt[rows], flat[:, :-1].clamp_min(0)], 1)
        hidden = model(input_ids, model.media(tokens, [1] * count).select(rows))[:, prompt.shape[1] - 1 :]
        logits = model.lm.logits(hidden[flat != IGNORED])
        return self_critical_loss(logits, labels, reward, sampling), reward.mean().item()


def token_logprobs(
    model: Flamingo, image_features: Tensor, counts: Sequence[int], input_ids: Tensor, labels: Tensor
) -> Tensor:
    """log p of each label ``[B, T]``, 0 where it does not count. Padding stands at the end, where nothing before it sees it."""
    numbers = torch.cat([torch.arange(1, count + 1) for count in counts]).to(input_ids.device)
    media = model.media(model.resampler(image_features, numbers), counts)
    told = labels != IGNORED
    logits = model.lm.logits(model(input_ids, media)[told]).float()
    # Flamingo eq. 1: likelihood of the text given the pictures before it
    logprobs = -F.cross_entropy(logits, labels[told], reduction="none")
    return torch.zeros(labels.shape, device=labels.device).masked_scatter(told, logprobs)


class Pictures:
    """Features of photos and drawings, one numbering for both."""

    def __init__(self, *parts: Features) -> None:
        self.parts = parts

    def cells(self, pictures: Sequence[int], mirrored: Sequence[int] | None = None) -> Tensor:
        """``[P, L, Dv]``; ``mirrored``: 1 = the mirror image."""
        found = []
        for picture, mirror in zip(pictures, mirrored or [0] * len(pictures), strict=True):
            for part in self.parts:
                if picture < len(part):
                    found.append(part[[picture], [mirror]])
                    break
                picture -= len(part)
        return cells_of(torch.cat(found))


def train(
    run: Path,
    flamingo: FlamingoModel,
    train_data: tuple[Sequence[Photo], Features],
    val_data: tuple[Sequence[Photo], Features],
    drawings: tuple[Sequence[Photo], Features] | None,
    recipe: FlamingoRecipe,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train in ``run``; ``run/best`` is the checkpoint with the best sum of CIDEr-D of captions without examples and of the share of
    two new names that were bound rightly, on the validation photos.

    ``drawings``: pictures with names, all for training. ``notes`` go into the checkpoint's card. Returns the record of the best
    validation.
    """
    photos, features = train_data
    val_photos, val_features = val_data
    drawn = list(drawings[0]) if drawings else []
    for photo in (*photos, *val_photos, *drawn):
        if not photo.captions:
            raise InputError(f"{photo.name} has no captions: remove it from the data or give it some")
    model, tokenizer = flamingo.model, flamingo.tokenizer
    shares = {task: share for task, share in recipe.shares.items() if share > 0 and (drawn or task != "name")}
    if not shares:
        raise InputError("names are learnt from drawings: give some with --drawings, or draw other tasks too")
    rows = Rows(tokenizer, model.config.image_id, recipe.max_tokens)
    mixture = Mixture(Sequences(photos, drawn, recipe.loop.seed), rows, shares)
    pictures = Pictures(features, *([drawings[1]] if drawings else []))
    grid, end = model.vision_encoder.grid, flamingo.end_id
    bf16 = uses_bf16(recipe.loop)

    def batch(chosen: Sequence[int], seed: int) -> Batch:
        made, tasks = mixture(chosen, seed)
        shown = [picture for row in made for picture in row.pictures]
        mirrored = torch.randint(
            2 if recipe.mirror else 1, (len(shown),), generator=torch.Generator().manual_seed(seed)
        )
        cells = crop_cells(pictures.cells(shown, mirrored.tolist()), grid, recipe.cells, recipe.window, seed)
        ids, labels, counts = padded(made, end)
        return Batch(cells, counts, ids, labels, torch.tensor(tasks), torch.tensor(chosen), seed)

    episodes = validation_episodes(val_photos, recipe.validation_episodes, recipe.loop.seed)
    judged = val_photos[: recipe.validation_photos]
    own = Pictures(val_features)

    def validate() -> dict[str, float]:
        device = model.resampler.latents.device
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, bf16):
            texts = captions(flamingo, own, len(judged))
            right = sum(bound_rightly(model, own, rows, end, found) for found in episodes)
        references = {photo.id: photo.captions for photo in judged}
        scores = score_captions(dict(zip(references, texts, strict=True)), references, meteor=False)
        metrics = {name: scores[name] or 0.0 for name in ("BLEU-4", "CIDEr-D")}
        metrics["binding"] = right / max(1, len(episodes))
        gates = [abs(gate) for pair in model.gates() for gate in pair]
        return metrics | {"score": metrics["CIDEr-D"] + metrics["binding"], "gates": sum(gates) / max(1, len(gates))}

    def save_best(record: dict[str, Any]) -> None:
        card = Card(recipe=asdict(recipe), validation=record, photos=len(photos), drawings=len(drawn), **(notes or {}))
        save_flamingo(run / "best", flamingo, card)

    data = hashlib.sha256(repr([(p.id, p.captions) for p in (*photos, *val_photos, *drawn)]).encode()).hexdigest()
    identity = {"recipe": asdict(recipe), "model": asdict(model.config), "data": data}
    run.mkdir(parents=True, exist_ok=True)
    batch(range(min(recipe.loop.batch_size, len(photos))), 0)  # says now if no sequence can be made of these captions
    if recipe.word_epochs and not (run / "state.pt").exists():
        words_first(run / "words", flamingo, [*photos, *drawn], pictures, recipe)
    if bf16:
        in_bfloat16(model.lm, flamingo.config.lm)
    reward_fn = CaptionReward(photos, tokenizer, recipe.bleu_weight) if REWARDED in shares else None
    objective = FlamingoObjective(model, mixture.tasks, recipe, caption_prompt(flamingo), reward_fn)
    groups = parameter_groups(model, recipe)
    return fit(run, objective, groups, len(photos), batch, validate, save_best, recipe.loop, identity, "score")


def words_first(
    run: Path, flamingo: FlamingoModel, photos: Sequence[Photo], pictures: Pictures, recipe: FlamingoRecipe
) -> None:
    """The warm start: the resampler learns words, then the gated blocks begin by saying them."""
    model, grid = flamingo.model, flamingo.model.vision_encoder.grid
    device = model.resampler.latents.device
    words = CaptionWords(photos, flamingo.tokenizer)
    if not len(words.ids):
        return  # no word tells some of the pictures from the others

    def see(image_features: Tensor) -> Tensor:
        return model.resampler(image_features, torch.ones(len(image_features), dtype=torch.long, device=device))

    def cells(rows: Sequence[int], seed: int) -> Tensor:
        mirrored = torch.randint(2 if recipe.mirror else 1, (len(rows),), generator=torch.Generator().manual_seed(seed))
        return crop_cells(pictures.cells(rows, mirrored.tolist()), grid, recipe.cells, recipe.window, seed)

    embeddings = model.lm.project_in(model.lm.embedding.weight[words.ids])
    objective = WordObjective(model.resampler, see, model.config.visual_dim, embeddings, words).to(device)
    loop = replace(recipe.loop, epochs=recipe.word_epochs)
    learn_words(run, objective, words, cells, loop, {"model": asdict(model.config)})
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, uses_bf16(recipe.loop)):
        tokens = see(pictures.cells(range(min(64, len(photos)))).to(device))
        text = caption_text(photos, flamingo.tokenizer).to(device)
        speak_words(model, objective.head.weight.detach(), tokens.float(), text)


def parameter_groups(model: Flamingo, recipe: FlamingoRecipe) -> list[dict[str, Any]]:
    """The gates at their own rate, without decay; the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gates = [p for name, p in named if name.endswith("_gate")]
    rest = [p for name, p in named if not name.endswith("_gate")]
    return [{"params": rest}, {"params": gates, "lr_scale": recipe.gate_rate, "weight_decay": 0.0}]


def caption_prompt(flamingo: FlamingoModel) -> list[int]:
    """The ids that ask for a photo's caption."""
    begin, after = split_at_images(CAPTION, 1)
    encode = flamingo.tokenizer.encode
    return [*encode(begin, begin=True), flamingo.model.config.image_id, *encode(after)]


def captions(flamingo: FlamingoModel, pictures: Pictures, photos: int, batch: int = 25) -> list[str]:
    """Captions of the first photos, greedy, without an example."""
    model, tokenizer = flamingo.model, flamingo.tokenizer
    device = model.resampler.latents.device
    ids = caption_prompt(flamingo)
    search = replace(flamingo.search, beams=1)
    texts = []
    for first in range(0, photos, batch):
        shown = range(first, min(first + batch, photos))
        numbers = torch.ones(len(shown), dtype=torch.long, device=device)
        tokens = model.resampler(pictures.cells(shown).to(device), numbers)
        prompt = flamingo_prompt([ids] * len(shown), tokens, [1] * len(shown), flamingo.end_id)
        texts += [tokenizer.decode(found[0].ids).strip() for found in generate(model, prompt, search)]
    return texts


def validation_episodes(photos: Sequence[Photo], count: int, seed: int) -> list[Episode]:
    """Two made-up names for two kinds of photos that are no classes in training, three examples of each."""
    rng = random.Random(seed)
    nouns = {noun: places for noun, places in classes(photos, 2).items() if noun in HELD_OUT["val"]}
    mentions = [set(noun_counts(photo)) for photo in photos]
    pairs = [(a, b) for a in sorted(nouns) for b in sorted(nouns) if a < b]
    groups = [only(nouns[a], nouns[b], mentions, (a, b)) for a, b in pairs]
    usable = [group for group in groups if min(map(len, group)) >= 4]
    return [
        episode(rng, rng.choice(usable), made_up_names(rng, 2, held_out=True), 3) for _ in range(count if usable else 0)
    ]


def bound_rightly(model: Flamingo, pictures: Pictures, rows: Rows, pad: int, found: Episode) -> bool:
    """Whether the right name of an episode is the likeliest."""
    asked = [rows.scored(found.prompt, choice) for choice in found.choices]
    ids, labels, counts = padded(asked, pad)
    shown = [picture for row in asked for picture in row.pictures]
    device = model.resampler.latents.device
    scores = token_logprobs(model, pictures.cells(shown).to(device), counts.tolist(), ids.to(device), labels.to(device))
    return int(scores.sum(1).argmax()) == found.answer
