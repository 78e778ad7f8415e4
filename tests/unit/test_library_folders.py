"""What a library takes from a folder: linked folders are followed, files that are no pictures are counted."""

from pathlib import Path

from triptych.errors import TriptychError
from triptych.library import scan
from triptych.library.table import writing


def test_a_scan_follows_links_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("album/a.jfif", "album/notes.txt", "other/b.JPE", "other/c.mov", "other/.d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    album = tmp_path / "album"
    (album / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(album)
    notices: list[TriptychError] = []
    listing = scan(album, notices.append)
    assert {*listing.photos} == {str(album / "a.jfif"), str(album / "linked" / "b.JPE")}
    assert all(listing.covers(path) for path in listing.photos)
    assert [str(notice) for notice in notices] == [f"{album}: 2 files left out, not pictures by name: notes.txt, c.mov"]


def test_a_library_within_its_folder_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with writing(tmp_path / "library"):
        (tmp_path / "library" / "photos.lance").mkdir()
        (tmp_path / "library" / "photos.lance" / "0.manifest").touch()
        notices: list[TriptychError] = []
        assert [*scan(tmp_path, notices.append).photos] == [str(tmp_path / "a.jpg")]
    assert not notices
