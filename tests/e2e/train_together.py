"""Runs of all systems in several processes, and gradients through what they gather. Started by ``test_training_together.py``: FOLDER."""

import json
import sys
from pathlib import Path

import tiny_blip2_training
import tiny_flamingo_training
import tiny_training
import torch
import torch.distributed as dist

from triptych.train.blip2.objective import all_processes


def gradients() -> list[object]:
    """What the processes have gathered, and this one's gradient through it, weighed in its own way."""
    own = torch.arange(6.0).view(3, 2) + 10 * dist.get_rank()
    own.requires_grad_()
    gathered = all_processes(own)
    weights = torch.arange(12.0).view(6, 2) * (dist.get_rank() + 1)
    (gathered * weights).sum().backward()
    assert own.grad is not None
    return [gathered.tolist(), own.grad.tolist()]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tiny_training.main(folder / "sat", "xe", "soft", 12)
    tiny_blip2_training.main(folder / "blip2", 1, 2, epoch_items=144)
    tiny_flamingo_training.main(folder / "flamingo", 4, tiny_flamingo_training.SHARES)
    (folder / f"gradients-{dist.get_rank()}.json").write_text(json.dumps(gradients()))
    dist.destroy_process_group()
