"""The columns of a language model's activations that are too large to be rounded with their neighbours.

The runtime rounds activations to 8 bits in blocks of 32, each by its largest value. A few columns of a language model are ten to a
thousand times as large as the rest, for every text, and make the others in their block inexact. So they are multiplied in fp32, as in
LLM.int8() (Dettmers et al. 2022). They are found by reading a text once, when the graphs are built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from triptych.engines.choice import Precision
from triptych.engines.onnx.language import LanguageGraph
from triptych.engines.onnx.matrix import Blocks, Columns
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.sources import LanguageModelSource
from triptych.evidence import Floats

COUNT = 8  # columns
TEXT = """A man in a red shirt rides a bicycle down a wet street while two children and a brown dog watch from the pavement. It was late in
the afternoon, and the shops on the corner had already closed. "What colour is the car?" she asked. The answer was simple: it is blue. In
2019, about 35 people lived there; by 2024 there were 1,200. Question: what is the woman holding? Short answer: a yellow umbrella."""


def outlier_columns(source: LanguageModelSource, precision: Precision, folder: Path) -> dict[str, Columns]:
    """The columns of each matrix's input that are multiplied in fp32, by the matrix's name. ``folder``: for temporary files."""
    return {} if precision == "fp32" else choose_columns(largest_inputs(source, precision, folder))


def choose_columns(largest: Mapping[str, Floats]) -> dict[str, Columns]:
    """The outliers, given the largest magnitude of each column ``[D]`` of each matrix's input, by the matrix's name.

    All matrices that read a norm of the residual stream get the same columns, so that they share the constant that selects them.
    """
    relative = {
        name: values / max(float(np.median(values)), 1e-30)
        for name, values in largest.items()
        if name.endswith((".qkv", ".up", "head"))
    }
    most = np.max(list(relative.values()), 0)
    return dict.fromkeys(relative, np.sort(np.argsort(-most, kind="stable")[:COUNT]))


def largest_inputs(source: LanguageModelSource, precision: Precision, folder: Path) -> dict[str, Floats]:
    """The largest magnitude of each column ``[D]`` of each matrix's input while the model reads ``TEXT``, by the matrix's name."""
    config, ids = source.config, np.array(source.tokenizer.encode(TEXT))[: source.config.max_positions]
    writer = LanguageGraph(config, source.weights, precision)
    graph = writer.write()
    for name, x in writer.inputs.items():
        graph.output(graph.add("ReduceMax", graph.add("Abs", x), axes=[0], keepdims=0), f"largest_{name}", ["D"])
    embedding = source.weights.matrix("embedding.weight")
    rows = embedding.take_rows(ids).dense() if isinstance(embedding, Blocks) else embedding[ids]
    given = {
        "embeddings": rows[None],
        "last_positions": np.array([len(ids) - 1], np.int32),
        "total": np.array([len(ids)], np.int32),
        "scored": np.arange(len(ids)),
    }
    empty = np.zeros((1, config.groups, len(ids), config.head_width), np.float32)
    given |= {f"{kind}_{layer}": empty for layer in range(config.layers) for kind in ("keys", "values")}
    names = [f"largest_{name}" for name in writer.inputs]
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        graph.save(Path(beside))
        outputs = open_session(Path(beside) / "language.onnx").run(names, given)
    return dict(zip(writer.inputs, outputs, strict=True))
