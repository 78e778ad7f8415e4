"""The training loop: schedule, order of the data, accumulation, early stopping, the average of the weights, exact resume."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from triptych.errors import InputError, TriptychError
from triptych.train.averaging import WeightAverage
from triptych.train.loop import fit, learning_rate_factor
from triptych.train.recipe import LoopSettings, make_recipe
from triptych.train.sampling import DataMix, batch_rows, steps_per_epoch


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """A process has one precision for all its runs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Mean(nn.Module):
    """(w - x)^2, the mean over a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.slow = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w + self.slow - x).square().mean()


class NumberTrainer:
    """Learns the mean of some numbers; ``scores`` are what its validations find, one after the other."""

    metric = "score"

    def __init__(self, numbers: Sequence[float], scores: Sequence[float] = ()) -> None:
        self.objective, self.numbers, self.mix = Mean(), torch.tensor(numbers), DataMix((len(numbers),))
        self.scores = list(scores) or [0.0] * 99
        self.rows: list[list[int]] = []
        self.saved: list[tuple[int, float]] = []
        self.starts: list[bool] = []

    def identity(self) -> Mapping[str, Any]:
        return {"numbers": self.numbers.tolist()}

    def prepare(self, run: Path, new: bool) -> None:
        self.starts.append(new)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.objective.w]}, {"params": [self.objective.slow], "lr_scale": 0.1}]

    def batch(self, rows: Sequence[int], seed: int) -> tuple[Tensor]:
        self.rows.append(list(rows))
        return (self.numbers[list(rows)],)

    def validate(self) -> dict[str, float]:
        assert not self.objective.training
        return {"score": self.scores.pop(0)}

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        self.saved.append((record["epoch"], float(self.objective.w.detach())))


def settings(**given: Any) -> LoopSettings:
    return make_recipe(LoopSettings, {"precision": "fp32", "batch_size": 4, "epochs": 3, "weight_decay": 0, **given})


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_learning_rate_climbs_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and 0 < factors[99] < 0.001
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert learning_rate_factor(0, 10, 0.0) == 1
    assert factors[32] == pytest.approx((1 + math.cos(math.pi * 22 / 90)) / 2)


def test_the_optimizer_is_given_the_schedule_and_the_groups_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *_: (rates.append([g["lr"] for g in self.param_groups]), step(self))[1]
    )
    fit(tmp_path, NumberTrainer([1.0] * 8), settings(learning_rate=0.01, warmup=0.5))
    factors = [learning_rate_factor(i, 6, 0.5) for i in range(6)]
    assert [rate for rate, _ in rates] == pytest.approx([0.01 * factor for factor in factors])
    assert [slow / rate for rate, slow in rates] == pytest.approx([0.1] * 6)
    assert [r["learning_rate"] for r in log(tmp_path) if "loss" in r] == pytest.approx(
        [0.01 * factor for factor in factors]
    )


def test_an_epoch_reads_every_item_once_in_an_order_of_its_own() -> None:
    mix = DataMix((7, 5))
    epochs = [[row for i in range(3) for row in batch_rows(3 * epoch + i, mix, 4, seed=1)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(12)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert batch_rows(0, mix, 4, seed=1) != batch_rows(0, mix, 4, seed=2)
    assert steps_per_epoch(DataMix((11,)), 4) == 2  # the incomplete batch is left out
    assert len({*batch_rows(0, DataMix((11,)), 4, 0), *batch_rows(1, DataMix((11,)), 4, 0)}) == 8


def test_an_epoch_of_fewer_items_goes_on_where_the_last_one_stopped() -> None:
    mix = DataMix((8, 4), epoch_items=6)
    assert mix.counts() == [4, 2] and steps_per_epoch(mix, 3) == 2
    epochs = [[*batch_rows(2 * i, mix, 3, seed=1), *batch_rows(2 * i + 1, mix, 3, seed=1)] for i in range(2)]
    assert sorted(epochs[0] + epochs[1]) == list(range(12))


@pytest.mark.parametrize("shares", [(2.0, 1.0), (1.0, 9.0)])
def test_data_sets_are_mixed_by_share_and_each_is_read_evenly(shares: tuple[float, ...]) -> None:
    mix = DataMix((20, 10), shares)
    counts = mix.counts()
    assert sum(counts) == 30 and counts == [round(30 * share / sum(shares)) for share in shares]
    read: list[list[int]] = [[], []]
    for epoch in range(6):
        rows = [row for i in range(6) for row in batch_rows(6 * epoch + i, mix, 5, seed=3)]
        read[0] += [row for row in rows if row < 20]
        read[1] += [row for row in rows if row >= 20]
        assert [len(part) for part in read] == [count * (epoch + 1) for count in counts]
    for rows, size in zip(read, (20, 10), strict=True):
        times = [rows.count(row) for row in set(rows)]
        assert len(times) == min(size, len(rows)) and max(times) - min(times) <= 1
    first = batch_rows(0, mix, 30, seed=3)
    assert first != sorted(first)  # mixed within the epoch, not one set behind the other


def test_parts_of_a_batch_learn_what_the_batch_learns(tmp_path: Path) -> None:
    numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    weights = []
    for parts in (1, 2, 4):
        trainer = NumberTrainer(numbers)
        fit(tmp_path / str(parts), trainer, settings(accumulation=parts, learning_rate=0.05, clip=1e9))
        assert len(trainer.rows) == 6 * parts and all(len(rows) == 4 // parts for rows in trainer.rows)
        weights.append(float(trainer.objective.w.detach()))
    assert weights[1:] == pytest.approx(weights[:1] * 2, rel=1e-5)
    losses = [[r["loss"] for r in log(tmp_path / name) if "loss" in r] for name in "14"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_training_stops_when_validation_gets_no_better(tmp_path: Path) -> None:
    trainer = NumberTrainer([1.0] * 4, [1.0, 3.0, 2.0, 3.0, 9.0, 9.0])
    record = fit(tmp_path, trainer, settings(epochs=6, patience=2, learning_rate=0.01))
    assert [epoch for epoch, _ in trainer.saved] == [
        1,
        2,
    ]  # the fifth validation never comes: an equal one is no better
    assert record == {"epoch": 2, "step": 2, "score": 3.0} and trainer.scores == [9.0, 9.0]


def test_a_run_that_is_resumed_stays_stopped(tmp_path: Path) -> None:
    loop = settings(epochs=6, patience=1, learning_rate=0.01)
    fit(tmp_path, NumberTrainer([1.0] * 4, [3.0, 1.0]), loop)
    again = NumberTrainer([1.0] * 4)
    assert fit(tmp_path, again, loop)["score"] == 3.0
    assert not again.rows and again.starts == [False]


def test_the_average_of_the_weights_is_judged_and_kept(tmp_path: Path) -> None:
    trainer = NumberTrainer([4.0, 5.0, 6.0, 7.0], [1.0, 2.0])
    steps: list[float] = []
    trainer.batch = lambda rows, seed: (steps.append(float(trainer.objective.w.detach())), (trainer.numbers,))[1]  # type: ignore[assignment]
    fit(tmp_path, trainer, settings(epochs=2, learning_rate=0.5, average=0.9))
    own = [*steps[1:], float(trainer.objective.w.detach())]  # behind each step
    average, averages = 0.0, []
    for i, value in enumerate(own):
        decay = min(0.9, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * value
        averages.append(average)
    assert [w for _, w in trainer.saved] == pytest.approx(averages)
    assert own[-1] != pytest.approx(averages[-1])  # training goes on with its own weights


def test_an_average_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, parts = NumberTrainer([1.0, 5.0] * 4, [1.0, 2.0, 3.0]), NumberTrainer([1.0, 5.0] * 4, [1.0, 2.0, 3.0])
    loop = settings(learning_rate=0.1, average=0.5)
    fit(tmp_path / "whole", whole, loop)

    def killed() -> dict[str, float]:
        if len(parts.saved) == 2:
            raise KeyboardInterrupt
        return {"score": float(len(parts.saved))}

    parts.validate = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", parts, loop)
    again = NumberTrainer([1.0, 5.0] * 4, [3.0])
    fit(tmp_path / "parts", again, loop)
    assert again.saved == whole.saved[2:]


def test_no_average_costs_nothing() -> None:
    average = WeightAverage(nn.Linear(2, 2), 0.0)
    average.update(3)
    with average.applied():
        assert not average.tensors and not average.parameters


def test_another_run_is_not_resumed_and_the_difference_is_named(tmp_path: Path) -> None:
    fit(tmp_path, NumberTrainer([1.0] * 4), settings(epochs=1))
    with pytest.raises(InputError, match=r"started with other settings \(epochs was 1, is 2\)"):
        fit(tmp_path, NumberTrainer([1.0] * 4), settings(epochs=2))
    with pytest.raises(InputError, match=r"other settings \(another numbers\)"):
        fit(tmp_path, NumberTrainer([2.0] * 4), settings(epochs=1))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TriptychError, match="the loss became nan at step 0: try a lower --learning-rate"):
        fit(tmp_path, NumberTrainer([math.nan] * 4), settings())


def test_too_few_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 photos in batches of 4 are too few for 1 processes with 2 parts"):
        fit(tmp_path, NumberTrainer([1.0]), settings(accumulation=2))


def test_the_model_is_validated_after_so_many_items(tmp_path: Path) -> None:
    trainer = NumberTrainer([1.0] * 12)
    fit(tmp_path, trainer, settings(epoch_items=4))
    assert len(trainer.rows) == 3 and sorted(row for rows in trainer.rows for row in rows) == list(range(12))
    assert [r["epoch"] for r in log(tmp_path) if "epoch" in r] == [1, 2, 3]


def test_an_item_is_drawn_by_the_share_of_its_data_set() -> None:
    rng = random.Random(0)
    drawn = [DataMix((2, 100), (3.0, 1.0)).draw(rng) for _ in range(2000)]
    assert 0.7 < sum(row < 2 for row in drawn) / 2000 < 0.8 and {0, 1} < set(drawn) and max(drawn) == 101
