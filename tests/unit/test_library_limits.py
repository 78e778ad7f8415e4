"""What a library refuses, and what it says: queries without a known word, addresses that are no folders, a full disk."""

from pathlib import Path

import pytest
from test_library import RandomModel, put

from triptych.errors import InputError, TriptychError
from triptych.library import find, index_photos, open_library, scan


def album_of(folder: Path, *names: str) -> Path:
    (folder / "photos").mkdir()
    for name in names:
        put(folder / "photos" / f"{name}.png", name)
    return folder / "photos"


def test_a_query_without_a_known_word_is_ranked_and_said(tmp_path: Path) -> None:
    folder = album_of(tmp_path, "a", "b")
    index_photos(scan(folder, print), tmp_path / "library", RandomModel(), print)
    said: list[object] = []
    found = find(open_library(tmp_path / "library"), RandomModel(), "강아지", notice=said.append)
    assert len(found) == 2 and ["knows no word of '강아지'" in str(one) for one in said] == [True]


@pytest.mark.parametrize("library", ["s3://bucket/x", "db://x", "s3:x", "a\nb", "gs://x/y"])
def test_a_library_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = album_of(tmp_path, "a")
    for work in (
        lambda: index_photos(scan(folder, print), library, RandomModel(), print),
        lambda: open_library(library),
    ):
        with pytest.raises(InputError, match="a library is a folder"):
            work()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("lance error: LanceError(IO): os error 28")]
)
def test_a_full_disk_while_indexing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("triptych.library.index.write_rows", full)
    folder = album_of(tmp_path, "a")
    with pytest.raises(TriptychError, match="the disk is full"):
        index_photos(scan(folder, print), tmp_path / "library", RandomModel(), print)
    monkeypatch.undo()
    assert index_photos(scan(folder, print), tmp_path / "library", RandomModel(), print).photos == 1
