"""Which photos a search of a library opens: the best by contrast, sorted by their similarity."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_library import QUERIES, WIDTH, RandomModel, best, counts, fail, index, put

from triptych.library import find, open_library
from triptych.library import index as index_module


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Twelve photos."""
    folder = tmp_path / "album"
    folder.mkdir()
    for n in range(12):
        put(folder / f"{n}.png")
    return folder


class Dissenter(RandomModel):
    """Keeps of each photo the reverse of its first feature for contrast, and calls those similar that contrast does not."""

    def search_features(self, images: Sequence[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        contrast = self.itc_images(images)
        return contrast, -contrast[:, 1]

    def similarity_of_features(self, itc_images: Any, pooled: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        np.testing.assert_array_equal(pooled, -itc_images[:, 1])
        assert pooled.dtype == np.float32
        return pooled @ self.itc_texts(texts).T


def test_similarity_chooses_from_the_best_by_contrast(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, library = Dissenter(), tmp_path / "library"
    index(album, library, model)
    assert counts(index(album, library, model)) == (12, 0, 0, 0, 0, 0)
    opened = open_library(library)
    cosines = opened.cosines(model.itc_texts(["3"])[0])
    similarity = opened.pooled.astype(np.float32) @ model.itc_texts(["3"])[0]
    opened_photos: list[int] = []
    monkeypatch.setattr(
        model,
        "match",
        lambda images, texts: opened_photos.append(len(images)) or RandomModel.match(model, images, texts),
    )
    for shortlist in (5, 12):
        monkeypatch.setitem(find.__globals__, "SHORTLIST", shortlist)
        listed = np.argsort(-cosines)[:shortlist]
        wanted = listed[np.argsort(-similarity[listed])][:3]
        found = find(opened, model, "3", 3, notice=fail)
        assert {one.path for one in found} == {opened.paths[row] for row in wanted}
    assert opened_photos == [3, 3]  # no more photos are opened than are wanted


def test_a_library_of_format_1_is_searched_and_extended(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as old:
        old.setattr("triptych.library.table.LIBRARY_FORMAT", "1")
        index(album, tmp_path / "library")  # without pooled features
    put(album / "new.png")
    copy(album / "0.png", album / "copy.png")  # its features are in the library, without pooled ones
    assert counts(index(album, tmp_path / "library", Dissenter())) == (14, 2, 0, 0, 0, 0)
    assert best(tmp_path / "library", "new") == "new.png"


def test_half_precision_ranks_as_full(album: Path, tmp_path: Path) -> None:
    """Of 2,000 photos, stored and read again: the same best one, and the same ten best, for every one of 50 texts."""
    rng = np.random.default_rng(1)

    def unit(*shape: int) -> NDArray[np.float32]:
        values = rng.standard_normal(shape).astype(np.float32)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    features, texts = unit(2000, QUERIES, WIDTH), unit(50, WIDTH)
    rows = [index_module.PhotoRow(f"/{n}", index_module.Stamp(0, 0), f"{n:064x}") for n in range(2000)]
    table = index_module.create_table(tmp_path / "library", "random", (QUERIES, WIDTH, 0))
    nothing = np.zeros(0, np.float16)
    halves = {
        row.sha256: index_module.SearchFeatures(feature.astype(np.float16), nothing)
        for row, feature in zip(rows, features, strict=True)
    }
    index_module.write_rows(table, rows, halves)
    library = open_library(tmp_path / "library")
    full = replace(library, features=features[[int(path[1:]) for path in library.paths]])
    for text in texts:
        half, exact = library.cosines(text), full.cosines(text)
        assert np.abs(half - exact).max() < 5e-4
        assert half.argmax() == exact.argmax()
        assert set((-half).argsort()[:10]) == set((-exact).argsort()[:10])
