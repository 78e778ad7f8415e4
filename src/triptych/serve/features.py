"""Embeddings of texts and pictures for OpenAI's clients."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL.Image import Image

from triptych.tasks import Matches


def texts_of(items: Sequence[str | Image]) -> list[str]:
    return [item for item in items if isinstance(item, str)]


def embed(model: Matches, items: Sequence[str | Image]) -> list[list[float]]:
    """A vector of length 1 for each text (its features for contrast) and picture (the mean of its queries' features)."""
    texts = texts_of(items)
    pictures = [item for item in items if not isinstance(item, str)]
    of_texts = iter(model.itc_texts(texts)) if texts else iter(())
    of_pictures = iter(mean_features(model.itc_images(pictures))) if pictures else iter(())
    return [[float(x) for x in next(of_texts if isinstance(item, str) else of_pictures)] for item in items]


def mean_features(features: Any) -> Any:
    """``[B, Q, E]`` -> ``[B, E]`` of length 1."""
    mean = np.asarray(features).mean(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(1e-12)


def encoded(vector: list[float], form: Literal["float", "base64"]) -> list[float] | str:
    return vector if form == "float" else base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
