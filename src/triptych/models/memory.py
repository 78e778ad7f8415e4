"""How much memory a checkpoint needs in each width of its numbers, how much there is, and which width to load it in."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.hub import language_model_path
from triptych.checkpoints.language_models import open_language_model
from triptych.checkpoints.locate import load_config
from triptych.checkpoints.quantize import dequantized
from triptych.checkpoints.store import SafetensorsFile, TensorStore
from triptych.checkpoints.weight_files import open_folder, read_json
from triptych.errors import InputError

WIDTHS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
LANGUAGE_LAYER = re.compile(  # of ours, and of folders of transformers; not the word embeddings
    r"(model\.)*(lm|language_model|layers|lm_head)\.(?!.*(embed|shared|wte))"
)
RUNTIME = 320_000_000  # torch and the package, and what one photo and its text take
GB = 1e9


class StoredWeights(NamedTuple):
    """What of a model's files decides how much memory it takes.

    parameters: numbers of the whole model. outside: those of a language model that the checkpoint names, which is read in fp32 first.
    language: those of a language model within that can be 8-bit integers (``frozen.with_int8_layers``); the rest is bf16 then.
    largest: bytes of the largest tensor as it is stored; while it is cast to another dtype, both are there. dtype: of that tensor.
    """

    parameters: int
    outside: int
    language: int
    largest: int
    dtype: torch.dtype


def stored_weights(directory: Path, config: CheckpointConfig[Any]) -> StoredWeights:
    """Of a checkpoint and of a language model that it names; an embedded image encoder adds a hundredth of what torch itself takes."""
    own = count_weights(dequantized(SafetensorsFile(directory / config.weights)))
    if config.lm is None or config.lm.stored:
        return own
    outside = count_weights(open_language_model(language_model_path(config.lm.name, directory)).tensors).parameters
    return own._replace(parameters=own.parameters + outside, outside=outside)


def count_weights(tensors: TensorStore) -> StoredWeights:
    floats = {name: layout for name, layout in tensors.layouts().items() if layout.is_floating_point()}
    largest = max(floats.values(), key=lambda layout: layout.nbytes, default=torch.empty(0))
    language = sum(x.numel() for name, x in floats.items() if x.ndim == 2 and LANGUAGE_LAYER.match(name))
    return StoredWeights(sum(x.numel() for x in floats.values()), 0, language, largest.nbytes, largest.dtype)


def weights_in(directory: Path) -> StoredWeights:
    """Of a checkpoint, or of a folder of transformers' that has not been converted yet."""
    if "format" in read_json(directory / "config.json"):
        return stored_weights(directory, load_config(directory))
    return count_weights(open_folder(directory))


def bytes_needed(weights: StoredWeights, dtype: torch.dtype) -> int:
    """At the peak of loading, which one caption does not exceed by much."""
    cast = 0 if dtype == weights.dtype else weights.largest
    whole = weights.parameters * dtype.itemsize
    if dtype == torch.int8:
        whole = weights.parameters * torch.bfloat16.itemsize - weights.language
    return max(whole + cast, weights.outside * torch.float32.itemsize) + RUNTIME


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
    weights, available = weights_in(directory), bytes_available(device)
    widths = {name: dtype for name, dtype in WIDTHS.items() if dtype != torch.int8 or weights.language}
    needed = {name: round(bytes_needed(weights, dtype) / GB, 2) for name, dtype in widths.items()}
    return {
        "parameters": weights.parameters,
        "needed_gb": needed,
        "available_gb": None if available is None else round(available / GB, 2),
        "precision": fitting(weights, available),
    }


def fitting(weights: StoredWeights, available: int | None) -> str | None:
    """fp32 where it fits, else bf16; None = neither does."""
    names = (name for name in ("fp32", "bf16") if available is None or bytes_needed(weights, WIDTHS[name]) <= available)
    return next(names, None)


def choose_dtype(directory: Path, precision: str | None, device: torch.device) -> torch.dtype:
    """The dtype to load a checkpoint in: the ``precision`` that is asked for, else the widest of fp32 and bf16 that fits.

    int8 and int4 are 8-bit integers where the checkpoint holds its language model, else as if none was asked for.

    Raises:
        InputError: there is not enough memory; the message has the numbers.
    """
    weights, available = stored_weights(directory, load_config(directory)), bytes_available(device)
    if precision in ("int8", "int4"):
        precision = "int8" if weights.language else None
    name = precision if precision in WIDTHS else fitting(weights, available)
    if name is None or (available is not None and bytes_needed(weights, WIDTHS[name]) > available):
        wanted = name or "bf16"
        needed = bytes_needed(weights, WIDTHS[wanted]) / GB
        narrower = "; bf16 needs about half of that" if wanted == "fp32" else ""
        raise InputError(
            f"{directory} needs {needed:.1f} GB of memory in {wanted}, and {(available or 0) / GB:.1f} GB are free{narrower}: "
            "free some, or use a machine or a GPU with more"
        )
    if precision is None and name != "fp32":
        print(f"triptych: loading in {name}, as fp32 does not fit the free memory", file=sys.stderr)
    return WIDTHS[name]
