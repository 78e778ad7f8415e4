"""The content of ``triptych info``, the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from msgspec import to_builtins

from triptych.checkpoints.config import CheckpointConfig
from triptych.engines.interface import PhotoSpec


@dataclass(frozen=True)
class Size:
    """``parameters``: of each part; ``frozen``: how many of them are frozen; ``memory_mb``: of the weights as they are run."""

    parameters: Mapping[str, int]
    frozen: int
    memory_mb: float


def describe_sat(config: CheckpointConfig[Any], photos: PhotoSpec, words: int, size: Size) -> dict[str, Any]:
    return {
        "system": "Show, Attend and Tell",
        "encoder": config.encoder.name,
        "grid": list(photos.grid),
        "image_size": photos.pixels.size,
        "vocabulary": words,
        **of_size(size),
        **of_checkpoint(config),
    }


def describe_flamingo(
    config: CheckpointConfig[Any], photos: PhotoSpec, gates: Sequence[tuple[float, float]], size: Size
) -> dict[str, Any]:
    """``gates``: see ``interface.FlamingoEngine.gates``."""
    every = config.model.every
    return {
        "system": "Flamingo",
        "encoder": config.encoder.name,
        "language_model": config.lm and config.lm.name,
        "grid": list(photos.grid),
        "image_size": photos.pixels.size,
        "latents": config.model.latents,
        "gates": {f"before block {(i + 1) * every}": (round(a, 3), round(b, 3)) for i, (a, b) in enumerate(gates)},
        "parameters": dict(size.parameters),
        **of_size(size),
        **of_checkpoint(config),
    }


def describe_blip2(config: CheckpointConfig[Any], photos: PhotoSpec, size: Size) -> dict[str, Any]:
    return {
        "system": "BLIP-2",
        "encoder": config.encoder.name,
        "language_model": config.lm and config.lm.name,
        "grid": list(photos.grid),
        "image_size": photos.pixels.size,
        "queries": config.model.qformer.queries,
        "parameters": dict(size.parameters),
        **of_size(size),
        **of_checkpoint(config),
    }


def of_size(size: Size) -> dict[str, Any]:
    return {
        "parameters_trained": sum(size.parameters.values()) - size.frozen,
        "parameters_frozen": size.frozen,
        "memory_mb": size.memory_mb,
    }


def of_checkpoint(config: CheckpointConfig[Any]) -> dict[str, Any]:
    return {"config": asdict(config.model), "search": to_builtins(config.search), "card": config.card.to_dict()}
