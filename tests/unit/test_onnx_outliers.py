"""Which columns of a language model's activations are too large to be rounded with their neighbours."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_onnx import tiny_decoder, weights_of

from triptych.engines.onnx.outliers import COUNT, TEXT, choose_columns, largest_inputs, outlier_columns
from triptych.engines.onnx.sources import LanguageModelSource
from triptych.nn.decoder import Decoder


@dataclass
class Letters:
    """A tokenizer of letters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 97 for letter in text]


@pytest.fixture
def decoder() -> Decoder:
    """Its norms let three columns through, twenty times as strong as the others."""
    decoder = tiny_decoder(tied=False)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "norm" in name:
                parameter.fill_(1)[[5, 17, 60]] = 20
    return decoder


def source(decoder: Decoder) -> LanguageModelSource:
    return LanguageModelSource(decoder.config, weights_of(decoder), Letters())  # type: ignore[arg-type]


def test_the_largest_inputs_are_those_of_torch(decoder: Decoder, tmp_path: Path) -> None:
    largest, ours = {}, largest_inputs(source(decoder), "fp32", tmp_path)
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: largest.update({name: args[0][0].abs().amax(0)}))
        for name, module in decoder.named_modules()
        if name.endswith((".qkv", ".out", ".up", ".down", "head"))
    ]
    with torch.inference_mode():
        decoder.logits(decoder(torch.tensor([Letters().encode(TEXT)[:120]])))
    for handle in handles:
        handle.remove()
    assert set(ours) == set(largest)
    for name, values in largest.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-3, atol=1e-4)


def test_large_columns_are_found_once_for_all_that_read_the_residual_stream(decoder: Decoder, tmp_path: Path) -> None:
    columns = outlier_columns(source(decoder), "int8", tmp_path)
    assert {name.rpartition(".")[2] for name in columns} == {"qkv", "up", "head"} and len(columns) == 7
    assert len({tuple(chosen) for chosen in columns.values()}) == 1
    assert {5, 17, 60} <= set(columns["head"]) and len(columns["head"]) == COUNT
    assert outlier_columns(source(decoder), "fp32", tmp_path) == {} and not list(tmp_path.iterdir())


def test_sizes_are_compared_with_those_of_the_same_matrix() -> None:
    weak, strong = np.ones(64, np.float32), np.full(64, 100, np.float32)
    weak[9] = 50
    strong[2] = 300
    columns = choose_columns({"a.qkv": weak, "b.up": strong})["a.qkv"]
    assert {2, 9} <= set(columns)
