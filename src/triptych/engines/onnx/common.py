"""Shared by the engines of all systems: the image encoder, log-probabilities, and the reference engine, which computes maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from triptych.checkpoints.config import CheckpointConfig
from triptych.engines.choice import Precision
from triptych.engines.describe import Size
from triptych.engines.interface import Array, PhotoSpec
from triptych.engines.onnx.cache import read_manifest
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.text import Arrays, OnnxLanguageModel, TextCache
from triptych.evidence import Floats
from triptych.extras import importing, torch_installed
from triptych.io.pixels import PixelSpec
from triptych.logits import log_softmax
from triptych.nn import efficientnet


@dataclass(frozen=True)
class Opened:
    """A checkpoint and the folder of its graphs."""

    directory: Path
    config: CheckpointConfig[Any]
    folder: Path
    precision: Precision


class OnnxEncoder:
    """The frozen image encoder, and the reference engine for the maps of Flamingo and BLIP-2, which needs torch."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.encoder = open_session(opened.folder / "encoder.onnx")
        size = opened.config.encoder.image_size or efficientnet.DEFAULT_IMAGE_SIZE
        cells = -(-size // efficientnet.CELL)
        pixels = PixelSpec(size, efficientnet.MEAN, efficientnet.STD, reduced=True)
        self.photos = PhotoSpec(pixels, (cells, cells))

    @property
    def explains(self) -> bool:
        return torch_installed()

    @cached_property
    def reference(self) -> Any:
        """The same checkpoint on torch, loaded at its first use."""
        with importing("torch", "showing where this model looked"):
            import torch

        from triptych.models.registry import system_of

        system = system_of(self.opened.directory)
        return system.resolve("engine")(system.resolve("load")(self.opened.directory), torch.device("cpu"))

    def encode(self, pixel_values: Array) -> list[Floats]:
        """``[B, 3, H, W]`` -> the features of each photo."""
        return [self.encoder.run(None, {"pixel_values": pixels[None]})[0][0] for pixels in np.asarray(pixel_values)]

    def pooled(self, features: Sequence[Array]) -> Floats:
        """The mean of each photo's features ``[L, D]`` over the grid: ``[B, D]``."""
        return np.stack([np.asarray(photo).mean(0) for photo in features])

    def with_precision(self, info: dict[str, Any]) -> dict[str, Any]:
        """``info`` with the engine and the precision."""
        return info | {"engine": "ONNX Runtime", "precision": self.opened.precision}

    @cached_property
    def size(self) -> Size:
        """The sizes that were recorded when the graphs were built."""
        manifest = read_manifest(self.opened.folder)
        stored = sum(path.stat().st_size for path in self.opened.folder.glob("*.data"))
        return Size(manifest["parameters"], manifest["frozen"], round(stored / 2**20, 1))


def floats(array: Array) -> Floats:
    """A NumPy array in fp32."""
    return np.asarray(array, np.float32)


def score_texts(
    lm: OnnxLanguageModel,
    first: Floats,
    prompt: TextCache,
    texts: Sequence[Sequence[int]],
    context: Callable[[int], Arrays] | None = None,
) -> list[list[float]]:
    """The log-probability of each token of each text after one prompt, which is not changed.

    Args:
        first: ``[1, V]``, the logits after the prompt.
        context: the graph's further inputs for a number of tokens.
    """
    logprobs = []
    for text in texts:
        logits, read_on = first, np.array(text[:-1], np.int64)
        if len(read_on):
            cache, tokens = prompt.fork(np.zeros(1, np.int64)), np.arange(len(read_on))
            given = context(len(read_on)) if context else None
            logits = np.concatenate([first, lm.read(cache, 0, lm.embed(read_on), given, tokens)])
        logprobs.append(logprobs_of(logits, text))
    return logprobs


def logprobs_of(logits: Floats, ids: Sequence[int]) -> list[float]:
    """``logits [T, V]`` -> the log-probability of each of T ids."""
    chosen: list[float] = log_softmax(logits)[np.arange(len(ids)), list(ids)].tolist()
    return chosen
