"""``/v1/find`` over a real library: what it finds, and that the library is read again only when it has changed."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import client_of
from toy_models import ToyBlip2, red

from triptych.errors import InputError
from triptych.library import SearchedLibrary, index_photos, scan
from triptych.tasks import Match


class RedBlip2(ToyBlip2):
    """Photos fit any text the better the redder they are."""

    fingerprint = "red"

    def unknown_texts(self, texts: Any) -> list[str]:
        return []

    def itc_images(self, images: Any) -> Any:
        return np.array([[[red(image) / 255, 1 - red(image) / 255]] for image in images], np.float32)

    def itc_texts(self, texts: Any) -> Any:
        angles = np.array([len(text) % 7 / 10 for text in texts], np.float32)
        if any(len(text) > 100 for text in texts):
            raise InputError("a text is too long")
        return np.stack([np.cos(angles), np.sin(angles)], 1)

    def similarity_of_features(self, itc_images: Any, pooled: Any, texts: Any) -> Any:
        return (itc_images @ self.itc_texts(texts).T).max(1)

    def match(self, images: Any, texts: Any) -> list[Match]:
        return [
            Match(i, 0, red(image) / 255, 1.0, red(image) / 255, float(red(image))) for i, image in enumerate(images)
        ]


def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def album(tmp_path: Path) -> Path:
    pytest.importorskip("lancedb")
    folder = tmp_path / "album"
    folder.mkdir()
    for value in (10, 200, 90):
        Image.new("RGB", (64, 48), (value, 0, 0)).save(folder / f"red {value}.png")
    index(folder, tmp_path / "library")
    return folder


def index(folder: Path, library: Path) -> None:
    index_photos(scan(folder, fail), library, RedBlip2(), fail)


@pytest.fixture
def searching(album: Path, tmp_path: Path) -> Iterator[TestClient]:
    with client_of({"blip2": RedBlip2()}, library=tmp_path / "library") as client:
        yield client


def names(client: TestClient, **fields: Any) -> list[str]:
    response = client.post("/v1/find", json={"query": "something red", **fields})
    assert response.status_code == 200, response.text
    return [result["name"] for result in response.json()["results"]]


def test_what_is_found(searching: TestClient) -> None:
    assert names(searching) == ["red 200.png", "red 90.png", "red 10.png"]
    assert names(searching, k=1) == ["red 200.png"]
    first = searching.post("/v1/find", json={"query": "red", "k": 1}).json()["results"][0]
    assert first["rank"] == 1 and 0 <= first["probability"] <= 1
    assert first["thumbnail"].startswith("data:image/") and "album" not in str(first["name"])
    for body, param in (
        ({"query": " "}, "query"),
        ({"query": "a", "k": 101}, "k"),
        ({"query": "a", "at_least": 1}, "at_least"),
    ):
        response = searching.post("/v1/find", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    response = searching.post("/v1/find", json={"query": "a" * 101})
    assert (response.status_code, response.json()["error"]["message"]) == (400, "a text is too long")


def test_the_library_is_read_again_only_when_it_has_changed(
    searching: TestClient, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    module = sys.modules["triptych.library.find"]  # the package has a function of this name
    open_library = module.open_library

    def counted(path: Path) -> Any:
        opened.append(path)
        return open_library(path)

    monkeypatch.setattr(module, "open_library", counted)
    for _ in range(3):
        assert len(names(searching)) == 3
    assert len(opened) == 1
    Image.new("RGB", (64, 48), (255, 0, 0)).save(album / "red 255.png")
    index(album, tmp_path / "library")
    for _ in range(2):
        assert names(searching)[0] == "red 255.png"
    assert len(opened) == 2


def test_a_library_that_is_deleted_and_made_anew(album: Path, tmp_path: Path) -> None:
    searched = SearchedLibrary(tmp_path / "library")
    first = searched.open()
    shutil.rmtree(tmp_path / "library")
    with pytest.raises(InputError, match="no photo library here"):
        searched.open()
    index(album, tmp_path / "library")
    assert searched.open() is not first and len(searched.open().paths) == 3
