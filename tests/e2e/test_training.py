"""Training from end to end on pictures of a few numbers: it learns, a killed run goes on exactly, several processes agree."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triptych.checkpoints.parts import home, part_path

SCRIPT = Path(__file__).with_name("tiny_training.py")
LAUNCH = [
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
]


def start(run: Path, objective: str = "xe", attention: str = "soft", epochs: int = 12) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPT), str(run), objective, attention, str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    found: dict[int, float] = {}
    for record in log(run):
        if "loss" in record:
            assert record["step"] not in found, "a step was logged twice"
            found[record["step"]] = record["loss"]
    return found


def cider(run: Path) -> list[float]:
    return [record["CIDEr-D"] for record in log(run) if "CIDEr-D" in record]


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed)
    while not (killed / "log.jsonl").exists() or len(log(killed)) < 8:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = max(losses(killed))
    assert 0 < reached < 36
    finish(start(killed))
    finish(start(whole))
    assert losses(killed) == losses(whole)
    assert len(losses(whole)) == 36
    assert cider(killed) == cider(whole)
    assert max(cider(whole)) > 1  # it has learnt to name the colour: generated captions, not teacher-forced ones
    assert (whole / "best" / "model.safetensors").exists()
    assert (whole / "best" / "model.safetensors").read_bytes() == (killed / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("others", [{"epochs": 2}, {"epochs": 1, "attention": "hard"}])
def test_other_settings_do_not_go_on_with_a_run(tmp_path: Path, others: dict[str, Any]) -> None:
    finish(start(tmp_path / "run", epochs=1))
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    process = start(tmp_path / "run", **others)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "begun with other settings" in err
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def test_hard_attention_learns(tmp_path: Path) -> None:
    finish(start(tmp_path, attention="hard", epochs=16))
    assert max(cider(tmp_path)) > 1


def test_self_critical_training_goes_beyond_cross_entropy(tmp_path: Path) -> None:
    finish(start(tmp_path, "scst"))
    assert max(cider(tmp_path)) > max(cider(tmp_path / "warm"))


def test_two_processes_train_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", *LAUNCH, str(SCRIPT), str(tmp_path), "xe", "soft", "12"]
    finish(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert len(losses(tmp_path)) == 36  # each step once: one process writes the log
    assert max(cider(tmp_path)) > 1


@pytest.mark.parts
def test_the_command_trains_on_a_folder_of_photos(tmp_path: Path) -> None:
    """From photos and a CSV file to a checkpoint that captions, with a validation split held out by itself."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = ["file_name,caption"]
    for i in range(11):
        colour = ("red", "blue")[i % 2]
        Image.new("RGB", (20, 30), colour).save(photos / f"{i}.png")
        rows += [f"{i}.png,a {colour} square"]
    (photos / "metadata.csv").write_text("\n".join(rows))
    sizes = ["--hidden-dim=16", "--embed-dim=16", "--attention-dim=16", "--batch-size=3", "--epochs=1"]
    arguments = ["train", "sat", "--data", str(photos), "--run", str(tmp_path / "run"), *sizes, "--json"]
    part_path("efficientnet-lite2")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "parts").symlink_to(home() / "parts")
    environment = os.environ | {"TRIPTYCH_HOME": str(tmp_path / "home")}  # so that the features are computed here
    command = [sys.executable, "-m", "triptych"]
    trained = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    assert trained.returncode == 0, trained.stderr
    assert "every tenth photo (2) is held out" in trained.stderr
    assert json.loads(trained.stdout)["step"] == 3
    best = tmp_path / "run" / "best"
    used = subprocess.run(
        [*command, "caption", str(photos / "0.png"), "--model", str(best), "--json"], capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    assert set(json.loads((best / "vocabulary.json").read_text())["words"]) > {"a", "square"}
