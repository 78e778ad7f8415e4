"""Show, Attend and Tell's graphs: annotations, the state before the first word, and one step.

Shapes (legend in ``systems/show_attend_tell.py``): B photos, K captions of each, L cells; widths D of an annotation, A of the attention,
n of the LSTM, m of an embedding. Word embeddings are looked up outside of the graphs.
"""

from __future__ import annotations

from triptych.engines.choice import Precision
from triptych.engines.onnx.convolutions import stored_convolutions
from triptych.engines.onnx.graph import Graph
from triptych.engines.onnx.matrix import dense, in_rows, stack_rows
from triptych.engines.onnx.vision_graph import EncoderGraph
from triptych.engines.onnx.weights import Weights
from triptych.evidence import Floats
from triptych.nn.efficientnet import LAYERS
from triptych.systems.configs import ShowAttendTellConfig


def annotations_graph(weights: Weights, cut: int) -> Graph:
    """The encoder's layers after the cut: ``features [B, C, h, w]`` -> ``annotations [B, L, D]``."""
    return EncoderGraph(stored_convolutions(weights, "encoder.", cut), cut, len(LAYERS)).write("annotations")


class DecoderGraphs:
    """``weights``: of the whole ``ShowAttendTell``."""

    def __init__(self, config: ShowAttendTellConfig, weights: Weights, precision: Precision) -> None:
        self.config, self.weights, self.precision = config, weights, precision

    def start(self) -> Graph:
        """``annotations [B, L, D]`` -> ``keys [B, L, A]``, the annotations projected once for each photo, ``h`` and ``c [B, n]``."""
        graph, config = Graph("start"), self.config
        annotations = graph.input("annotations", ["B", "L", config.feature_dim])
        mean = graph.add("ReduceMean", annotations, axes=[1], keepdims=0)
        keys = self.linear(graph, annotations, "attention.annotation_proj", "fp32")
        graph.output(keys, "keys", ["B", "L", config.attention_dim])
        for name in ("h", "c"):
            x = self.linear(graph, mean, f"init_{name}", "fp32")
            x = graph.add("Tanh", x) if config.initial_state == "tanh" else x
            graph.output(x, name, ["B", config.hidden_dim])
        return graph

    def step(self) -> Graph:
        """``embedded [B, K, m]`` of the last words, ``annotations``, ``keys``, ``h`` and ``c [B, K, n]`` -> ``logits [B * K, V]`` of the
        next words, ``new_h``, ``new_c``, and the attention ``alpha [B, K, L]``. Equation numbers are the paper's."""
        graph, config = Graph("step"), self.config
        n, d = config.hidden_dim, config.feature_dim
        embedded = graph.input("embedded", ["B", "K", config.embed_dim])
        annotations = graph.input("annotations", ["B", "L", d])
        keys = graph.input("keys", ["B", "L", config.attention_dim])
        h, c = graph.input("h", ["B", "K", n]), graph.input("c", ["B", "K", n])
        from_h = self.from_hidden(graph, h)
        alpha = self.attention(graph, keys, from_h[0])
        graph.output(alpha, "alpha", ["B", "K", "L"])
        z_hat = graph.add("MatMul", alpha, annotations)  # eq. 13
        z_hat = graph.add("Mul", graph.add("Sigmoid", from_h[1]), z_hat)  # section 4.2.1
        gates = graph.add("Add", self.input_gates(graph, embedded, z_hat), from_h[2])
        i, f, g, o = graph.add_outputs("Split", 4, gates, graph.ints(n, n, n, n), axis=-1)  # eq. 1
        kept = graph.add("Mul", graph.add("Sigmoid", f), c)
        c = graph.add("Add", kept, graph.add("Mul", graph.add("Sigmoid", i), graph.add("Tanh", g)))  # eq. 2
        h = graph.add("Mul", graph.add("Sigmoid", o), graph.add("Tanh", c))  # eq. 3
        graph.output(self.words(graph, embedded, h, z_hat), "logits", ["R", config.vocab_size])
        graph.output(h, "new_h", ["B", "K", n])
        graph.output(c, "new_c", ["B", "K", n])
        return graph

    def from_hidden(self, graph: Graph, h: str) -> list[str]:
        """Everything that depends on the last ``h`` alone, in one product: the attention's query, beta, a share of the LSTM's gates."""
        weights = [self.weights.matrix(f"decoder.{name}") for name in ("attention.hidden_proj.weight", "beta.weight")]
        weights.append(self.weights.matrix("decoder.lstm.weight_hh"))
        biases = [self.weights.array(f"decoder.{name}") for name in ("attention.hidden_proj.bias", "beta.bias")]
        biases.append(self.lstm_bias())
        both = graph.multiply(h, in_rows(stack_rows(weights), self.precision), dense(stack_rows(biases)))
        sizes = graph.ints(*(len(bias) for bias in biases))
        return graph.add_outputs("Split", 3, both, sizes, axis=-1)

    def attention(self, graph: Graph, keys: str, query: str) -> str:
        """``keys [B, L, A]``, ``query [B, K, A]`` -> ``alpha [B, K, L]`` (eq. 4, 5)."""
        keys, query = graph.add("Unsqueeze", keys, graph.ints(1)), graph.add("Unsqueeze", query, graph.ints(2))
        score = graph.add("Tanh" if self.config.score == "tanh" else "Relu", graph.add("Add", keys, query))
        column = self.weights.array("decoder.attention.score.weight").T  # [A, 1]: a vector takes four times as long
        weight = graph.weight(column)
        e = graph.add("Squeeze", graph.add("MatMul", score, weight), graph.ints(3))
        return graph.add("Softmax", e, axis=-1)  # the score's bias shifts all cells equally

    def input_gates(self, graph: Graph, embedded: str, z_hat: str) -> str:
        both = graph.add("Concat", embedded, z_hat, axis=-1)
        return graph.multiply(both, in_rows(self.weights.matrix("decoder.lstm.weight_ih"), self.precision))

    def lstm_bias(self) -> Floats:
        return self.weights.array("decoder.lstm.bias_ih") + self.weights.array("decoder.lstm.bias_hh")

    def words(self, graph: Graph, embedded: str, h: str, z_hat: str) -> str:
        """Logits of the next word (eq. 7)."""
        config = self.config
        x, width = h, config.hidden_dim
        if config.output == "deep":
            x = graph.add("Add", embedded, self.linear(graph, h, "output_h", self.precision))
            weight = in_rows(self.weights.matrix("decoder.output_z.weight"), self.precision)
            x, width = graph.add("Add", x, graph.multiply(z_hat, weight)), config.embed_dim
        return self.linear(graph, graph.reshape(x, -1, width), "output", self.precision)

    def linear(self, graph: Graph, x: str, name: str, precision: Precision) -> str:
        matrix = in_rows(self.weights.matrix(f"decoder.{name}.weight"), precision)
        return graph.multiply(x, matrix, self.weights.array(f"decoder.{name}.bias"))
