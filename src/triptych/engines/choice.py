"""Choosing the engine of a checkpoint: ONNX Runtime on a CPU, without importing torch; torch on a GPU and for all others."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triptych.errors import InputError
from triptych.extras import MissingExtraError, torch_installed

if TYPE_CHECKING:
    from triptych.engines.onnx.blip2 import OnnxBlip2
    from triptych.engines.onnx.flamingo import OnnxFlamingo
    from triptych.engines.onnx.sat import OnnxSat

Precision = Literal["fp32", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")


def open_onnx(directory: Path, precision: str | None) -> OnnxSat | OnnxFlamingo | OnnxBlip2 | None:
    """The checkpoint on ONNX Runtime; None if torch has to run it, which is reported in one line on stderr.

    Args:
        precision: of the weights; None = the fastest that keeps the texts (``onnx.opening.default_precision``).

    Raises:
        InputError: there is no such precision, or the files are damaged.
        TriptychError: a pretrained part could not be fetched, the graphs could not be written, or torch is needed but not installed.
    """
    chosen = None if precision is None else chosen_precision(precision)
    try:
        from triptych.engines.onnx.coverage import NotCoveredError
        from triptych.engines.onnx.opening import open_engine
        from triptych.engines.onnx.session import RuntimeFailedError
    except ImportError as error:
        fall_back(f"{error.name or 'onnxruntime'} is not installed: pip install {error.name or 'onnxruntime'}")
        return None
    try:
        return open_engine(directory, chosen)
    except NotCoveredError as error:
        fall_back(f"ONNX Runtime does not cover {error}")
        return None
    except RuntimeFailedError as error:
        fall_back(str(error))
        return None


def chosen_precision(name: str) -> Precision:
    """``name`` as a ``Precision``. Raises InputError: there is no such precision."""
    for known in PRECISIONS:
        if known == name:
            return known
    raise InputError(f"the precision is {name!r}, expected one of {', '.join(PRECISIONS)}")


def fall_back(reason: str) -> None:
    """Report that torch is used instead, and why. Raises MissingExtraError: torch is not installed."""
    if not torch_installed():
        raise MissingExtraError(f"{reason}; torch would run it: pip install 'triptych[torch]'")
    print(f"triptych: {reason}; torch is used instead, which is slower", file=sys.stderr)


def gpu_possible() -> bool:
    """Whether a driver of NVIDIA or AMD is present. Asking torch instead takes a second to import it."""
    if os.name == "nt":
        return shutil.which("nvidia-smi") is not None
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
