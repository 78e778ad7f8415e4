"""Flamingo on ONNX Runtime beside torch: pictures, interleaved prompts, beams, beginnings read once, blind text, choices."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny_blip2 import TinyNet, byte_tokenizer
from tiny_onnx import assert_near, language_model, opened, randomise, save, tiny_decoder, weights_of

from triptych.engines.interface import FlamingoInputs, FlamingoSpec
from triptych.engines.onnx.coverage import NotCoveredError, check_flamingo
from triptych.engines.onnx.flamingo import OnnxFlamingo
from triptych.engines.onnx.flamingo_graph import media_graph, resampler_graph, text_graph
from triptych.engines.onnx.language import LanguageGraph
from triptych.errors import InputError
from triptych.generate import Search
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo, flamingo_prompt

IMAGE = 96  # the token that stands for a picture
SIZES = {"dim": 8, "latents": 3, "resampler_layers": 2, "heads": 2, "head_dim": 4, "ffn_factor": 2, "every": 2}
ROWS, COUNTS = [[5, IMAGE, 7, 8, IMAGE, 9], [IMAGE, 4], [3, 2, 9]], [2, 1, 0]


class Both(NamedTuple):
    torch: Flamingo
    onnx: OnnxFlamingo
    tokens: torch.Tensor  # visual tokens of five pictures
    arrays: list[np.ndarray]


@pytest.fixture(params=[SIZES, SIZES | {"dim": None, "every": 1}], ids=["narrowed", "every block"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Both:
    config = FlamingoConfig(5, IMAGE, **request.param)
    model = Flamingo(config, TinyNet(), tiny_decoder(layers=4))
    randomise(model)
    weights, lm = weights_of(model), model.lm.config
    gated = lm.layers // config.every
    save([resampler_graph(config, weights), media_graph(config, weights, gated)], tmp_path)
    save([text_graph(config, weights, LanguageGraph(lm, weights.below("lm."), "fp32"))], tmp_path)
    spec = FlamingoSpec(byte_tokenizer(), Search(frozenset({0})), IMAGE, 0, lm.max_positions, None)
    engine = OnnxFlamingo(opened(tmp_path, config), spec, language_model(model.lm, tmp_path))
    features = torch.randn(5, 9, 5, generator=torch.Generator().manual_seed(1))
    return Both(model, engine, model.resampler(features), engine.read(list(features.numpy()), [1] * 5))


def prefill(both: Both, rows: list[list[int]], counts: list[int], first: int = 0, states=(None, None)):
    """Both models' logits and states; the pictures are those from ``first`` on."""
    split = np.cumsum([first, *counts])
    tokens = [both.arrays[a:b] for a, b in pairwise(split)]
    ours, state = both.onnx.prefill(FlamingoInputs(rows, tokens, states[1]))
    prompt = flamingo_prompt(rows, both.tokens[first : first + sum(counts)], counts, 0)._replace(state=states[0])
    theirs, their_state = both.torch.prefill(prompt)
    return ours, theirs, (their_state, state)


def test_the_resampler(both: Both) -> None:
    assert_near(np.stack(both.arrays), both.tokens)


def test_interleaved_prompts_then_beams(both: Both) -> None:
    ours, theirs, (their_state, state) = prefill(both, ROWS, COUNTS)
    assert_near(ours, theirs)
    rng = np.random.default_rng(0)
    orders = [[[0, 0], [1, 1], [2, 2]], [[1, 0], [3, 3], [4, 5]], [[0, 1], [5, 4]], [[2, 3]], [[1, 0]], [[0], [1]]]
    for order in orders:  # expanded, exchanged, inputs dropped, each row an input of its own
        rows = np.array(order)
        state, their_state = state.reorder(rows), their_state.reorder(torch.from_numpy(rows))
        for _ in range(2):
            ids = rng.integers(0, IMAGE, rows.size)
            ours, state = both.onnx.step(ids, state)
            theirs, their_state = both.torch.step(torch.from_numpy(ids), their_state)
            assert_near(ours, theirs)


def test_a_batch_equals_its_rows(both: Both) -> None:
    together, _, _ = prefill(both, ROWS, COUNTS)
    starts = np.cumsum([0, *COUNTS])
    for row, (ids, count) in enumerate(zip(ROWS, COUNTS, strict=True)):
        alone, _, _ = prefill(both, [ids], [count], int(starts[row]))
        np.testing.assert_array_equal(alone[0], together[row])


