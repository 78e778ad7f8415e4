"""A training run small enough for a test: ``python tiny_training.py RUN OBJECTIVE ATTENTION EPOCHS``. Started by ``test_training.py``."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from triptych.data import Photo
from triptych.models import SatModel, sat_search
from triptych.nn.cnn import ConvNet
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import WordVocabulary
from triptych.train.data import PhotoSet, TrainingData
from triptych.train.features import StoredFeatures
from triptych.train.loop import fit
from triptych.train.recipe import make_recipe
from triptych.train.sat.recipe import SatRecipe
from triptych.train.sat.trainer import SatTrainer

COLOURS = ("red", "green", "blue")


class TinyNet(ConvNet):
    name, dim, image_size, grid = "tiny", 6, 8, (2, 2)

    def __init__(self) -> None:
        super().__init__([nn.Identity(), nn.Conv2d(3, 6, 1)], cut=1)


def data(photos: int, split: str, seed: int) -> PhotoSet:
    """Photos whose four cells all show the colour that their captions name."""
    maps = np.random.default_rng(seed).normal(0, 0.1, (photos, 2, 3, 2, 2)).astype(np.float16)
    items = []
    for i in range(photos):
        maps[i, :, i % 3] += 1
        captions = (f"a {COLOURS[i % 3]} square", f"the picture is {COLOURS[i % 3]}")
        items.append(Photo(f"{split}-{i}", split, captions, {}, Path("none")))
    return PhotoSet("colours", items, StoredFeatures(maps))


def tiny_sat(attention: str = "soft") -> SatModel:
    torch.manual_seed(0)
    words = WordVocabulary.build((c for p in data(24, "train", 0).photos for c in p.captions), min_count=1)
    config = ShowAttendTellConfig(len(words), 6, 16, 16, 16, attention=attention, dropout=0.1)  # type: ignore[arg-type]
    return SatModel.new(ShowAttendTell(config, TinyNet()), words, sat_search())


def train(run: Path, sat: SatModel, **settings: object) -> None:
    common = {"captions_per_photo": 4, "label_smoothing": 0, "beams": 2, "batch_size": 8, "precision": "fp32"}
    recipe = make_recipe(SatRecipe, common | settings)
    trainer = SatTrainer(sat, TrainingData([data(24, "train", 0)], [data(6, "val", 1)]), recipe)
    print(fit(run, trainer, recipe.loop))


def main(run: Path, objective: str, attention: str, epochs: int) -> None:
    torch.set_num_threads(1)
    sat = tiny_sat(attention)
    if objective == "scst":  # from a model that has learnt a little
        train(run / "warm", sat, epochs=8, learning_rate=0.02, patience=99, label_smoothing=0.1)
    rate = 0.005 if objective == "scst" else 0.02
    train(run, sat, objective=objective, epochs=epochs, learning_rate=rate, patience=epochs, save_minutes=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
