"""Training of Flamingo from end to end on features of a few numbers: it learns, and a run that was stopped goes on exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_blip2 import TinyNet
from tiny_blip2_training import data
from tiny_flamingo import tiny_flamingo
from tiny_flamingo_training import SHARES, main
from training_runs import assert_same_run, log, losses, stopping_in_validation

from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.systems.flamingo import Flamingo
from triptych.text.tokenizer import TextTokenizer
from triptych.train.crops import all_cells
from triptych.train.data import TrainingData
from triptych.train.flamingo.recipe import FlamingoRecipe
from triptych.train.flamingo.trainer import FlamingoTrainer
from triptych.train.loop import fit
from triptych.train.recipe import make_recipe


@pytest.mark.usefixtures("own_accelerator")
def test_it_learns(tmp_path: Path) -> None:
    main(tmp_path, 4, SHARES, epoch_items=240)
    first, *_, last = losses(tmp_path).values()
    assert last < 0.8 * first


@pytest.mark.usefixtures("own_accelerator")
def test_self_critical_training_raises_the_reward(tmp_path: Path) -> None:
    main(tmp_path, 2, {"scst": 1.0}, epoch_items=240)
    rewards = [record["reward"] for record in log(tmp_path) if "reward" in record]
    assert len(rewards) == 60
    assert sum(rewards[-9:]) > 1.5 * sum(rewards[:9])


def test_each_row_knows_the_photo_it_is_made_around() -> None:
    settings = {"shares": {"caption": 0.5, "scst": 0.5}, "cells": 1.0, "window": 1.0, "mirror": False}
    photos = data(24, "train", 0)
    recipe = make_recipe(FlamingoRecipe, settings)
    trainer = FlamingoTrainer(tiny_flamingo(), TrainingData([photos], [data(8, "val", 1)]), recipe)
    batch = trainer.batch([5, 20, 3, 11], 7)
    assert batch.photos.tolist() == [5, 20, 3, 11] and batch.seed == 7 and set(batch.tasks.tolist()) == {0, 1}
    first = batch.counts.cumsum(0) - batch.counts
    cells = all_cells(photos.features, [5, 20, 3, 11])
    torch.testing.assert_close(batch.image_features[first].mean(1), cells.mean(1))  # in any order


class Unspaced(TextTokenizer):
    """No space before a word, so that words differ in their first bytes."""

    def encode(self, text: str, **options: bool) -> list[int]:
        return super().encode(text.lstrip(), **options)


@pytest.mark.usefixtures("own_accelerator")
def test_bfloat16_through_the_warm_start_of_a_model_with_narrow_embeddings(tmp_path: Path) -> None:
    """As OPT-350m: what enters the language model is projected first."""
    tiny = tiny_flamingo(scale=0.15)
    sizes = {"dim": 16, "embed_dim": 10, "layers": 4, "heads": 2, "ffn_dim": 24, "max_positions": 300}
    lm = Decoder(DecoderConfig(len(tiny.tokenizer), **sizes))
    tokenizer = Unspaced(tiny.tokenizer.tokenizer, tiny.tokenizer.specials, eos_ids=tiny.tokenizer.eos_ids)
    flamingo = replace(tiny, model=Flamingo(tiny.model.config, TinyNet(), lm), tokenizer=tokenizer)
    loop = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "precision": "bf16"}
    settings = {"shares": {"caption": 0.5, "scst": 0.5}, "word_epochs": 1, "validation_photos": 2, **loop}
    recipe = make_recipe(FlamingoRecipe, settings)
    trainer = FlamingoTrainer(flamingo, TrainingData([data(24, "train", 0)], [data(8, "val", 1)]), recipe)
    fit(tmp_path, trainer, recipe.loop)
    assert len(losses(tmp_path)) == 3 and len(losses(tmp_path / "words")) == 1
    assert all(gate for pair in flamingo.model.gates() for gate in pair)


@pytest.mark.usefixtures("own_accelerator")
def test_a_stopped_run_goes_on_with_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main(whole, 3, SHARES, epoch_items=16)
    with stopping_in_validation(FlamingoTrainer, 2, monkeypatch):
        main(stopped, 3, SHARES, epoch_items=16)
    main(stopped, 3, SHARES, epoch_items=16)
    assert_same_run(stopped, whole, 6)
