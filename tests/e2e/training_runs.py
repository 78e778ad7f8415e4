"""What the tests of training share: runs in this process and in others, and their logs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
CPU_ALONE = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
SECONDS = 300


def start(script: str, *arguments: object, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """A run of ``script`` in another process."""
    command = [sys.executable, *launcher, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CPU_ALONE)


def finish(process: "subprocess.Popen[str]") -> None:
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err


def kill_after(process: "subprocess.Popen[str]", run: Path, records: int) -> int:
    """Kill a run as soon as its log has so many records. Returns the last step in it."""
    while not (run / "log.jsonl").exists() or len((run / "log.jsonl").read_text().splitlines()) <= records:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    *whole, _ = (run / "log.jsonl").read_text().split("\n")
    return max(json.loads(line)["step"] for line in whole)


@contextmanager
def stopping_in_validation(trainer: Any, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop a run in the middle of its validation ``number``, within an epoch; cheaper than ``kill_after``."""
    figures, calls = trainer.figures, []

    def stop(self: object, photos: object) -> dict[str, float]:
        calls.append(photos)
        if len(calls) == number:
            raise KeyboardInterrupt
        return figures(self, photos)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer, "figures", stop)
        yield


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    found: dict[int, float] = {}
    for record in log(run):
        if "loss" in record:
            assert record["step"] not in found, "a step was logged twice"
            found[record["step"]] = record["loss"]
    return found


def best(run: Path, metric: str) -> float:
    return max(record[metric] for record in log(run) if metric in record)


def assert_same_run(one: Path, other: Path, steps: int) -> None:
    """The same losses and figures, and the same weights to the last bit."""
    assert log(one) == log(other) and len(losses(one)) == steps
    weights = [(run / "best" / "triptych.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
