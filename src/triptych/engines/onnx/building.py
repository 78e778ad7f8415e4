"""Writing all graphs of a checkpoint into a folder; ``opening`` imports this module only when they are missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triptych.engines.choice import Precision
from triptych.engines.onnx.cache import describe_language_model, save_embeddings, write_manifest
from triptych.engines.onnx.convolutions import Convolution, stored_convolutions
from triptych.engines.onnx.flamingo_graph import gate_values, media_graph, resampler_graph, text_graph
from triptych.engines.onnx.language import LanguageGraph
from triptych.engines.onnx.matrix import at_least_8_bits, at_precision
from triptych.engines.onnx.outliers import outlier_columns
from triptych.engines.onnx.qformer_graph import QFormerGraphs
from triptych.engines.onnx.sat_graph import DecoderGraphs, annotations_graph
from triptych.engines.onnx.sources import LanguageModelSource, Source
from triptych.engines.onnx.vision_graph import EncoderGraph


def build_sat(source: Source, folder: Path, precision: Precision) -> None:
    cut, weights = source.cut, source.weights
    EncoderGraph(source.convolutions("encoder."), end=cut).write().save(folder)
    annotations_graph(weights, cut).save(folder)
    graphs = DecoderGraphs(source.config.model, weights, at_least_8_bits(precision))
    graphs.start().save(folder)
    graphs.step().save(folder)
    embeddings = weights.matrix("decoder.embedding.weight")
    save_embeddings(folder, "embedding", at_precision(embeddings, at_least_8_bits(precision)))
    encoder = source.convolutions("encoder.") | stored_convolutions(weights, "encoder.", cut)
    trunk = sum(size_of(conv) for name, conv in encoder.items() if layer_of(name) < cut)
    parameters = {"encoder": sum(map(size_of, encoder.values())), "decoder": weights.parameters("decoder.")}
    write_manifest(folder, {"parameters": parameters, "frozen": trunk})


def build_flamingo(source: Source, folder: Path, precision: Precision) -> None:
    lm, model = source.language_model, source.config.model
    EncoderGraph(source.convolutions("vision_encoder.")).write().save(folder)
    resampler_graph(model, source.weights).save(folder)
    media_graph(model, source.weights, lm.config.layers // model.every).save(folder)
    text_graph(model, source.weights, language_graph(lm, precision, folder)).save(folder)
    gates = gate_values(source.weights, lm.config.layers // model.every)
    parts = {name: source.weights.parameters(f"{name}.") for name in ("resampler", "xattn")}
    save_word_embeddings(folder, lm, precision)
    write_manifest(folder, counted(source, parts) | {"gates": gates} | describe_language_model(lm.config, lm.tokenizer))


def build_blip2(source: Source, folder: Path, precision: Precision) -> None:
    model, weights = source.config.model, source.weights
    lm = source.language_model if source.config.lm is not None else None
    EncoderGraph(source.convolutions("vision_encoder.")).write().save(folder)
    for graph in QFormerGraphs(model, weights, at_least_8_bits(precision)).all(with_lm=lm is not None):
        graph.save(folder)
    words = at_precision(weights.matrix("qformer.word_embeddings.weight"), at_least_8_bits(precision))
    save_embeddings(folder, "words", words)
    np.save(folder / "positions.npy", weights.array("qformer.position_embeddings.weight"))
    if model.feature_dim is not None:
        np.save(folder / "temperature.npy", weights.array("heads.temperature"))
    if lm is not None:
        language_graph(lm, precision, folder).write().save(folder)
        save_word_embeddings(folder, lm, precision)
    names = ("vision_norm", "qformer", "heads", "projection")
    parts = {name: weights.parameters(f"{name}.") for name in names}
    described = describe_language_model(lm.config, lm.tokenizer) if lm is not None else {}
    write_manifest(folder, counted(source, parts) | described)


BUILDERS = {"sat": build_sat, "flamingo": build_flamingo, "blip2": build_blip2}


def language_graph(source: LanguageModelSource, precision: Precision, folder: Path) -> LanguageGraph:
    return LanguageGraph(source.config, source.weights, precision, outlier_columns(source, precision, folder))


def save_word_embeddings(folder: Path, source: LanguageModelSource, precision: Precision) -> None:
    embeddings = at_precision(source.weights.matrix("embedding.weight"), at_least_8_bits(precision))
    save_embeddings(folder, "embedding", embeddings)


def counted(source: Source, trained: Mapping[str, int]) -> dict[str, Any]:
    """The numbers of parameters of the frozen parts and the ``trained`` ones, for ``engine.json``."""
    parameters = {"vision_encoder": sum(map(size_of, source.convolutions("vision_encoder.").values()))}
    frozen = parameters["vision_encoder"]
    if source.config.lm is not None:
        parameters["lm"] = source.language_model.weights.parameters()
        frozen += parameters["lm"]
    return {"parameters": parameters | dict(trained), "frozen": frozen}


def size_of(convolution: Convolution) -> int:
    return convolution.weight.size + convolution.bias.size


def layer_of(name: str) -> int:
    """``layers.7.expand`` -> 7."""
    return int(name.split(".")[1])