def test_pictures_may_come_later_and_a_beginning_is_read_once(both: Both) -> None:
    _, _, states = prefill(both, [[5, IMAGE, 7]], [1])
    ours, theirs, states = prefill(both, [[5, IMAGE, 7, IMAGE]], [2], 1, states)
    assert_near(ours, theirs)
    for state in states:
        state.truncate(4, 1)
    ours, theirs, states = prefill(both, [[6, IMAGE, 7]], [1], 3, states)
    assert_near(ours, theirs)
    whole = prefill(both, [[5, IMAGE, 7, 5, 6, IMAGE, 7]], [2])
    assert not np.allclose(ours, whole[0])  # other pictures: those of the first call and the fourth


def test_texts_of_several_callers_are_written_together(both: Both) -> None:
    """Each with its own pictures and beams; some come later, some leave."""
    steps, rng = both.onnx.joint_steps(), np.random.default_rng(0)

    def begin(ids: list[int], count: int, first: int, beams: int) -> list:
        order = np.zeros((1, beams), np.int64)
        return [prefill(both, [ids], [count], first)[2][1].reorder(order) for _ in range(2)]

    texts = [begin(ROWS[0], 2, 0, 2), begin(ROWS[1], 1, 2, 1), begin(ROWS[2], 0, 3, 2)]
    for turn in range(6):
        if turn == 2:
            texts.append(begin(ROWS[1], 1, 3, 2))
        if turn == 4:
            del texts[0]
        ids = [rng.integers(0, IMAGE, state.beams) for state, _ in texts]
        results = steps.step(ids, [state for state, _ in texts])
        for text, own, (logits, state) in zip(texts, ids, results, strict=True):
            alone, text[1] = both.onnx.step(own, text[1])
            np.testing.assert_allclose(logits, alone, atol=1e-4)
            order = rng.integers(0, state.beams, (1, state.beams))
            text[:] = state.reorder(order), text[1].reorder(order)


def test_a_fork_leaves_its_source_alone(both: Both) -> None:
    _, _, (their_state, state) = prefill(both, [[5, IMAGE, 7]], [1])
    fork = state.fork([0, 0])
    both.onnx.step(np.array([3, 4]), fork)
    fork.truncate(1, 0)
    ours, _ = both.onnx.step(np.array([8]), state)
    theirs, _ = both.torch.step(torch.tensor([8]), their_state)
    assert_near(ours, theirs)


def test_blind_text_attends_to_no_picture(both: Both) -> None:
    _, _, (their_state, state) = prefill(both, [[5, IMAGE, 7]], [1])
    ours, state = both.onnx.prefill(FlamingoInputs([[7, 8]], [[]], state, blind=True))
    hidden = both.torch(torch.tensor([[7, 8]]), state=their_state, blind_from=0)
    assert_near(ours, both.torch.lm.logits(hidden[:, -1:])[:, 0])
    ours, _ = both.onnx.step(np.array([9]), state)  # so does what is written behind it
    assert_near(ours, both.torch.step(torch.tensor([9]), their_state)[0])


def test_texts_are_scored_behind_one_prompt(both: Both) -> None:
    ours, _, (their_state, state) = prefill(both, [[5, IMAGE, 7]], [1])
    texts = [[4, 5, 6], [7], [8, 9]]
    found = both.onnx.score(ours, state, texts)
    for text, logprobs in zip(texts, found, strict=True):
        whole = both.torch.prefill(flamingo_prompt([[5, IMAGE, 7]], both.tokens[:1], [1], 0))[0]
        wanted, follower = [], their_state.fork([0])
        for token in text:
            wanted.append(float(whole.log_softmax(-1)[0, token]))
            whole, follower = both.torch.step(torch.tensor([token]), follower)
        assert logprobs == pytest.approx(wanted, abs=1e-3)
    again, _ = both.onnx.step(np.array([3]), state)  # the state is as it was
    assert_near(again, both.torch.step(torch.tensor([3]), their_state)[0])


def test_pictures_and_their_places_must_be_as_many(both: Both) -> None:
    with pytest.raises(InputError, match="1 pictures for 2 image tokens"):
        both.onnx.prefill(FlamingoInputs([[IMAGE, IMAGE]], [both.arrays[:1]]))


VARIANTS: dict[str, object] = {
    **{"look": "all", "max_pictures": 3, "max_frames": 2, "style": "idefics", "gate": "vector"},
    **{"qk_norm": True, "resampler_qk_norm": True, "resampler_heads": 1, "resampler_head_dim": 16},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_kinds_are_left_to_torch(name: str) -> None:
    check_flamingo(FlamingoConfig(5, IMAGE, **SIZES))
    with pytest.raises(NotCoveredError, match=name):
        check_flamingo(FlamingoConfig(5, IMAGE, **(SIZES | {name: VARIANTS[name]})))
