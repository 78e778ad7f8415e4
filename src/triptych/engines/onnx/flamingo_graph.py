"""Flamingo's graphs: the Perceiver Resampler, the pictures' keys and values, and the language model with gated blocks.

Shapes (legend in ``nn/attention.py``): P pictures, J gated blocks, H heads, d width of a head, L = N * R visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych.engines.choice import Precision
from triptych.engines.onnx.graph import INT64, Graph
from triptych.engines.onnx.language import LanguageGraph
from triptych.engines.onnx.matrix import Matrix, at_least_8_bits, at_precision, dense, scaled, stack_rows
from triptych.engines.onnx.weights import Weights
from triptych.systems.configs import FlamingoConfig

EPS = 1e-5  # of layer norms, torch's


def layer_norm(graph: Graph, x: str, weights: Weights, name: str) -> str:
    return graph.layer_norm(x, weights.array(f"{name}.weight"), weights.array(f"{name}.bias"), EPS)


def resampler_graph(config: FlamingoConfig, weights: Weights) -> Graph:
    """``features [P, L, Dv]`` -> ``visual_tokens [P, R, D]``; in fp32, because it runs only once for each picture."""
    graph, dim, latents = Graph("resampler"), config.visual_dim, config.latents
    features = graph.input("features", ["P", "L", config.image_dim])
    media = features
    if config.dim:
        media = layer_norm(graph, features, weights, "resampler.enter.0")
        entered = graph.multiply(media, dense(weights.matrix("resampler.enter.1.weight")))
        media = graph.add("Add", entered, graph.weight(weights.array("resampler.enter.1.bias")))
    pictures = graph.add("Slice", graph.add("Shape", features), graph.ints(0), graph.ints(1))
    shape = graph.add("Concat", pictures, graph.ints(latents, dim), axis=0)
    x = graph.add("Expand", graph.weight(weights.array("resampler.latents")), shape)
    for layer in range(config.resampler_layers):
        prefix = f"resampler.layers.{layer}"
        queries = layer_norm(graph, x, weights, f"{prefix}.latents_norm")
        source = graph.add("Concat", layer_norm(graph, media, weights, f"{prefix}.media_norm"), queries, axis=1)
        q, k, v = (
            graph.multiply(given, dense(weights.matrix(f"{prefix}.attention.{name}.weight")))
            for name, given in (("query", queries), ("key", source), ("value", source))
        )
        attended = graph.contrib("MultiHeadAttention", q, k, v, num_heads=config.heads)
        out = graph.multiply(attended, dense(weights.matrix(f"{prefix}.attention.out.weight")))
        x = graph.add("Add", x, out)
        x = graph.add("Add", x, gated_feed_forward(graph, x, weights, f"{prefix}.ffw", "fp32"))
    graph.output(layer_norm(graph, x, weights, "resampler.norm"), "visual_tokens", ["P", latents, dim])
    return graph


def gated_feed_forward(
    graph: Graph, x: str, weights: Weights, name: str, precision: Precision, factor: float = 1.0
) -> str:
    """Norm, up, GELU, down; times ``factor``."""
    up = graph.multiply(
        layer_norm(graph, x, weights, f"{name}.0"), at_precision(weights.matrix(f"{name}.1.weight"), precision)
    )
    down = scaled(at_precision(weights.matrix(f"{name}.3.weight"), precision), factor)
    return graph.multiply(graph.contrib("Gelu", up), down)


def media_graph(config: FlamingoConfig, weights: Weights, gated: int) -> Graph:
    """``visual_tokens [P, R, D]`` -> ``media [2 * J, P, H, R, d]``: keys and values for every gated block, one after the other."""
    graph, width = Graph("media"), 2 * gated
    tokens = graph.input("visual_tokens", ["P", config.latents, config.visual_dim])
    names = (f"xattn.{j}.attention.{name}.weight" for j in range(gated) for name in ("key", "value"))
    both = graph.multiply(tokens, dense(stack_rows([weights.matrix(name) for name in names])))
    heads = graph.reshape(both, 0, 0, width, config.heads, config.head_dim)
    media = graph.add("Transpose", heads, perm=[2, 0, 3, 1, 4])
    graph.output(media, "media", [width, "P", config.heads, config.latents, config.head_dim])
    return graph


@dataclass
class GatedBlocks:
    """Adds gated blocks to a language model's graph.

    Further inputs: ``media_keys_j`` and ``media_values_j [P, H, L, d]``; ``media_shape [3]`` = (P, -1, H * d), which groups the rows that
    attend to the same pictures; ``media_bias [P or 1, 1, B * S / P, L]``, added to the scores; ``sees [B * S, 1]``, 0 for a token that
    attends to no picture.
    """

    config: FlamingoConfig
    weights: Weights
    precision: Precision
    gated: int

    def __call__(self, graph: Graph, layer: int, x: str) -> str:
        every = self.config.every
        if (layer + 1) % every or layer // every >= self.gated:
            return x
        j, heads, width = layer // every, self.config.heads, self.config.head_dim
        if j == 0:
            graph.input("media_shape", [3], INT64)
            graph.input("media_bias", ["P1", 1, "Q", "L"])
            graph.input("sees", ["BS", 1])
        prefix = f"xattn.{j}"
        keys, values = (graph.input(f"media_{name}_{j}", ["P", heads, "L", width]) for name in ("keys", "values"))
        q = graph.multiply(
            layer_norm(graph, x, self.weights, f"{prefix}.norm"), self.matrix(f"{prefix}.attention.query")
        )
        grouped = graph.add("Reshape", q, "media_shape")
        attended = graph.contrib("MultiHeadAttention", grouped, keys, values, "", "", "media_bias", num_heads=heads)
        out = scaled(self.matrix(f"{prefix}.attention.out"), open_gate(self.weights, f"{prefix}.attn_gate"))
        projected = graph.multiply(graph.reshape(attended, -1, heads * width), out)
        x = graph.add("Add", x, graph.add("Mul", projected, "sees"))
        factor = open_gate(self.weights, f"{prefix}.ffw_gate")
        return graph.add("Add", x, gated_feed_forward(graph, x, self.weights, f"{prefix}.ffw", self.precision, factor))

    def matrix(self, name: str) -> Matrix:
        return at_precision(self.weights.matrix(f"{name}.weight"), self.precision)


def open_gate(weights: Weights, name: str) -> float:
    """The factor of a gate: the tanh of its parameter."""
    return float(np.tanh(weights.array(name)).item())


def gate_values(weights: Weights, gated: int) -> list[tuple[float, float]]:
    """Both gates, attention and feed-forward, of each gated block."""
    return [
        (open_gate(weights, f"xattn.{j}.attn_gate"), open_gate(weights, f"xattn.{j}.ffw_gate")) for j in range(gated)
    ]


def text_graph(config: FlamingoConfig, weights: Weights, lm: LanguageGraph) -> Graph:
    """The language model with a gated block before every n-th of its own."""
    return lm.write(GatedBlocks(config, weights, at_least_8_bits(lm.precision), lm.config.layers // config.every))
