"""Training within the tests' own process, and models that are loaded once."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from triptych import demo, tasks


@pytest.fixture(scope="module")
def load_once() -> Iterator[None]:
    """Each model is loaded once for all tests of a file, also by its commands."""
    load_cached = cache(tasks.load)

    def load(model: str = "sat", device: str | None = None, precision: str | None = None) -> object:
        return load_cached(model, device, precision)

    with pytest.MonkeyPatch.context() as patch:
        for module in (tasks, demo):
            patch.setattr(module, "load", load)
        yield


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """A process has one precision for all its runs, and tests have one thread for each run."""
    from accelerate.state import AcceleratorState

    threads = torch.get_num_threads()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
