"""Training of Flamingo from end to end on features of a few numbers: it learns, a killed run goes on exactly, processes agree."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from test_training import LAUNCH, finish, log, losses

SCRIPT = Path(__file__).with_name("tiny_flamingo_training.py")


def start(
    run: Path, epochs: int, launcher: tuple[str, ...] = (), shares: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    command = [sys.executable, *launcher, str(SCRIPT), str(run), str(epochs), *shares]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_it_learns(tmp_path: Path) -> None:
    finish(start(tmp_path, 40))
    first, *_, last = losses(tmp_path).values()
    assert last < 0.8 * first


def test_self_critical_training_raises_the_reward(tmp_path: Path) -> None:
    finish(start(tmp_path, 20, shares=("scst=1",)))
    rewards = [record["reward"] for record in log(tmp_path) if "reward" in record]
    assert len(rewards) == 60
    assert sum(rewards[-9:]) > 1.5 * sum(rewards[:9])


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed, 8)
    while not (killed / "log.jsonl").exists() or len(log(killed)) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < max(losses(killed)) < 24
    finish(start(killed, 8))
    finish(start(whole, 8))
    assert losses(killed) == losses(whole)
    assert len(losses(whole)) == 24
    weights = [(run / "best" / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]


def test_two_processes_train_together(tmp_path: Path) -> None:
    finish(start(tmp_path, 4, ("-m", *LAUNCH)))
    assert len(losses(tmp_path)) == 12  # each step once: one process writes the log
