"""Scores of the next token: the largest, as a full sort finds them; log-probabilities; what is not finite."""

import numpy as np
import pytest
import torch

from triptych.engines.onnx.common import logprobs_of
from triptych.engines.torch.common import continuation_logprobs
from triptych.errors import TriptychError
from triptych.generate import Search, generate
from triptych.logits import largest, log_softmax
from triptych.nn.cache import KVCache


@pytest.mark.parametrize(("columns", "count"), [(7, 7), (7, 1), (500, 10), (9000, 3)])
def test_the_largest_are_those_of_a_stable_sort(columns: int, count: int) -> None:
    """Also among equal scores and impossible ones."""
    rng = np.random.default_rng(columns)
    scores = rng.integers(0, columns // 4 + 2, (4, columns)).astype(np.float32)
    scores[1, : columns // 2] = -np.inf
    scores[2], scores[3] = 1, -np.inf
    best, order = largest(scores, count)
    wanted = np.argsort(-scores, 1, kind="stable")[:, :count]
    np.testing.assert_array_equal(order, wanted)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, wanted, 1))


def test_log_probabilities_of_what_is_not_banned_sum_to_one() -> None:
    logprobs = log_softmax(np.array([[1.0, 2.0, 3.0], [1e4, -1e4, 0.0]], np.float32), {2})
    np.testing.assert_allclose(np.exp(logprobs).sum(1), 1, rtol=1e-6)
    assert (logprobs[:, 2] == -np.inf).all() and logprobs[0, 1] - logprobs[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_model_whose_precision_is_too_narrow_is_an_error(score: float) -> None:
    """Not a text of tokens that nothing chose, greedy or with beams, nor a choice."""
    logits = np.zeros((1, 5), np.float32)
    logits[0, 3] = score

    class Overflowing:
        def prefill(self, inputs: None) -> tuple[np.ndarray, KVCache]:
            return logits, KVCache(1)

    for beams in (1, 2):
        with pytest.raises(TriptychError, match="not finite"):
            generate(Overflowing(), None, Search(frozenset({0}), beams=beams))  # type: ignore[arg-type]
    with pytest.raises(TriptychError, match="not finite"):
        logprobs_of(logits, [1])
    with pytest.raises(TriptychError, match="not finite"):
        continuation_logprobs(torch.from_numpy(logits), [[1], [2]], lambda ids: torch.zeros(0))


def test_scores_that_are_no_numbers_do_not_stop_the_search() -> None:
    best, _ = largest(np.array([[np.nan, 3, np.nan, 5]], np.float32), 2)
    assert best.tolist() == [[5, 3]]
