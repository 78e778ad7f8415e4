"""The convolutions of the image encoder EfficientNet-Lite2, from its published file or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from triptych.engines.onnx.weights import Weights
from triptych.evidence import Floats
from triptych.nn.efficientnet import BATCH_NORM_EPS, published_names


class Convolution(NamedTuple):
    weight: Floats  # [N, M / groups, k, k]
    bias: Floats


def published_convolutions(state: Mapping[str, Floats]) -> dict[str, Convolution]:
    """The convolutions of the published file by our names, with folded batch norms: see ``nn.cnn.fold_batch_norms``."""
    nodes = {}
    for conv, norm, name in published_names():
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + np.float32(BATCH_NORM_EPS))
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        nodes[name] = Convolution(state[f"{conv}.weight"] * scale[:, None, None, None], bias)
    return nodes


def stored_convolutions(weights: Weights, prefix: str, first: int = 0) -> dict[str, Convolution]:
    """The convolutions in a checkpoint, of the layers from ``first`` on."""
    names = (name for _, _, name in published_names() if int(name.split(".")[1]) >= first)
    return {
        name: Convolution(weights.array(f"{prefix}{name}.weight"), weights.array(f"{prefix}{name}.bias"))
        for name in names
    }
