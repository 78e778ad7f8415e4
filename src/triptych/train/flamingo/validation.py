"""The validation figures of Flamingo's training, from cached features: captions without an example, and answers with new names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from triptych.data import Photo
from triptych.data.interleaved import HELD_OUT, Episode, classes, episode, made_up_names, noun_counts, only
from triptych.generate import generate
from triptych.models import FlamingoModel
from triptych.systems.flamingo import Flamingo, flamingo_prompt
from triptych.text.prompt import CAPTION, split_at_images
from triptych.train.crops import all_cells
from triptych.train.features import Features
from triptych.train.flamingo.batches import SequenceEncoder, padded
from triptych.train.flamingo.objective import token_logprobs


def flamingo_caption_prompt(flamingo: FlamingoModel) -> list[int]:
    """The ids of the prompt of a caption."""
    begin, after = split_at_images(CAPTION, 1)
    encode = flamingo.tokenizer.encode
    return [*encode(begin, begin=True), flamingo.model.config.image_id, *encode(after)]


def write_flamingo_captions(flamingo: FlamingoModel, features: Features, photos: int, batch: int = 25) -> list[str]:
    """Captions of the first ``photos`` photos, greedy, without an example."""
    model, tokenizer = flamingo.model, flamingo.tokenizer
    device = model.resampler.latents.device
    ids = flamingo_caption_prompt(flamingo)
    search = replace(flamingo.search, beams=1)
    texts = []
    for first in range(0, photos, batch):
        rows = range(first, min(first + batch, photos))
        numbers = torch.ones(len(rows), dtype=torch.long, device=device)
        tokens = model.resampler(all_cells(features, rows).to(device), numbers)
        prompt = flamingo_prompt([ids] * len(rows), tokens, [1] * len(rows), flamingo.end_id)
        written = generate(model, prompt, search, prompts=[ids] * len(rows))
        texts += [tokenizer.decode(hypotheses[0].ids).strip() for hypotheses in written]
    return texts


def validation_episodes(photos: Sequence[Photo], count: int, seed: int) -> list[Episode]:
    """Episodes with two made-up names for two classes that are not in training, three examples of each."""
    rng = random.Random(seed)
    nouns = {noun: places for noun, places in classes(photos, 2).items() if noun in HELD_OUT["val"]}
    mentions = [set(noun_counts(photo)) for photo in photos]
    pairs = [(a, b) for a in sorted(nouns) for b in sorted(nouns) if a < b]
    groups = [only(nouns[a], nouns[b], mentions, (a, b)) for a, b in pairs]
    usable = [group for group in groups if min(map(len, group)) >= 4]
    return [
        episode(rng, rng.choice(usable), made_up_names(rng, 2, held_out=True), 3) for _ in range(count if usable else 0)
    ]


def is_answered(model: Flamingo, features: Features, encode: SequenceEncoder, pad: int, task: Episode) -> bool:
    """Whether the right name of an episode is the most likely."""
    rows = [encode.scored(task.prompt, choice) for choice in task.choices]
    ids, labels, counts = padded(rows, pad)
    pictures = [picture for row in rows for picture in row.pictures]
    device = model.resampler.latents.device
    cells = all_cells(features, pictures).to(device)
    scores = token_logprobs(model, cells, counts.tolist(), ids.to(device), labels.to(device))
    return int(scores.sum(1).argmax()) == task.answer
