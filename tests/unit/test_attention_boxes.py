"""The share of attention in boxes: geometry, names, and the shipped model looks where it says."""

from pathlib import Path

import numpy as np
import pytest

from triptych import load
from triptych.data import open_dataset
from triptych.evaluate.attention import attention_in_boxes, inside, named


def test_boxes_cover_their_cells_whatever_the_photos_shape() -> None:
    cells = inside([(50, 0, 50, 10)], (100, 20), (2, 4))  # the upper right quarter of a wide photo
    np.testing.assert_array_equal(cells, [[0, 0, 1, 1], [0, 0, 0, 0]])
    half = inside([(0, 0, 12.5, 20)], (100, 20), (2, 4))
    np.testing.assert_allclose(half[:, 0], 0.5)
    np.testing.assert_array_equal(
        inside([(0, 0, 60, 20), (40, 0, 60, 20)], (100, 20), (2, 4)), 1
    )  # overlap counts once


def test_names() -> None:
    assert named("dogs", {"dog"}) == "dog"
    assert named("benches", {"bench"}) == "bench"
    assert named("men", {"person"}) == "person"
    assert named("bike", {"bicycle"}) == "bicycle"
    assert named("grass", {"dog", "person"}) is None
    assert named("dog", {"cat"}) is None


@pytest.mark.data
@pytest.mark.parts
def test_the_shipped_model_looks_at_what_it_names(coco_mini: Path) -> None:
    record = attention_in_boxes(load("sat"), open_dataset(coco_mini, "val"))
    assert record["words"] >= 5
    assert record["attention"] > 1.2 * record["area"]
