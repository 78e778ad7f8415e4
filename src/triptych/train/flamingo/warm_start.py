"""Flamingo's warm start: the resampler learns words (``train.words``), which initialise the gated blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from triptych.data import Photo
from triptych.models import FlamingoModel
from triptych.train.crops import all_cells, draw_cells
from triptych.train.features import Features
from triptych.train.flamingo.recipe import FlamingoRecipe
from triptych.train.loop import uses_bf16
from triptych.train.words import (
    CaptionWords,
    PictureReader,
    WordObjective,
    caption_text,
    initialise_gated_blocks,
    learn_words,
)


def warm_start_resampler(
    run: Path, flamingo: FlamingoModel, pictures: tuple[Sequence[Photo], Features], recipe: FlamingoRecipe
) -> None:
    """Train the resampler and initialise the gated blocks; ``run``: the warm start's own folder. Does nothing if no word counts."""
    model, grid = flamingo.model, flamingo.model.vision_encoder.grid
    device = model.resampler.latents.device
    photos, features = pictures
    words = CaptionWords(photos, flamingo.tokenizer)
    if not len(words.ids):
        return

    def read(image_features: Tensor) -> Tensor:
        return model.resampler(image_features, torch.ones(len(image_features), dtype=torch.long, device=device))

    def cells(rows: Sequence[int], seed: int) -> Tensor:
        return draw_cells(features, rows, grid, recipe.crops, seed)

    embeddings = model.lm.project_in(model.lm.embedding.weight[words.ids])
    reader = PictureReader(model.resampler, read, model.config.visual_dim)
    objective = WordObjective(reader, embeddings, words).to(device)
    loop = replace(recipe.loop, epochs=recipe.rates.word_epochs)
    learn_words(run, objective, words, cells, loop, {"model": asdict(model.config)})
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, uses_bf16(recipe.loop)):
        tokens = read(all_cells(features, range(min(64, len(photos)))).to(device))
        text = caption_text(photos, flamingo.tokenizer).to(device)
        initialise_gated_blocks(model, objective.head.weight.detach(), tokens.float(), text)
