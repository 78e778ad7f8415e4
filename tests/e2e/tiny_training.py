"""A training run small enough for a test: ``python tiny_training.py RUN OBJECTIVE ATTENTION EPOCHS``. Started by ``test_training.py``."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from triptych.data import Photo
from triptych.nn.cnn import ConvNet
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import WordVocabulary
from triptych.train.features import Features
from triptych.train.loop import LoopConfig
from triptych.train.sat import SatRecipe, train

COLOURS = ("red", "green", "blue")


class TinyNet(ConvNet):
    name, dim, image_size, grid = "tiny", 6, 8, (2, 2)

    def __init__(self) -> None:
        super().__init__([nn.Identity(), nn.Conv2d(3, 6, 1)], cut=1)


def data(photos: int, split: str, seed: int) -> tuple[list[Photo], Features]:
    """Photos whose four cells all show the colour that their captions name."""
    maps = np.random.default_rng(seed).normal(0, 0.1, (photos, 2, 3, 2, 2)).astype(np.float16)
    items = []
    for i in range(photos):
        maps[i, :, i % 3] += 1
        captions = (f"a {COLOURS[i % 3]} square", f"the picture is {COLOURS[i % 3]}")
        items.append(Photo(f"{split}-{i}", split, captions, {}, Path("none")))
    return items, Features(maps)


def main(run: Path, objective: str, attention: str, epochs: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train_data, val_data = data(24, "train", 0), data(6, "val", 1)
    words = WordVocabulary.build((c for p in train_data[0] for c in p.captions), min_count=1)
    config = ShowAttendTellConfig(len(words), 6, 16, 16, 16, attention=attention, dropout=0.1)
    model = ShowAttendTell(config, TinyNet())
    rate = 0.005 if objective == "scst" else 0.02
    loop = LoopConfig(
        epochs=epochs, batch_size=8, learning_rate=rate, patience=epochs, save_minutes=0, precision="fp32"
    )
    recipe = SatRecipe(objective, captions_per_photo=4, label_smoothing=0, beams=2, loop=loop)
    if objective == "scst":  # from a model that has learnt a little
        warm = LoopConfig(epochs=8, batch_size=8, learning_rate=0.02, patience=99, precision="fp32")
        train(
            run / "warm", model, words, train_data, val_data, SatRecipe("xe", captions_per_photo=4, beams=2, loop=warm)
        )
    print(train(run, model, words, train_data, val_data, recipe))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
