"""Our checkpoints as other projects' files: which format is written by what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from triptych.checkpoints.locate import load_config
from triptych.convert.export_hf import export_hf
from triptych.convert.export_lavis import export_lavis
from triptych.convert.export_openflamingo import export_openflamingo
from triptych.errors import InputError

EXPORTS: dict[str, Callable[[Path, Path], int]] = {
    "hf": export_hf,
    "lavis": export_lavis,
    "openflamingo": export_openflamingo,
}


def export_checkpoint(directory: Path, target: Path, form: str) -> int:
    """Write the checkpoint in ``directory`` as ``target``, a folder (hf) or a file; returns how many tensors it has.

    Raises:
        InputError: there is no such format, the format cannot hold the model, or ``target`` is there.
        TriptychError: the disk is full or not writable.
    """
    if form not in EXPORTS:
        raise InputError(f"unknown format {form!r}: expected {', '.join(EXPORTS)} or onnx")
    system, expected = load_config(directory).system, "flamingo" if form == "openflamingo" else "blip2"
    if system != expected:
        raise InputError(f"{directory} holds a {system} model, and --format {form} is for {expected} models")
    return EXPORTS[form](directory, target)
