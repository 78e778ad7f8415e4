"""The largest scores, as a full sort finds them."""

import numpy as np
import pytest

from triptych.logits import largest


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


def test_scores_that_are_no_numbers_do_not_stop_the_search() -> None:
    best, _ = largest(np.array([[np.nan, 3, np.nan, 5]], np.float32), 2)
    assert best.tolist() == [[5, 3]]
