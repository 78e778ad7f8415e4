"""Writing all graphs of a checkpoint into a folder. This is the one module that ``opening`` does not need once they are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from triptych.engines.choice import Precision
from triptych.engines.onnx.cache import describe_language_model, save_embeddings, write_manifest
from triptych.engines.onnx.flamingo_graph import media_graph, resampler_graph, text_graph
from triptych.engines.onnx.language import LanguageGraph
from triptych.engines.onnx.matrix import at_least_8_bits, at_precision
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
    write_manifest(folder, {})


def build_flamingo(source: Source, folder: Path, precision: Precision) -> None:
    lm, model = source.language_model, source.config.model
    EncoderGraph(source.convolutions("vision_encoder.")).write().save(folder)
    resampler_graph(model, source.weights).save(folder)
    media_graph(model, source.weights, lm.config.layers // model.every).save(folder)
    text_graph(model, source.weights, lm.config, lm.weights, precision).save(folder)
    save_language_model(folder, lm, precision)


def build_blip2(source: Source, folder: Path, precision: Precision) -> None:
    model, weights, with_lm = source.config.model, source.weights, source.config.lm is not None
    EncoderGraph(source.convolutions("vision_encoder.")).write().save(folder)
    for graph in QFormerGraphs(model, weights, at_least_8_bits(precision)).all(with_lm):
        graph.save(folder)
    words = at_precision(weights.matrix("qformer.word_embeddings.weight"), at_least_8_bits(precision))
    save_embeddings(folder, "words", words)
    np.save(folder / "positions.npy", weights.array("qformer.position_embeddings.weight"))
    if model.feature_dim is not None:
        np.save(folder / "temperature.npy", weights.array("heads.temperature"))
    if with_lm:
        lm = source.language_model
        LanguageGraph(lm.config, lm.weights, precision).write().save(folder)
        save_language_model(folder, lm, precision)
    else:
        write_manifest(folder, {})


def save_language_model(folder: Path, source: LanguageModelSource, precision: Precision) -> None:
    """What a language model needs beside its graph."""
    embeddings = at_precision(source.weights.matrix("embedding.weight"), at_least_8_bits(precision))
    save_embeddings(folder, "embedding", embeddings)
    write_manifest(folder, describe_language_model(source.config, source.tokenizer))
