"""The reference engines, in PyTorch, on the CPU or a GPU."""

from triptych.engines.torch.blip2 import TorchBlip2
from triptych.engines.torch.flamingo import TorchFlamingo
from triptych.engines.torch.sat import TorchSat

__all__ = ["TorchBlip2", "TorchFlamingo", "TorchSat"]
