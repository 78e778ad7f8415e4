"""Tiny models in the sizes that the graphs of ``engines/onnx`` cover, their weights as NumPy's, and their graphs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from triptych.checkpoints.config import CheckpointConfig, EncoderSpec
from triptych.engines.choice import Precision
from triptych.engines.interface import SatSpec
from triptych.engines.onnx.common import Opened
from triptych.engines.onnx.graph import Graph
from triptych.engines.onnx.sat import OnnxSat
from triptych.engines.onnx.sat_graph import DecoderGraphs, annotations_graph
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.text import EmbeddingTable, OnnxLanguageModel
from triptych.engines.onnx.weights import CheckpointWeights
from triptych.generate import Search
from triptych.nn.cnn import EfficientNetLite
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.nn.efficientnet import ENCODER_NAME
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import CaptionDecoder
from triptych.text.vocabulary import EOS, SPECIALS, WordVocabulary

WORDS = WordVocabulary((*SPECIALS, *"abcdefg"))


def randomise(module: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Random weights of which none is without effect."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, scale).add_(parameter.ndim == 1)
    return module.eval().requires_grad_(False)


def tiny_decoder(**others: object) -> Decoder:
    sizes = {"vocab_size": 97, "dim": 64, "layers": 3, "heads": 4, "kv_heads": 2, "ffn_dim": 96, "max_positions": 120}
    decoder = Decoder(DecoderConfig(**(sizes | others)))  # type: ignore[arg-type]
    randomise(decoder, 0.2)
    return decoder


def weights_of(module: nn.Module) -> CheckpointWeights:
    return CheckpointWeights({name: tensor.numpy() for name, tensor in module.state_dict().items()})


def save(graphs: Iterable[Graph], folder: Path) -> None:
    for graph in graphs:
        graph.save(folder)


def language_model(decoder: Decoder, folder: Path) -> OnnxLanguageModel:
    """The runtime over ``language.onnx`` in ``folder``."""
    table = EmbeddingTable(decoder.embedding.weight.numpy(), None)
    return OnnxLanguageModel(open_session(folder / "language.onnx"), decoder.config, table)


def assert_near(ours: np.ndarray, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    """``tolerance``: relative to the largest value, or to 1 where all are smaller."""
    wanted = theirs.detach().numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * max(1.0, float(np.abs(wanted).max())))


def opened(folder: Path, model_config: object) -> Opened:
    """A folder of graphs as the engines take it, with an encoder that gives back its pixels."""
    graph = Graph("encoder")
    graph.output(graph.input("pixel_values", ["B", 3, "H", "W"]), "features", ["B", 3, "H", "W"])
    graph.save(folder)
    encoder = EncoderSpec(ENCODER_NAME, stored=True, image_size=64)
    return Opened(folder, CheckpointConfig(system="tiny", model=model_config, encoder=encoder), folder, "fp32")


def sat_engine(
    folder: Path, variant: Mapping[str, str] = MappingProxyType({}), precision: Precision = "fp32"
) -> tuple[CaptionDecoder, OnnxSat]:
    """A caption decoder over annotations ``[B, L, 64]`` on torch, and the same on ONNX Runtime."""
    sizes = {"feature_dim": 64, "embed_dim": 32, "hidden_dim": 32, "attention_dim": 32}
    model = CaptionDecoder(ShowAttendTellConfig(len(WORDS), **sizes, **variant))
    randomise(model, 0.2)
    weights = weights_of(nn.ModuleDict({"decoder": model}))
    graphs = DecoderGraphs(model.config, weights, precision)
    tail = weights_of(nn.ModuleDict({"encoder": EfficientNetLite(cut=22, image_size=64)}))
    save([graphs.start(), graphs.step(), annotations_graph(tail, 22)], folder)
    search = Search(frozenset({EOS}), max_new_tokens=5, beams=3)
    table = EmbeddingTable(weights.array("decoder.embedding.weight"), None)
    return model, OnnxSat(opened(folder, model.config), SatSpec(WORDS, search), table)
