"""Training from end to end on pictures of a few numbers: it learns, and a killed run goes on exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_training import main
from training_runs import CPU_ALONE, TOGETHER, assert_same_run, best, kill_after, start

from triptych.checkpoints.parts import home, part_path

SCRIPT = "tiny_training.py"


@pytest.mark.usefixtures("own_accelerator")
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert 0 < kill_after(start(SCRIPT, killed, "xe", "soft", 12), killed, 8) < 36
    main(killed, "xe", "soft", 12)
    main(whole, "xe", "soft", 12)
    assert_same_run(killed, whole, 36)
    assert best(whole, "CIDEr-D") > 1  # it has learnt to name the colour: generated captions, not teacher-forced ones


@pytest.mark.usefixtures("own_accelerator")
def test_hard_attention_learns(tmp_path: Path) -> None:
    main(tmp_path, "xe", "hard", 16)
    assert best(tmp_path, "CIDEr-D") > 1


@pytest.mark.usefixtures("own_accelerator")
def test_self_critical_training_goes_beyond_cross_entropy(tmp_path: Path) -> None:
    main(tmp_path, "scst", "soft", 12)
    assert best(tmp_path, "CIDEr-D") > best(tmp_path / "warm", "CIDEr-D")


@pytest.mark.parts
def test_the_command_trains_on_a_folder_of_photos(tmp_path: Path) -> None:
    """From photos and a CSV file to a checkpoint that captions, with a validation split held out by itself; in two processes."""
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
    environment = CPU_ALONE | {"TRIPTYCH_HOME": str(tmp_path / "home")}  # so that the features are computed here
    launched = [sys.executable, *TOGETHER, "-m", "--", "triptych", *arguments]  # two processes
    trained = subprocess.run(launched, capture_output=True, text=True, env=environment)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.count("every tenth photo (2) is held out") == 1
    assert json.loads(trained.stdout)["step"] == 3
    best = tmp_path / "run" / "best"
    used = subprocess.run(
        [sys.executable, "-m", "triptych", "caption", str(photos / "0.png"), "--model", str(best), "--json"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert used.returncode == 0, used.stderr
    assert set(json.loads((best / "vocabulary.json").read_text())["words"]) > {"a", "square"}
