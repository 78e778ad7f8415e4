"""A BLIP-2 run small enough for a test: ``python tiny_blip2_training.py RUN STAGE EPOCHS``; STAGE may be ``scst``.

Started by ``test_training_blip2.py``.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_blip2 import tiny_blip2

from triptych.data import Photo
from triptych.train.blip2.objective import Blip2Recipe, train
from triptych.train.features import Features
from triptych.train.loop import LoopConfig

THINGS = ("dog", "horse", "cat", "bird")


def data(photos: int, split: str, seed: int) -> tuple[list[Photo], Features]:
    """Photos whose nine cells all show the thing that their captions name."""
    maps = np.random.default_rng(seed).normal(0, 0.1, (photos, 2, 5, 3, 3)).astype(np.float16)
    items = []
    for i in range(photos):
        maps[i, :, i % 4] += 1
        thing = THINGS[i % 4]
        captions = (f"a {thing} is on the grass", f"one {thing} is running on the grass")
        items.append(Photo(f"{split}-{i}", split, captions, {}, Path("none")))
    return items, Features(maps)


def main(run: Path, stage: int, epochs: int, weights: dict[str, float] | None = None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blip2 = tiny_blip2(with_lm=stage > 1, scale=0.15)
    for name, parameter in blip2.model.named_parameters():
        parameter.requires_grad_(not name.startswith(("vision_encoder.", "lm.")))
    loop = LoopConfig(
        epochs=epochs, batch_size=8, learning_rate=0.003, patience=epochs, save_minutes=0, precision="fp32"
    )
    recipe = Blip2Recipe(stage, weights, cells=0.7, bert_rate=1.0, questions=1.0, pairs=0.5, beams=1, loop=loop)
    print(train(run, blip2, data(24, "train", 0), data(8, "val", 1), recipe))


if __name__ == "__main__":
    if sys.argv[2] == "scst":
        main(Path(sys.argv[1]), 3, int(sys.argv[3]), {"scst": 1.0})
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
