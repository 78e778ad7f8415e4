"""Two processes train together: each system once, in one launch."""

import json
from pathlib import Path

import pytest
import torch
from training_runs import TOGETHER, best, finish, losses, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs."""
    folder = tmp_path_factory.mktemp("together")
    finish(start("train_together.py", folder, launcher=TOGETHER))
    return folder


@pytest.mark.parametrize(("system", "steps"), [("sat", 36), ("blip2", 36), ("flamingo", 12)])
def test_one_process_writes_the_log(folder: Path, system: str, steps: int) -> None:
    assert len(losses(folder / system)) == steps  # each once


def test_they_learn(folder: Path) -> None:
    assert best(folder / "sat", "CIDEr-D") > 1
    for system in ("blip2", "flamingo"):
        first, *_, last = losses(folder / system).values()
        assert last < 0.9 * first


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_reach_the_process_that_made_the_features(folder: Path, rank: int) -> None:
    """The gradient of a part is the sum of what both processes ask of it."""
    gathered, gradient = json.loads((folder / f"gradients-{rank}.json").read_text())
    own = torch.arange(6.0).view(3, 2)
    assert gathered == torch.cat([own, own + 10]).tolist()
    expected = 3 * torch.arange(12.0).view(6, 2)  # once by the first process, twice by the second
    assert gradient == expected[3 * rank : 3 * rank + 3].tolist()
