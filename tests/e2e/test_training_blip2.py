"""Training of BLIP-2 from end to end on features of a few numbers: it learns, and a run that was stopped goes on exactly."""

import json
from pathlib import Path

import pytest
import torch
from tiny_blip2 import tiny_blip2
from tiny_blip2_training import data, main
from training_runs import assert_same_run, best, log, stopping_in_validation

from triptych.errors import InputError
from triptych.train.blip2 import start as start_blip2
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.blip2.trainer import Blip2Trainer
from triptych.train.data import TrainingData
from triptych.train.recipe import make_recipe


@pytest.mark.usefixtures("own_accelerator")
def test_stage_1_learns_to_retrieve(tmp_path: Path) -> None:
    """In 108 steps, with any seed, R@1 reaches 87 or more if most of the loss is contrast; chance is 25."""
    weights = {"itc": 20.0, "itm": 1.0, "itg": 1.0}
    main(tmp_path, 1, 12, weights, epoch_items=72, learning_rate=0.002, save_minutes=30)
    assert best(tmp_path, "R@1") > 60
    steps = [record for record in log(tmp_path) if "loss" in record]
    for term, share in (("itc", 0.9), ("itm", 0.95), ("itg", 0.85)):
        assert sum(step[term] for step in steps[-5:]) < share * sum(step[term] for step in steps[:5])


@pytest.mark.usefixtures("own_accelerator")
def test_self_critical_training_raises_the_reward(tmp_path: Path) -> None:
    main(tmp_path, 3, 2, {"scst": 1.0}, epoch_items=144)
    rewards = [record["reward"] for record in log(tmp_path) if "reward" in record]
    assert len(rewards) == 36
    assert sum(rewards[-9:]) > 1.5 * sum(rewards[:9])
    config = json.loads((tmp_path / "best" / "config.json").read_text())
    assert config["model"]["writer"] == "lm"  # whoever was trained to caption writes


def test_the_warm_start_is_for_a_projection_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def word_epochs(with_lm: bool, **weights: float) -> int:
        monkeypatch.setattr(start_blip2, "load_blip2", lambda name: tiny_blip2(with_lm))
        settings = {"stage": 2, "init": "one", "weights": weights or None, "captions_per_photo": 5}
        blip2, recipe = start_blip2.starting_model(make_recipe(Blip2Recipe, settings))
        assert blip2.model.lm is not None
        return recipe.rates.word_epochs

    monkeypatch.setattr(start_blip2, "find_checkpoint", lambda name: name)
    monkeypatch.setattr(start_blip2, "with_lm", lambda blip2, lm: tiny_blip2())
    assert word_epochs(with_lm=False) == 4
    assert word_epochs(with_lm=True) == 0
    assert word_epochs(with_lm=True, scst=1.0) == 0
    with pytest.raises(InputError, match="train its captions first"):
        word_epochs(with_lm=False, scst=1.0)


def test_terms_need_the_heads_that_they_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converted BLIP-2 with a language model alone has no heads for contrast."""
    blip2 = tiny_blip2()
    blip2.model.heads = None
    monkeypatch.setattr(start_blip2, "find_checkpoint", lambda name: name)
    monkeypatch.setattr(start_blip2, "load_blip2", lambda name: blip2)
    with pytest.raises(InputError, match="published has no heads for itc, itm: choose terms that it can learn"):
        start_blip2.starting_model(make_recipe(Blip2Recipe, {"stage": 2, "init": "published"}))
    learns = make_recipe(Blip2Recipe, {"stage": 2, "init": "published", "weights": {"caption": 1.0}})
    assert start_blip2.starting_model(learns)[0] is blip2


def test_photos_that_processes_cannot_share_evenly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    recipe = make_recipe(Blip2Recipe, {"batch_size": 8})
    with pytest.raises(InputError, match="8 photos a step are not the same number for each of 3 processes"):
        Blip2Trainer(tiny_blip2(with_lm=False), TrainingData([data(24, "train", 0)], [data(8, "val", 1)]), recipe)


@pytest.mark.usefixtures("own_accelerator")
@pytest.mark.parametrize("stage", [1, 3])
def test_a_stopped_run_goes_on_with_the_same_losses(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main(whole, stage, 3, epoch_items=16)
    with stopping_in_validation(Blip2Trainer, 2, monkeypatch):
        main(stopped, stage, 3, epoch_items=16)
    main(stopped, stage, 3, epoch_items=16)
    assert_same_run(stopped, whole, 6)
