"""BLIP-2's warm start before stage 2: the Q-Former learns words (``train.words``), which initialise the projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.data import Photo
from triptych.models import Blip2Model
from triptych.train.blip2.prompts import CaptionPrompt
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.crops import draw_cells
from triptych.train.features import Features
from triptych.train.loop import uses_bf16
from triptych.train.words import CaptionWords, PictureReader, WordObjective, initialise_projection, learn_words


def warm_start_qformer(
    run: Path,
    blip2: Blip2Model,
    pictures: tuple[Sequence[Photo], Features],
    prompt: CaptionPrompt,
    recipe: Blip2Recipe,
) -> None:
    """Train the Q-Former and initialise the projection; ``run``: the warm start's own folder. Does nothing if no word counts."""
    model, tokenizer = blip2.model, blip2.tokenizer
    assert model.lm is not None and model.projection is not None and tokenizer is not None
    device = model.qformer.query_tokens.device
    photos, features = pictures
    words = CaptionWords(photos, tokenizer)
    if not len(words.ids):
        return
    embeddings = model.lm.embed(words.ids.to(device)).float()

    def cells(rows: Sequence[int], seed: int) -> Tensor:
        return draw_cells(features, rows, model.vision_encoder.grid, recipe.batch.crops, seed)

    def read(image_features: Tensor) -> Tensor:
        instruction = prompt.instruction_for(len(image_features), device)
        return model.read_photos(model.image_keys_values(image_features), instruction).queries

    reader = PictureReader(nn.ModuleList([model.vision_norm, model.qformer]), read, model.config.qformer.dim)
    objective = WordObjective(reader, embeddings, words).to(device)
    loop = replace(recipe.loop, epochs=recipe.rates.word_epochs)
    learn_words(run, objective, words, cells, loop, {"model": asdict(model.config)}, recipe.rates.bert_rate)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, uses_bf16(recipe.loop)):
        queries = read(cells(range(min(64, len(photos))), 0).to(device)).float()
    initialise_projection(model.projection, objective.head.weight.detach(), queries, embeddings)
