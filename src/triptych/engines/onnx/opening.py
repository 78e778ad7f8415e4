"""Opening a checkpoint with this engine; its graphs are written first if they are missing."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.locate import check_files, load_config
from triptych.engines.choice import Precision
from triptych.engines.interface import SatSpec
from triptych.engines.onnx.blip2 import OnnxBlip2, OnnxQFormer
from triptych.engines.onnx.cache import graphs_folder, open_embeddings, read_language_model, read_manifest
from triptych.engines.onnx.common import Opened
from triptych.engines.onnx.coverage import (
    NotCoveredError,
    check_blip2,
    check_encoder,
    check_flamingo,
    check_sat,
)
from triptych.engines.onnx.flamingo import OnnxFlamingo
from triptych.engines.onnx.sat import OnnxSat
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.sources import Source
from triptych.engines.onnx.text import OnnxLanguageModel
from triptych.engines.specs import blip2_spec, flamingo_spec
from triptych.errors import InputError
from triptych.systems.configs import Blip2Config, FlamingoConfig, ShowAttendTellConfig
from triptych.text.tokenizer import TextTokenizer
from triptych.text.vocabulary import BOS, EOS, PAD, UNK, read_vocabulary
from triptych.text.wordpiece import WordPieces

ConfigT = TypeVar("ConfigT", ShowAttendTellConfig, FlamingoConfig, Blip2Config)


def open_engine(directory: Path, precision: Precision | None = None) -> OnnxSat | OnnxFlamingo | OnnxBlip2:
    """The engine of a checkpoint.

    Raises:
        NotCoveredError: a part of it has no graph.
        InputError: the files are damaged.
        TriptychError: a pretrained part could not be fetched, or the graphs could not be written.
    """
    config = load_config(directory)
    system, chosen = config.system, precision or default_precision(config)
    if system == "sat":
        return open_sat(directory, chosen)
    if system == "flamingo":
        return open_flamingo(directory, chosen)
    if system == "blip2":
        return open_blip2(directory, chosen)
    raise NotCoveredError(f"the system {system}")


def default_precision(config: CheckpointConfig[Any]) -> Precision:
    """The fastest that keeps the texts: 4 bits where the language model's file, an embedded part, has no more, else 8."""
    return "int8" if config.lm is not None and (config.lm.stored or config.lm.file_sha256) else "int4"


def typed_source(directory: Path, kind: type[ConfigT]) -> tuple[CheckpointConfig[ConfigT], Source]:
    """A checkpoint, after checks of its image encoder and its files. Raises NotCoveredError, InputError."""
    config = load_config(directory).typed(kind, directory / "config.json")
    check_encoder(config.encoder)
    check_files(directory, config)
    return config, Source(directory, config)


def built_graphs(source: Source, precision: Precision) -> Path:
    """The folder of the checkpoint's graphs, which are written if they are missing."""

    def build(folder: Path) -> None:
        from triptych.engines.onnx.building import BUILDERS

        if sys.stderr.isatty():
            print(f"triptych: the graphs of {source.directory.name} are built once, in a few seconds", file=sys.stderr)
        BUILDERS[source.config.system](source, folder, precision)

    return graphs_folder(source.config, precision, build)


def open_lm_session(folder: Path) -> tuple[OnnxLanguageModel, TextTokenizer]:
    config, tokenizer = read_language_model(read_manifest(folder))
    session = open_session(folder / "language.onnx")
    return OnnxLanguageModel(session, config, open_embeddings(folder, "embedding")), tokenizer


def open_sat(directory: Path, precision: Precision) -> OnnxSat:
    config, source = typed_source(directory, ShowAttendTellConfig)
    check_sat(config.model, source.cut)
    vocabulary = read_vocabulary(directory / "vocabulary.json")
    if len(vocabulary) != config.model.vocab_size:
        raise InputError(f"{directory}: {len(vocabulary)} words, but the model was made for {config.model.vocab_size}")
    folder = built_graphs(source, precision)
    search = config.search.search(frozenset({EOS}), frozenset({PAD, BOS, UNK}))
    once = cache(vocabulary.repetitions) if config.search.words_once else None
    spec = SatSpec(vocabulary, replace(search, once=once))
    return OnnxSat(Opened(directory, config, folder, precision), spec, open_embeddings(folder, "embedding"))


def open_flamingo(directory: Path, precision: Precision) -> OnnxFlamingo:
    config, source = typed_source(directory, FlamingoConfig)
    check_flamingo(config.model)
    if config.lm is None or config.lm.end_id is None:
        raise InputError(f"{directory / 'config.json'}: lm.end_id is missing")
    if config.lm.added_tokens:
        raise NotCoveredError(
            f"added tokens (`triptych convert {directory} COPY --embed-lm` makes them the language model's own)"
        )
    folder = built_graphs(source, precision)
    lm, tokenizer = open_lm_session(folder)
    search = config.search.search(frozenset({config.lm.end_id}), frozenset({config.model.image_id}))
    spec = flamingo_spec(config, tokenizer, search, lm.config.max_positions)
    return OnnxFlamingo(Opened(directory, config, folder, precision), spec, lm)


def open_blip2(directory: Path, precision: Precision) -> OnnxBlip2:
    config, source = typed_source(directory, Blip2Config)
    check_blip2(config.model)
    folder = built_graphs(source, precision)
    lm, tokenizer = open_lm_session(folder) if config.lm is not None else (None, None)
    words = WordPieces.read(directory / "vocab.txt")
    search = config.search.search(tokenizer.eos_ids if tokenizer else frozenset())
    spec = blip2_spec(config, words, tokenizer, search, lm.config.max_positions if lm else 0)
    qformer = OnnxQFormer(folder, config.model, open_embeddings(folder, "words"), np.load(folder / "positions.npy"))
    temperature = float(np.load(folder / "temperature.npy")) if spec.matches else None
    return OnnxBlip2(Opened(directory, config, folder, precision), spec, qformer, lm, temperature)
