"""The graph of a language model (Llama, OPT, GPT-NeoX, MPT and similar ones), with or without Flamingo's gated blocks.

The same graph reads prompts and writes: embeddings in, logits of chosen positions out, keys and values updated in place.
Shapes (legend in ``nn/attention.py``): G heads of keys and values, d width of a head, E width of the embeddings, C room in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from triptych.engines.choice import Precision
from triptych.engines.onnx.graph import FLOAT, INT32, INT64, Graph
from triptych.engines.onnx.matrix import Blocks, Columns, at_least_8_bits, at_precision
from triptych.engines.onnx.weights import Weights
from triptych.evidence import Floats
from triptych.nn.configs import OPT_OFFSET, DecoderConfig


def rotary_tables(config: DecoderConfig) -> tuple[Floats, Floats]:
    """Cosines and sines of every position, ``[P, d / 2]``."""
    width = config.rotary_width
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = 1 / np.power(np.float32(config.rope_theta), exponents, dtype=np.float32)
    if config.rope_factors is not None:
        frequencies = frequencies / np.array(config.rope_factors, np.float32)
    angles = np.arange(config.max_positions, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def alibi_slopes(heads: int, bias_max: float) -> Floats:
    """``[H]``: see ``nn.positions.alibi``."""
    power = 1 << (heads - 1).bit_length()
    slopes = 2.0 ** -(np.arange(1, power + 1) * (bias_max / power))
    if heads < power:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return slopes.astype(np.float32)


class LanguageGraph:
    """Writes the graph. ``inputs``: the value that each matrix is multiplied with, by the matrix's name."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        precision: Precision,
        exact: Mapping[str, Columns] | None = None,
    ) -> None:
        """``exact``: the columns of each matrix's input that are multiplied in fp32 (``outliers``), by the matrix's name."""
        self.config, self.weights, self.precision, self.graph = config, weights, precision, Graph("language")
        self.exact = exact or {}
        self.inputs: dict[str, str] = {}
        self.shape, self.rotary, self.bias = "", ["", ""], ""  # values that all layers use, added by ``write``

    def write(self, between: Callable[[Graph, int, str], str] | None = None) -> Graph:
        """The graph. ``between``: adds nodes before block i: the name of ``x [B * S, D]`` -> the name of the new ``x``.

        Inputs: ``embeddings [B, S, E]``; ``last_positions [B]``, the position of each row's last token; ``total [1]``, the length of the
        longest row with the new tokens; ``scored [N]``, the rows of ``[B * S]`` whose logits are computed; ``keys_i`` and ``values_i``
        ``[B, G, C, d]``. Outputs: ``logits [N, V]``; ``new_keys_i`` and ``new_values_i``, to be bound to the memory of the inputs.
        """
        graph, config = self.graph, self.config
        embeddings = graph.input("embeddings", ["B", "S", config.dim])
        graph.input("last_positions", ["B"], INT32)
        graph.input("total", [1], INT32)
        scored = graph.input("scored", ["N"], INT64)
        self.shape = graph.add(
            "Concat",
            graph.add("Slice", graph.add("Shape", embeddings), graph.ints(0), graph.ints(2)),
            graph.ints(-1),
            axis=0,
        )
        x, change = graph.reshape(self.add_positions(embeddings), -1, config.dim), ""
        for layer in range(config.layers):
            if between is not None:
                x = between(graph, layer, graph.add("Add", x, change) if change else x)
                change = ""
            normed, x = self.add_and_norm(x, change, f"blocks.{layer}.attention_norm")
            attended = self.attention(layer, normed)
            if layer + 1 == config.layers:  # the output is needed at the scored positions only
                x, attended = (graph.add("Gather", value, scored, axis=0) for value in (x, attended))
            if config.parallel:
                normed, x = self.norm(x, f"blocks.{layer}.ffn_norm"), graph.add("Add", x, attended)
            else:
                normed, x = self.add_and_norm(x, attended, f"blocks.{layer}.ffn_norm")
            change = self.feed_forward(layer, normed)
        x, _ = self.add_and_norm(x, change, "final_norm")
        head = self.weights.matrix("embedding.weight" if config.tied else "head.weight")
        self.inputs["head"] = x
        logits = graph.multiply(x, at_precision(head, at_least_8_bits(self.precision)), exact=self.exact.get("head"))
        graph.output(logits, "logits", ["N", config.vocab_size])
        return graph

    def add_positions(self, embeddings: str) -> str:
        """``[B, S, D]`` with learned positions added; other positions are prepared for attention, as ``rotary`` (tables) and ``bias``."""
        graph, config = self.graph, self.config
        if config.positions == "rotary":
            self.rotary = [graph.weight(table) for table in rotary_tables(config)]
        elif config.positions == "alibi":
            # -slope (i - j), without -slope i, which is equal for all keys j of a query i
            slopes = graph.weight(alibi_slopes(config.heads, config.alibi_bias_max)[None, :, None, None])
            keys = graph.add("Range", graph.number(0), self.count("total", 0), graph.number(1))
            bias = graph.add("Mul", slopes, graph.add("Cast", keys, to=FLOAT))
            new = graph.add("Slice", self.shape, graph.ints(1), graph.ints(2))
            shape = graph.add("Concat", graph.ints(1, config.heads), new, graph.add("Cast", "total", to=INT64), axis=0)
            self.bias = graph.add("Expand", bias, shape)
        else:
            new = self.count(self.shape, 1)
            behind = graph.add("Range", graph.add("Sub", graph.number(1), new), graph.number(1), graph.number(1))
            last = graph.add("Unsqueeze", graph.add("Cast", "last_positions", to=INT64), graph.ints(1))
            table = graph.weight(self.weights.array("position_embedding.weight")[OPT_OFFSET:])
            return graph.add("Add", embeddings, graph.add("Gather", table, graph.add("Add", last, behind), axis=0))
        return embeddings

    def count(self, numbers: str, index: int) -> str:
        """An element of a vector of integers, as an int64 scalar."""
        return self.graph.add("Gather", self.graph.add("Cast", numbers, to=INT64), self.graph.number(index), axis=0)

    def norm(self, x: str, name: str) -> str:
        graph, config = self.graph, self.config
        weight = self.weights.array(f"{name}.weight")
        if config.norm == "rms":
            return graph.add("SimplifiedLayerNormalization", x, graph.weight(weight), axis=-1, epsilon=config.eps)
        bias = self.weights.array(f"{name}.bias") if config.norm_bias else np.zeros_like(weight)
        return graph.layer_norm(x, weight, bias, config.eps)

    def add_and_norm(self, x: str, change: str, name: str) -> tuple[str, str]:
        """The norm of ``x + change``, and the sum; ``change`` "" = 0."""
        graph, config = self.graph, self.config
        if not change:
            return self.norm(x, name), x
        if config.norm != "rms":
            summed = graph.add("Add", x, change)
            return self.norm(summed, name), summed
        weight = graph.weight(self.weights.array(f"{name}.weight"))
        normed, summed = f"{name}.normed", f"{name}.sum"
        outputs = [normed, "", "", summed]
        graph.raw("SkipSimplifiedLayerNormalization", [x, change, weight], outputs, epsilon=config.eps)
        return normed, summed

    def linear(self, x: str, name: str) -> str:
        """A product in a block of the language model. Matrices that are stored in blocks of columns are not converted.

        With ``int8`` x has 16 bits. With ``int4`` it has 8, and its outliers are multiplied in fp32 (``outliers``): otherwise the
        probabilities of words would differ from fp32's more than twice as much.
        """
        self.inputs[name] = x
        stored = self.weights.matrix(f"{name}.weight")
        in_blocks = isinstance(stored, Blocks) and self.precision != "fp32"
        matrix = stored if in_blocks else at_precision(stored, self.precision)
        bias = self.weights.array(f"{name}.bias") if f"{name}.bias" in self.weights else None
        if self.precision == "int8":
            return self.graph.multiply_in_16_bits(x, matrix, bias)
        return self.graph.multiply(x, matrix, bias, self.exact.get(name))

    def attention(self, layer: int, x: str) -> str:
        graph, config, prefix = self.graph, self.config, f"blocks.{layer}"
        heads, groups, width = config.heads, config.groups, config.head_width
        qkv = self.linear(x, f"{prefix}.attention.qkv")
        cache = [graph.input(f"{name}_{layer}", ["B", groups, "C", width]) for name in ("keys", "values")]
        attended, *new = f"attended_{layer}", f"new_keys_{layer}", f"new_values_{layer}"
        graph.raw(
            "GroupQueryAttention",
            [
                *(graph.add("Reshape", qkv, self.shape), "", "", *cache, "last_positions", "total"),
                *(*self.rotary, "", self.bias),
            ],
            [attended, *new],
            num_heads=heads,
            kv_num_heads=groups,
            do_rotary=int(config.positions == "rotary"),
            rotary_interleaved=0,
        )
        for name in new:
            graph.declare_output(name, ["B", groups, "C", width])
        return self.linear(graph.reshape(attended, -1, heads * width), f"{prefix}.attention.out")

    def feed_forward(self, layer: int, x: str) -> str:
        graph, prefix = self.graph, f"blocks.{layer}"
        hidden = self.linear(x, f"{prefix}.ffn.up")
        if self.config.gated:
            gate, up = graph.add_outputs("Split", 2, hidden, axis=-1)
            hidden = graph.add("Mul", self.activate(gate), up)
        else:
            hidden = self.activate(hidden)
        return self.linear(hidden, f"{prefix}.ffn.down")

    def activate(self, x: str) -> str:
        kinds: dict[str, Callable[[], str]] = {
            "silu": lambda: self.graph.contrib("QuickGelu", x, alpha=1.0),
            "relu": lambda: self.graph.add("Relu", x),
            "gelu": lambda: self.graph.contrib("Gelu", x),
            "gelu_tanh": lambda: self.graph.contrib("FastGelu", x),
        }
        return kinds[self.config.activation]()
