"""``train --init`` of published models. BLIP-2's have no heads for contrast, and some no words in their Q-Former."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from test_blip2_transformers import Pair, generation, instruct, retrieval  # noqa: F401
from test_convert_flamingo import flamingo_state, language_model, lm_directory
from tiny_blip2 import byte_tokenizer
from tiny_openflamingo import saved

from triptych.convert.checkpoint import convert_checkpoint
from triptych.data import Photo
from triptych.errors import InputError
from triptych.models import load_flamingo, save_blip2
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.blip2.start import starting_model
from triptych.train.blip2.trainer import Blip2Trainer
from triptych.train.data import PhotoSet, TrainingData
from triptych.train.features import cached_features
from triptych.train.flamingo.recipe import FlamingoRecipe
from triptych.train.flamingo.trainer import FlamingoTrainer
from triptych.train.recipe import make_recipe
from triptych.train.trainer import train_bridges


def recipe_from(checkpoint: Path, **weights: float) -> Blip2Recipe:
    settings: dict[str, Any] = {"stage": 2, "init": str(checkpoint), "batch_size": 4, "beams": 1, "questions": 1.0}
    return make_recipe(Blip2Recipe, settings | {"weights": weights})


@pytest.mark.parametrize("name", ["generation", "instruct"])
def test_a_published_model_learns_captions_and_answers(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pair = request.getfixturevalue(name)
    checkpoint = tmp_path / "blip2"
    save_blip2(checkpoint, pair.ours.engine.blip2, pair.ours.engine.blip2.config.card)
    blip2, recipe = starting_model(recipe_from(checkpoint, caption=1.0, question=1.0))
    train_bridges(blip2.model)
    photos = []
    for i in range(4):
        Image.new("RGB", (12, 12), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        photos.append(Photo(str(i), "train", ("a dog on the grass", "one dog"), {}, tmp_path / f"{i}.png"))
    features = cached_features(photos, blip2.model.vision_encoder, tmp_path / "cache")
    photo_set = PhotoSet("red", photos, features)
    trainer = Blip2Trainer(blip2, TrainingData([photo_set], [photo_set]), recipe)
    optimizer = torch.optim.SGD([{"params": group["params"]} for group in trainer.parameter_groups()], 0.01)
    loss = trainer.objective(*trainer.batch(range(4), 0))
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and trainer.objective.last.keys() == {"caption", "question"}
    figures = trainer.figures(photo_set)
    assert figures.keys() >= {"CIDEr-D", "accuracy"} and "R@1" not in figures


def test_what_a_model_cannot_learn_is_refused(generation: Pair, retrieval: Pair) -> None:  # noqa: F811
    with pytest.raises(InputError, match="has no heads for itc"):
        starting_model(recipe_from(generation.target, itc=1.0))
    with pytest.raises(InputError, match="has lost the head that writes"):
        starting_model(make_recipe(Blip2Recipe, {"init": str(retrieval.target), "weights": {"itg": 1.0}}))


def test_an_open_flamingo_learns(tmp_path: Path) -> None:
    """Two steps lower the loss of its captions; its texts begin and end as published."""
    lm = language_model("llama")
    folder = lm_directory(tmp_path / "llama", lm, byte_tokenizer().tokenizer)
    source = saved(tmp_path / "checkpoint.pt", flamingo_state("llama", lm))
    convert_checkpoint(source, tmp_path / "flamingo", lm=folder)
    flamingo = load_flamingo(tmp_path / "flamingo")
    train_bridges(flamingo.model)
    photos = []
    for i in range(4):
        Image.new("RGB", (12, 12), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        photos.append(Photo(str(i), "train", ("a dog on the grass", "one dog"), {}, tmp_path / f"{i}.png"))
    photo_set = PhotoSet("red", photos, cached_features(photos, flamingo.model.vision_encoder, tmp_path / "cache"))
    settings = {"batch_size": 4, "shares": {"caption": 1.0}, "precision": "fp32", "validation_episodes": 0}
    recipe = make_recipe(FlamingoRecipe, settings)
    trainer = FlamingoTrainer(flamingo, TrainingData([photo_set], [photo_set]), recipe)
    optimizer = torch.optim.SGD([{"params": group["params"]} for group in trainer.parameter_groups()], 0.05)
    losses = []
    for _ in range(3):
        loss = trainer.objective(*trainer.batch(range(4), 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert trainer.figures(photo_set).keys() >= {"CIDEr-D"}
