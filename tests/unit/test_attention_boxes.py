"""The share of attention in boxes: geometry, names, and the shipped model looks where it says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych import load
from triptych.data import Photo, open_dataset
from triptych.evaluate.attention import attention_in_boxes, inside, named
from triptych.evidence import Evidence
from triptych.tasks import Answer


def test_boxes_cover_their_cells_whatever_the_photos_shape() -> None:
    cells = inside([(50, 0, 50, 10)], (100, 20), (2, 4))  # the upper right quarter of a wide photo
    np.testing.assert_array_equal(cells, [[0, 0, 1, 1], [0, 0, 0, 0]])
    half = inside([(0, 0, 12.5, 20)], (100, 20), (2, 4))
    np.testing.assert_allclose(half[:, 0], 0.5)
    np.testing.assert_array_equal(
        inside([(0, 0, 60, 20), (40, 0, 60, 20)], (100, 20), (2, 4)), 1
    )  # overlap counts once


def test_a_box_that_begins_outside_counts_as_far_as_it_is_inside() -> None:
    np.testing.assert_array_equal(inside([(-50, -5, 100, 15)], (100, 20), (2, 4)), [[1, 1, 0, 0], [0, 0, 0, 0]])


class Looker:
    """Its captions are "dog"; it attends to nothing, or to the upper left cell."""

    def __init__(self, weight: float) -> None:
        self.maps = np.zeros((1, 1, 2, 2), np.float32)
        self.maps[..., 0, 0] = weight

    def caption(self, image: Image.Image, explain: bool) -> Answer:
        return Answer("dog", "looker", 0.0, ("dog",), (0.0,), Evidence(("dog",), self.maps, (0.0,)))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_every_figure_is_a_number_or_none(tmp_path: Path, weight: float) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (10, 10)).save(path)
    photo = Photo("1", "test", (), {"objects": [{"category": "dog", "box": [0, 0, 5, 10]}]}, path)
    record = attention_in_boxes(Looker(weight), [photo])  # type: ignore[arg-type]
    assert record == {
        "photos": 1,
        "words": 1,
        "attention": weight,
        "area": 0.5,
        "small_words": 0,
        "small_attention": None,
        "small_area": None,
    }


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
