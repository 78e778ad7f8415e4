"""Training within the tests' own process."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """A process has one precision for all its runs, and tests have one thread for each run."""
    from accelerate.state import AcceleratorState

    threads = torch.get_num_threads()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
