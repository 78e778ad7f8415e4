"""A Flamingo run small enough for a test."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_blip2_training import data
from tiny_flamingo import tiny_flamingo

from triptych.train.data import TrainingData
from triptych.train.flamingo.recipe import FlamingoRecipe
from triptych.train.flamingo.trainer import FlamingoTrainer
from triptych.train.loop import fit
from triptych.train.recipe import make_recipe
from triptych.train.trainer import train_bridges

SHARES = {"caption": 1.0, "question": 0.5, "binding": 0.5}


def main(run: Path, epochs: int, shares: dict[str, float], **options: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    flamingo = tiny_flamingo(scale=0.15)
    train_bridges(flamingo.model)
    loop = {"epochs": epochs, "batch_size": 8, "learning_rate": 0.01, "patience": epochs, "save_minutes": 0}
    settings = {"shares": shares, "cells": 0.7, "gate_rate": 3.0, "precision": "fp32", **loop, **options}
    recipe = make_recipe(FlamingoRecipe, settings)
    trainer = FlamingoTrainer(flamingo, TrainingData([data(24, "train", 0)], [data(8, "val", 1)]), recipe)
    print(fit(run, trainer, recipe.loop))
