"""Two processes: each prints its gradient through what both have gathered. Started by ``test_training_blip2.py``: RANK FILE."""

import json
import sys

import torch
import torch.distributed as dist

from triptych.train.blip2.objective import all_processes

if __name__ == "__main__":
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    own = torch.arange(6.0).view(3, 2) + 10 * rank
    own.requires_grad_()
    gathered = all_processes(own)
    weights = torch.arange(12.0).view(6, 2) * (rank + 1)
    (gathered * weights).sum().backward()
    print(json.dumps([gathered.tolist(), own.grad.tolist()]))
    dist.destroy_process_group()
