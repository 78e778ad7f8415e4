"""How much memory a checkpoint needs in each width of its numbers, how much there is, and which width to load it in."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.language_models import open_language_model
from triptych.checkpoints.locate import load_config
from triptych.checkpoints.quantize import dequantized
from triptych.checkpoints.store import SafetensorsFile
from triptych.checkpoints.weight_files import open_folder, read_json
from triptych.errors import InputError
from triptych.models.frozen import language_model_path

WIDTHS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OVERHEAD, BESIDES = 1.15, 500_000_000  # of the weights while they are read; torch itself, and what a photo takes
GB = 1e9


def stored_parameters(directory: Path, config: CheckpointConfig[Any]) -> int:
    """Of the checkpoint and of a language model that it names; an embedded image encoder adds a hundredth of what torch itself takes."""
    count = sum(x.numel() for x in dequantized(SafetensorsFile(directory / config.weights)).layouts().values())
    if config.lm is not None and not config.lm.stored:
        path = language_model_path(config.lm.name, directory)
        count += sum(x.numel() for x in open_language_model(path).tensors.layouts().values())
    return count


def parameters_of(directory: Path) -> int:
    """Of a checkpoint, or of a folder of transformers' that has not been converted yet."""
    if "format" in read_json(directory / "config.json"):
        return stored_parameters(directory, load_config(directory))
    return sum(x.numel() for x in open_folder(directory).layouts().values() if x.is_floating_point())


def bytes_needed(parameters: int, dtype: torch.dtype) -> int:
    """At the peak of loading, which is more than what captions take afterwards."""
    return int(parameters * dtype.itemsize * OVERHEAD) + BESIDES


def bytes_available(device: torch.device) -> int | None:
    """Free memory of a GPU, else of this machine or of the container; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # "max" where the container has no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append(limit - used)
    return min(free, default=None)


def estimate(directory: Path, device: torch.device) -> dict[str, Any]:
    """What ``info --estimate`` prints: parameters, and gigabytes needed and available; no tensor is read.

    ``directory``: a checkpoint, or a folder of transformers'.
    """
    parameters = parameters_of(directory)
    available = bytes_available(device)
    needed = {name: round(bytes_needed(parameters, dtype) / GB, 2) for name, dtype in WIDTHS.items()}
    return {
        "parameters": parameters,
        "needed_gb": needed,
        "available_gb": None if available is None else round(available / GB, 2),
        "precision": fitting(parameters, available),
    }


def fitting(parameters: int, available: int | None) -> str | None:
    """fp32 where it fits, else bf16; None = neither does."""
    names = (
        name for name in ("fp32", "bf16") if available is None or bytes_needed(parameters, WIDTHS[name]) <= available
    )
    return next(names, None)


def choose_dtype(directory: Path, precision: str | None, device: torch.device) -> torch.dtype:
    """The dtype to load a checkpoint in: the ``precision`` that is asked for, else the widest of fp32 and bf16 that fits.

    Raises:
        InputError: there is not enough memory; the message has the numbers.
    """
    parameters, available = stored_parameters(directory, load_config(directory)), bytes_available(device)
    name = precision if precision in WIDTHS else fitting(parameters, available)
    if name is None or (available is not None and bytes_needed(parameters, WIDTHS[name]) > available):
        wanted = name or "bf16"
        needed = bytes_needed(parameters, WIDTHS[wanted]) / GB
        narrower = "; bf16 needs half of that" if wanted == "fp32" else ""
        raise InputError(
            f"{directory} needs {needed:.1f} GB of memory in {wanted}, and {(available or 0) / GB:.1f} GB are free{narrower}: "
            "free some, or use a machine or a GPU with more"
        )
    if precision is None and name != "fp32":
        print(f"triptych: loading in {name}, as fp32 does not fit the free memory", file=sys.stderr)
    return WIDTHS[name]
