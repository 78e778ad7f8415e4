"""The language model on ONNX Runtime beside the decoder on torch: prompts, rows of several lengths, beams, beginnings read once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_onnx import assert_near, language_model, tiny_decoder, weights_of

from triptych.engines.onnx.coverage import NotCoveredError, check_language_model
from triptych.engines.onnx.language import LanguageGraph
from triptych.engines.onnx.text import OnnxLanguageModel
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder, left_pad

BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
LAYER_NORM = {"norm": "layer"}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]


def opened(decoder: Decoder, folder: Path, precision: str = "fp32") -> OnnxLanguageModel:
    LanguageGraph(decoder.config, weights_of(decoder), precision).write().save(folder)
    return language_model(decoder, folder)


@pytest.fixture(
    params=[
        {},
        {"qkv_bias": True, "out_bias": True, "ffn_bias": True, "tied": False},
        {"kv_heads": 4, "head_dim": 32, "rope_factors": (2.0,) * 16, "rope_theta": 500.0},
        {"kv_heads": None, "positions": "learned", "activation": "relu", "gated": False, **LAYER_NORM, **BIASES},
        {"kv_heads": None, "head_dim": 32, "rotary_dim": 16, "parallel": True, "activation": "gelu"}
        | {"gated": False, "tied": False, **LAYER_NORM, **BIASES},
        {"kv_heads": None, "heads": 3, "head_dim": 16, "positions": "alibi", "activation": "gelu_tanh", "gated": False}
        | {"norm": "layer", "norm_bias": False},
    ],
    ids=["llama", "biases", "wide heads", "OPT", "GPT-NeoX", "MPT"],
)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Decoder, OnnxLanguageModel]:
    decoder = tiny_decoder(**request.param)
    return decoder, opened(decoder, tmp_path)


def read(lm: OnnxLanguageModel, prompts: list[list[int]], capacity: int = 4):
    cache = lm.start(len(prompts), capacity)
    logits = [lm.read(cache, row, lm.embed(np.array(ids))) for row, ids in enumerate(prompts)]
    return np.concatenate(logits), cache


def test_prompts_of_several_lengths_then_beams(both: tuple[Decoder, OnnxLanguageModel]) -> None:
    decoder, lm = both
    ours, cache = read(lm, PROMPTS)
    theirs, state = decoder.prefill(left_pad([torch.tensor(ids) for ids in PROMPTS]))
    assert_near(ours, theirs)
    rng = np.random.default_rng(0)
    orders = [[[0, 0], [1, 1], [2, 2]], [[1, 0], [3, 3], [4, 5]], [[1, 1], [2, 3], [5, 4]], [[0, 1], [5, 4]], [[3, 3]]]
    for order in orders:  # expanded, exchanged, an input dropped, two
        rows = np.array(order)
        cache, state = cache.reorder(rows), state.reorder(torch.from_numpy(rows))
        for _ in range(2):
            ids = rng.integers(0, 97, rows.size)
            ours, (theirs, state) = lm.step(ids, cache), decoder.step(torch.from_numpy(ids), state)
            assert_near(ours, theirs)


def test_a_batch_equals_its_rows(both: tuple[Decoder, OnnxLanguageModel]) -> None:
    _, lm = both
    together, cache = read(lm, PROMPTS)
    next_together = lm.step(np.array([3, 4, 5]), cache)
    for row, prompt in enumerate(PROMPTS):
        alone, own = read(lm, [prompt])
        np.testing.assert_array_equal(alone[0], together[row])
        np.testing.assert_allclose(lm.step(np.array([3 + row]), own)[0], next_together[row], atol=1e-4)


def test_a_beginning_is_read_once(both: tuple[Decoder, OnnxLanguageModel]) -> None:
    _, lm = both
    whole, _ = read(lm, [[1, 2, 3, 20, 21]])
    _, cache = read(lm, [[1, 2, 3, 4, 5]])
    kept = cache.fork(np.array([0]))
    cache.truncate(3)
    np.testing.assert_allclose(lm.read(cache, 0, lm.embed(np.array([20, 21]))), whole, atol=1e-4)
    again = lm.read(kept, 0, lm.embed(np.array([6])))  # the copy has what it had
    np.testing.assert_allclose(again, read(lm, [[1, 2, 3, 4, 5, 6]])[0], atol=1e-4)


def test_logits_of_chosen_positions(both: tuple[Decoder, OnnxLanguageModel]) -> None:
    decoder, lm = both
    cache, ids = lm.start(1), [5, 6, 7, 8]
    ours = lm.read(cache, 0, lm.embed(np.array(ids)), scored=np.array([3, 0, 2]))
    theirs = decoder.logits(decoder(torch.tensor([ids])))[0]
    assert_near(ours, theirs[[3, 0, 2]])


def test_the_cache_grows(both: tuple[Decoder, OnnxLanguageModel]) -> None:
    decoder, lm = both
    _, cache = read(lm, [[1], [2, 3]], capacity=2)
    state = decoder.prefill(left_pad([torch.tensor([1]), torch.tensor([2, 3])]))[1]
    for i in range(40):
        ids = np.array([i, i + 1])
        ours, (theirs, state) = lm.step(ids, cache), decoder.step(torch.from_numpy(ids), state)
    assert_near(ours, theirs)


def test_texts_that_are_empty_or_too_long(both: tuple[Decoder, OnnxLanguageModel]) -> None:
    _, lm = both
    with pytest.raises(InputError, match="the prompt is empty"):
        lm.read(lm.start(1), 0, lm.embed(np.array([], np.int64)))
    with pytest.raises(InputError, match="121 tokens: the language model reads 120"):
        read(lm, [[1] * 121])
    _, cache = read(lm, [[1] * 120])
    with pytest.raises(InputError, match="121 tokens"):
        lm.step(np.array([1]), cache)


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.1), ("int4", 0.6)])
def test_fewer_bits_are_near(tmp_path: Path, precision: str, error: float) -> None:
    decoder = tiny_decoder()
    ours, _ = read(opened(decoder, tmp_path, precision), PROMPTS)
    theirs, _ = decoder.prefill(left_pad([torch.tensor(ids) for ids in PROMPTS]))
    assert 0 < np.abs(ours - theirs.numpy()).mean() < error * float(theirs.std())


@pytest.mark.parametrize(
    "others",
    [
        {"embed_scale": 2.0},
        {"embed_dim": 32},
        {"pre_norm": False},
        {"window": 8},
        {"qk_norm": "head"},
        {"rotary_dim": 8},
        {"heads": 8, "kv_heads": 8},  # 8 wide
    ],
)
def test_other_kinds_are_left_to_torch(others: dict[str, object]) -> None:
    sizes = {"vocab_size": 97, "dim": 64, "layers": 3, "heads": 4, "ffn_dim": 96}
    check_language_model("tiny", DecoderConfig(**sizes))
    with pytest.raises(NotCoveredError, match="tiny"):
        check_language_model("tiny", DecoderConfig(**(sizes | others)))
