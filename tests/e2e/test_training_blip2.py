"""Training of BLIP-2 from end to end on features of a few numbers: it learns, a killed run goes on exactly, processes agree."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_training import LAUNCH, finish, log, losses
from tiny_blip2 import tiny_blip2
from tiny_blip2_training import data

from triptych.errors import InputError
from triptych.train.blip2 import start as start_blip2
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.blip2.trainer import Blip2Trainer
from triptych.train.data import TrainingData
from triptych.train.recipe import make_recipe

SCRIPT = Path(__file__).with_name("tiny_blip2_training.py")


def start(run: Path, stage: int | str, epochs: int) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPT), str(run), str(stage), str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def best(run: Path, metric: str) -> float:
    return max(record[metric] for record in log(run) if metric in record)


def test_stage_1_learns_to_retrieve(tmp_path: Path) -> None:
    finish(start(tmp_path, 1, 50))
    # Two photos of each thing cannot be told apart: half of what is asked of R@1, all of R@5
    assert best(tmp_path, "text-to-image R@5") == 100
    assert best(tmp_path, "R@1") > 40
    first, *_, last = losses(tmp_path).values()
    assert last < 0.7 * first


def test_self_critical_training_raises_the_reward(tmp_path: Path) -> None:
    finish(start(tmp_path, "scst", 12))
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


@pytest.mark.parametrize("stage", [1, 3])
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path, stage: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed, stage, 4)
    while not (killed / "log.jsonl").exists() or len(log(killed)) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < max(losses(killed)) < 12
    finish(start(killed, stage, 4))
    finish(start(whole, stage, 4))
    assert losses(killed) == losses(whole)
    assert len(losses(whole)) == 12
    weights = [(run / "best" / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]


def test_two_processes_train_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", *LAUNCH, str(SCRIPT), str(tmp_path), "1", "50"]
    finish(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert len(losses(tmp_path)) == 150  # each step once: one process writes the log
    assert best(tmp_path, "text-to-image R@5") == 100
