"""A BLIP-2 run small enough for a test."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_blip2 import tiny_blip2

from triptych.data import Photo
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.blip2.trainer import Blip2Trainer
from triptych.train.data import PhotoSet, TrainingData
from triptych.train.features import StoredFeatures
from triptych.train.loop import fit
from triptych.train.recipe import make_recipe
from triptych.train.trainer import train_bridges

THINGS = ("dog", "horse", "cat", "bird")


def data(photos: int, split: str, seed: int) -> PhotoSet:
    """Photos whose nine cells all show the thing that their captions name."""
    maps = np.random.default_rng(seed).normal(0, 0.1, (photos, 2, 5, 3, 3)).astype(np.float16)
    items = []
    for i in range(photos):
        maps[i, :, i % 4] += 1
        thing = THINGS[i % 4]
        captions = (f"a {thing} is on the grass", f"one {thing} is running on the grass")
        items.append(Photo(f"{split}-{i}", split, captions, {}, Path("none")))
    return PhotoSet("things", items, StoredFeatures(maps))


def main(run: Path, stage: int, epochs: int, weights: dict[str, float] | None = None, **settings: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blip2 = tiny_blip2(with_lm=stage > 1, scale=0.15)
    train_bridges(blip2.model)
    loop = {"epochs": epochs, "batch_size": 8, "learning_rate": 0.003, "weight_decay": 1e-4, "patience": epochs}
    shares = {"cells": 0.7, "bert_rate": 1.0, "questions": 1.0, "pairs": 0.5, "beams": 1}
    loop |= {"save_minutes": 0, "precision": "fp32"}
    recipe = make_recipe(Blip2Recipe, {"stage": stage, "weights": weights, **shares, **loop, **settings})
    trainer = Blip2Trainer(blip2, TrainingData([data(24, "train", 0)], [data(len(THINGS), "val", 1)]), recipe)
    print(fit(run, trainer, recipe.loop))
