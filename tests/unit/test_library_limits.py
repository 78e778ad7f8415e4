"""What a library refuses, and what it says: queries without a known word, addresses that are no folders, a full disk."""

import re
from pathlib import Path

import pytest
from test_library import RandomModel, fail, picture, put

from triptych.errors import InputError, TriptychError
from triptych.io.images import load_image
from triptych.library import SheetPhoto, find, index_photos, open_library, scan, sheet_page


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


def test_sheet_holds_the_photos_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    album = album_of(tmp_path)
    hostile = put(album / "<script>'\"&.png")
    large = album / "large.png"
    picture("large").resize((1000, 500)).save(large)
    found = [SheetPhoto(str(hostile), 1, "1.250"), SheetPhoto(str(large), 2, "-2.000")]
    page = sheet_page("<b>dogs</b> & 'cats'", found, fail)
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "<script>" not in page and "<b>dogs" not in page
    assert "&lt;b&gt;dogs&lt;/b&gt; &amp;" in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?:|url\(|@import|<link", page)
    assert "1.250" in page and "-2.000" in page
    sizes = [load_image(url).size for url in re.findall(r'src="(data:[^"]+)"', page)]
    assert sizes == [(6, 6), (360, 180)]
