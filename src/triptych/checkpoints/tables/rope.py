"""Rotary positions as the configs of transformers describe them: theta, and how frequencies are slowed for longer texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError


class Rope(NamedTuple):
    """Fields of ``DecoderConfig``; ``max_positions`` is the length that the frequencies are made for, None = the config's own."""

    theta: float
    factors: tuple[float, ...] | None = None
    magnitude: float = 1.0
    max_positions: int | None = None


def read_rope(
    config: Mapping[str, Any], width: int, default_theta: float = 10000.0, kind: str = "full_attention"
) -> Rope:
    """A config's ``rope_parameters`` (of the layers of this ``kind``, if it distinguishes), or ``rope_theta`` and ``rope_scaling``.

    ``width``: components of a head that are rotated.

    Raises:
        InputError: frequencies are changed in a way that is not covered.
        KeyError, TypeError, ValueError: a field is missing or of the wrong kind.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get(kind) or rope
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or default_theta)
    name = rope.get("rope_type") or rope.get("type") or "default"
    if name not in RULES:
        raise InputError(f"rotary positions of the type {name!r} are not covered: there are {', '.join(RULES)}")
    length = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    known = {"max_position_embeddings": config["max_position_embeddings"], **rope}
    return RULES[name](known | {"original_max_position_embeddings": length}, theta, width)


def default(rope: Mapping[str, Any], theta: float, width: int) -> Rope:
    return Rope(theta)


def linear(rope: Mapping[str, Any], theta: float, width: int) -> Rope:
    return Rope(theta, (float(rope["factor"]),) * (width // 2))


def llama3(rope: Mapping[str, Any], theta: float, width: int) -> Rope:
    """Slows the long waves and blends into the short ones."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = rope["original_max_position_embeddings"] * frequencies(theta, width) / (2 * np.pi)
    short = ((turns - low) / (high - low)).clip(0, 1)  # 0: slowed by the whole factor, 1: left as it is
    return Rope(theta, tuple((1 / ((1 - short) / factor + short)).tolist()))


def yarn(rope: Mapping[str, Any], theta: float, width: int) -> Rope:
    """Peng et al. 2023, *YaRN*, sections 3.2 to 3.4: frequencies of few turns are slowed, and scores sharpened."""
    original = rope["original_max_position_embeddings"] or rope["max_position_embeddings"]
    factor = float(rope.get("factor") or rope["max_position_embeddings"] / original)

    def component(turns: float) -> float:
        """The frequency that makes so many turns within the original length."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = component(rope.get("beta_fast") or 32), component(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    slowed = ((np.arange(width // 2) - low) / max(high - low, 1e-3)).clip(0, 1)
    factors = tuple((1 / (slowed / factor + (1 - slowed))).tolist())
    magnitude = rope.get("attention_factor")
    if magnitude is None:
        parts = [rope.get(name) for name in ("mscale", "mscale_all_dim")]
        over, under = parts if all(parts) else (1.0, 0.0)
        magnitude = sharpening(factor, float(over or 0)) / sharpening(factor, float(under or 0))
    return Rope(theta, factors, float(magnitude), max(int(factor * original), rope["max_position_embeddings"]))


def sharpening(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def longrope(rope: Mapping[str, Any], theta: float, width: int) -> Rope:
    """Phi-3 (Ding et al. 2024, *LongRoPE*). Its frequencies change at the original length; here texts end there."""
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or rope["max_position_embeddings"] / original
    magnitude = rope.get("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Rope(theta, tuple(map(float, rope["short_factor"])), float(magnitude), original)


def frequencies(theta: float, width: int) -> NDArray[np.float64]:
    return np.asarray(theta ** -(np.arange(0, width, 2) / width), np.float64)


RULES = {"default": default, "linear": linear, "llama3": llama3, "yarn": yarn, "longrope": longrope, "su": longrope}
