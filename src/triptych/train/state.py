"""The saved state of a run, from which it resumes, and the log of its steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.errors import InputError, TriptychError
from triptych.train.averaging import WeightAverage


@dataclass
class Progress:
    """``best``: the best metric so far; ``best_record``: the record of that validation; ``since_best``: the number of validations since."""

    step: int = 0
    best: float = -math.inf
    since_best: int = 0
    best_record: dict[str, Any] = field(default_factory=dict)

    def judge(self, value: float) -> bool:
        """Whether a validation is the best so far; counts it."""
        better = value > self.best
        self.best, self.since_best = (value, 0) if better else (self.best, self.since_best + 1)
        return better


class TrainingState:
    """``state.pt`` of a run: the trained tensors, their average, the optimiser's state, and the progress."""

    def __init__(
        self, run: Path, objective: nn.Module, optimizer: Any, average: WeightAverage, identity: Mapping[str, Any]
    ) -> None:
        """``identity``: the run's settings, model and data, as plain values; see ``Trainer.identity``."""
        self.path, self.objective, self.optimizer, self.average = run / "state.pt", objective, optimizer, average
        self.identity = json.loads(json.dumps(identity))
        frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
        self.trained = set(objective.state_dict()) - frozen

    def load(self, device: torch.device) -> Progress:
        """Restore the saved state, if there is one. Raises InputError: the folder contains another run."""
        if not self.path.exists():
            return Progress()
        state = torch.load(self.path, map_location=device, weights_only=True)
        if state["identity"] != self.identity:
            raise InputError(
                f"{self.path.parent} was started with other settings{difference(state['identity'], self.identity)}: "
                "use those, or name another --run"
            )
        self.objective.load_state_dict(state["objective"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load(state["average"])
        return Progress(**state["progress"])

    def save(self, progress: Progress) -> None:
        """Write the state atomically. Raises TriptychError: the disk is full."""
        tensors = {name: x for name, x in self.objective.state_dict().items() if name in self.trained}
        state = {"identity": self.identity, "objective": tensors, "optimizer": self.optimizer.state_dict()}
        state["average"] = self.average.tensors
        beside = self.path.with_suffix(".tmp")
        try:
            torch.save(state | {"progress": asdict(progress)}, beside)
            beside.replace(self.path)
        except (OSError, RuntimeError) as error:
            beside.unlink(missing_ok=True)
            raise TriptychError(
                f"{self.path}: cannot save the training state ({error}); free some space and start the same command again"
            ) from error


def difference(saved: Any, given: Any, name: str = "") -> str:
    """The first setting in which two identities differ, for a message."""
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in [*given, *saved]:
            if saved.get(key) != given.get(key):
                return difference(saved.get(key), given.get(key), key)
    short = all(value is None or isinstance(value, int | float | str) for value in (saved, given)) and name != "data"
    return f" ({name} was {saved}, is {given})" if short else f" (another {name})" if name else ""


class Log:
    """Every step and validation, as JSON lines and for TensorBoard. A resumed run overwrites the steps after its last save."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.lines = run / "log.jsonl"
        if self.lines.exists():
            whole = [line for line in self.lines.read_text().splitlines(keepends=True) if line.endswith("\n")]
            beside = self.lines.with_suffix(".tmp")
            beside.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
            beside.replace(self.lines)
        self.events = SummaryWriter(str(run), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        with self.lines.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in ("step", "epoch") and isinstance(value, float):
                self.events.add_scalar(name, value, record["step"])
