"""The Q-Former's graphs: photos' keys and values, photos with texts or alone, texts alone, and captions word by word.

Shapes (legend in ``nn/attention.py``): B photos, R = B * K rows of texts, Q queries, D width, C layers with cross-attention. Word
embeddings with positions are looked up outside of the graphs: ``text [R, T, D]``; T may be 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from triptych.engines.choice import Precision
from triptych.engines.onnx.graph import INT64, Graph
from triptych.engines.onnx.matrix import at_precision, dense, stack_rows
from triptych.engines.onnx.weights import Weights
from triptych.systems.configs import Blip2Config

VISION_EPS = 1e-5  # of the layer norm before the Q-Former, torch's


class QFormerGraphs:
    """``weights``: of the whole ``Blip2``. Masks are added to the scores: 0 = may attend."""

    def __init__(self, config: Blip2Config, weights: Weights, precision: Precision) -> None:
        self.config, self.weights, self.precision = config, weights, precision
        self.sizes = config.qformer
        self.crossing = [i for i in range(self.sizes.layers) if i % self.sizes.cross_attn_every == 0]

    def all(self, with_lm: bool) -> Iterator[Graph]:
        """The graphs that the checkpoint has the weights of."""
        yield self.photos()
        yield self.both(with_lm)
        if self.config.feature_dim:
            yield self.texts()
            if self.config.writes:
                yield self.writer()

    def photos(self) -> Graph:
        """``features [B, L, Dv]`` -> ``image_keys_c``, ``image_values_c [B, L, D]`` for each layer with cross-attention."""
        graph, sizes = Graph("photos"), self.sizes
        x = graph.input("features", ["B", "L", sizes.image_dim])
        if self.config.normalise:
            weight, bias = (self.weights.array(f"vision_norm.{kind}") for kind in ("weight", "bias"))
            x = graph.layer_norm(x, weight, bias, VISION_EPS)
        for c, layer in enumerate(self.crossing):
            for ours, name in (("key", "keys"), ("value", "values")):
                y = self.linear(graph, x, f"qformer.layers.{layer}.cross_attention.attention.{ours}")
                graph.output(y, f"image_{name}_{c}", ["B", "L", sizes.dim])
        return graph

    def both(self, with_lm: bool) -> Graph:
        """Queries and texts that read photos. Inputs: ``text``; ``mask [R, 1, Q + T, Q + T]``; the photos' keys and values;
        ``by_photo [3]`` = (B, -1, D), which groups the rows of each photo.

        Outputs: ``past_keys_i``, ``past_values_i [R, Q + T, D]`` of every layer's self-attention; ``queries [R, Q, D]``; ``soft_prompt
        [R, Q, E]`` (with a language model); ``itc [R, Q, F]`` of length 1 and ``itm [R, 2]`` (with the heads of the first stage).
        """
        graph, sizes, weights = Graph("both"), self.sizes, self.weights
        text = graph.input("text", ["R", "T", sizes.dim])
        mask = graph.input("mask", ["R", 1, "S", "S"])
        by_photo = graph.input("by_photo", [3], INT64)
        rows = graph.add("Slice", graph.add("Shape", text), graph.ints(0), graph.ints(1))
        shape = graph.add("Concat", rows, graph.ints(sizes.queries, sizes.dim), axis=0)
        queries = graph.add("Expand", graph.weight(weights.array("qformer.query_tokens")), shape)
        x = self.norm(graph, graph.add("Concat", queries, text, axis=1), "qformer.norm")
        for layer in range(sizes.layers):
            x, keys, values = self.self_attention(graph, layer, x, mask)
            for name, value in (("keys", keys), ("values", values)):
                graph.output(value, f"past_{name}_{layer}", ["R", "S", sizes.dim])
            query = graph.add("Slice", x, graph.ints(0), graph.ints(sizes.queries), graph.ints(1))
            rest = graph.add("Slice", x, graph.ints(sizes.queries), graph.ints(1 << 30), graph.ints(1))
            if layer in self.crossing:
                query = self.cross_attention(graph, layer, query, by_photo, shape)
            query = self.feed_forward(graph, layer, query, "query_mlp")
            x = query
            if sizes.vocab_size:
                x = graph.add("Concat", query, self.feed_forward(graph, layer, rest, "text_mlp"), axis=1)
        queries = graph.add("Slice", x, graph.ints(0), graph.ints(sizes.queries), graph.ints(1))
        self.heads(graph, queries, with_lm)
        return graph

    def heads(self, graph: Graph, queries: str, with_lm: bool) -> None:
        sizes = self.sizes
        graph.output(queries, "queries", ["R", sizes.queries, sizes.dim])
        if with_lm:
            graph.output(self.linear(graph, queries, "projection"), "soft_prompt", ["R", sizes.queries, "E"])
        if self.config.feature_dim:
            features = graph.add("LpNormalization", self.linear(graph, queries, "heads.vision_proj"), axis=-1, p=2)
            graph.output(features, "itc", ["R", sizes.queries, self.config.feature_dim])
            logits = graph.add("ReduceMean", self.linear(graph, queries, "heads.itm_head"), axes=[1], keepdims=0)
            graph.output(logits, "itm", ["R", 2])

    def texts(self) -> Graph:
        """``text``, ``mask [R, 1, T, T]`` -> ``itc [R, F]``, of length 1, from [CLS]."""
        graph, sizes = Graph("texts"), self.sizes
        x = self.norm(graph, graph.input("text", ["R", "T", sizes.dim]), "qformer.norm")
        mask = graph.input("mask", ["R", 1, "T", "T"])
        for layer in range(sizes.layers):
            x, _, _ = self.self_attention(graph, layer, x, mask)
            x = self.feed_forward(graph, layer, x, "text_mlp")
        first = graph.add("Gather", x, graph.number(0), axis=1)
        features = graph.add("LpNormalization", self.linear(graph, first, "heads.text_proj"), axis=-1, p=2)
        graph.output(features, "itc", ["R", self.config.feature_dim or 0])
        return graph

    def writer(self) -> Graph:
        """The next word of captions (ITG): ``text [R, 1, D]`` after ``past_keys_i``, ``past_values_i [R, S, D]`` -> ``logits [R, V]``,
        ``new_keys_i``, ``new_values_i [R, S + 1, D]``."""
        graph, sizes = Graph("writer"), self.sizes
        x = self.norm(graph, graph.input("text", ["R", 1, sizes.dim]), "qformer.norm")
        for layer in range(sizes.layers):
            past = [graph.input(f"past_{name}_{layer}", ["R", "S", sizes.dim]) for name in ("keys", "values")]
            x, *new = self.self_attention(graph, layer, x, "", past)
            for name, value in zip(("keys", "values"), new, strict=True):
                graph.output(value, f"new_{name}_{layer}", ["R", "S1", sizes.dim])
            x = self.feed_forward(graph, layer, x, "text_mlp")
        last = graph.reshape(x, -1, sizes.dim)
        hidden = self.norm(graph, graph.contrib("Gelu", self.linear(graph, last, "heads.lm_dense")), "heads.lm_norm")
        words = at_precision(self.weights.matrix("qformer.word_embeddings.weight"), self.precision)
        logits = graph.multiply(hidden, words, self.weights.array("heads.lm_bias"))
        graph.output(logits, "logits", ["R", sizes.vocab_size])
        return graph

    # Layers: BERT's, with their residuals

    def norm(self, graph: Graph, x: str, name: str) -> str:
        weight, bias = (self.weights.array(f"{name}.{kind}") for kind in ("weight", "bias"))
        return graph.layer_norm(x, weight, bias, self.sizes.eps)

    def linear(self, graph: Graph, x: str, name: str) -> str:
        matrix = self.weights.matrix(f"{name}.weight")
        return graph.multiply(x, at_precision(matrix, self.precision), self.weights.array(f"{name}.bias"))

    def self_attention(
        self, graph: Graph, layer: int, x: str, mask: str, past: list[str] | None = None
    ) -> tuple[str, str, str]:
        """The new ``x``, and the keys and values that it attended to, ``past`` first."""
        name, dim = f"qformer.layers.{layer}.self_attention", self.sizes.dim
        parts = [f"{name}.attention.{part}" for part in ("query", "key", "value")]
        matrix = stack_rows([self.weights.matrix(f"{part}.weight") for part in parts])
        bias = stack_rows([self.weights.array(f"{part}.bias") for part in parts])
        qkv = graph.multiply(x, at_precision(matrix, self.precision), dense(bias))
        query, *both = graph.add_outputs("Split", 3, qkv, graph.ints(dim, dim, dim), axis=-1)
        if past is not None:
            both = [graph.add("Concat", a, b, axis=1) for a, b in zip(past, both, strict=True)]
        extra = ("", "", mask) if mask else ()
        attended = graph.contrib("MultiHeadAttention", query, *both, *extra, num_heads=self.sizes.heads)
        out = self.linear(graph, attended, f"{name}.attention.out")
        return self.norm(graph, graph.add("Add", x, out), f"{name}.norm"), both[0], both[1]

    def cross_attention(self, graph: Graph, layer: int, query: str, by_photo: str, shape: str) -> str:
        name, c = f"qformer.layers.{layer}.cross_attention", self.crossing.index(layer)
        image = [graph.input(f"image_{kind}_{c}", ["B", "L", self.sizes.dim]) for kind in ("keys", "values")]
        queries = graph.add("Reshape", self.linear(graph, query, f"{name}.attention.query"), by_photo)
        attended = graph.contrib("MultiHeadAttention", queries, *image, num_heads=self.sizes.heads)
        out = graph.add("Reshape", self.linear(graph, attended, f"{name}.attention.out"), shape)
        return self.norm(graph, graph.add("Add", query, out), f"{name}.norm")

    def feed_forward(self, graph: Graph, layer: int, x: str, part: str) -> str:
        name = f"qformer.layers.{layer}.{part}"
        hidden = graph.contrib("Gelu", self.linear(graph, x, f"{name}.up"))
        return self.norm(graph, graph.add("Add", x, self.linear(graph, hidden, f"{name}.down")), f"{name}.norm")
