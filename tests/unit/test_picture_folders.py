"""The pictures in folders: told by name, links followed, what is left out counted."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.errors import InputError
from triptych.folders import count_photos
from triptych.io.folders import SUFFIXES, find_images, is_picture_name, walk_folders
from triptych.io.images import PICTURE_FORMATS


def test_find_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt", "c.heic", "d.jfif"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    single, url = tmp_path / "notes.txt", "https://example.org/a.jpg"
    found = find_images([url, tmp_path, str(single)])
    assert found == [url, *(tmp_path / name for name in ("a.png", "b.JPG", "c.heic", "d.jfif")), str(single)]
    assert caplog.messages == [f"{tmp_path}: 1 file left out, not pictures by name: notes.txt"]
    with pytest.raises(InputError, match=r"folder\.png: no pictures"):
        find_images([tmp_path / "folder.png"])
    assert find_images(["no\0such"]) == ["no\0such"]


def test_a_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "blob").touch()
    (tmp_path / "there" / "a.jpg").symlink_to(tmp_path / "blob")
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert find_images([tmp_path / "here"]) == [tmp_path / "here" / "a.jpg"]


def test_many_files_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.txt", "c.mov", "d.svg", "e", ".DS_Store"):
        (tmp_path / name).touch()
    find_images([tmp_path])
    assert caplog.messages == [f"{tmp_path}: 4 files left out, not pictures by name: b.txt, c.mov, d.svg, ..."]


def test_every_suffix_of_the_formats_that_are_read_is_known() -> None:
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*PICTURE_FORMATS, "MPO")}
    assert known - {*SUFFIXES} == {".bw", ".rgb", ".rgba", ".icb", ".vda", ".vst"}  # hardly pictures elsewhere
    assert {".jfif", ".jpe", ".hif", ".apng", ".mpo", ".heic", ".heif", ".dib"} <= {*SUFFIXES}
    assert is_picture_name("A.JPE") and not is_picture_name(".jpg") and not is_picture_name("jpg")


def test_folders_to_describe_count_what_they_leave_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.JFIF", "notes.md", "sub/c.png", "sub/d.mov", "sub/.e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert count_photos([tmp_path]) == 2
    assert count_photos([tmp_path], recursive=True) == 3
    assert caplog.messages == [
        f"{tmp_path}: 1 file left out, not pictures by name: notes.md",
        f"{tmp_path}: 2 files left out, not pictures by name: notes.md, d.mov",
    ]


# Walking down


def walked(root: Path) -> dict[str, list[str]]:
    def fail(error: OSError) -> None:
        raise error

    return {os.path.relpath(place, root): names for place, names in walk_folders(str(root), fail)}


def test_linked_folders_are_walked_and_loops_cut(tmp_path: Path) -> None:
    for name in ("album/a.jpg", "album/sub/b.jpg", "album/.hidden/x.jpg", "album/.y.jpg", "other/deep/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    album = tmp_path / "album"
    (album / "again").symlink_to(album / "sub")  # inside the tree: listed once, under its own name
    (album / "loop").symlink_to(album)
    (album / "sub" / "up").symlink_to("..")
    (album / "above").symlink_to(tmp_path)
    (album / "linked").symlink_to(tmp_path / "other")
    (album / "twice").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "other" / "back").symlink_to(album)
    (tmp_path / "other" / "up").symlink_to(tmp_path)
    (album / "nowhere").symlink_to(tmp_path / "absent")
    assert walked(album) == {
        ".": ["a.jpg", "nowhere"],
        "sub": ["b.jpg"],
        "linked": [],
        "linked/deep": ["c.jpg"],
    }
    (tmp_path / "entry").symlink_to(album)
    assert walked(tmp_path / "entry") == walked(album)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(links=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_any_links_end_and_no_folder_is_listed_twice(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[int, int]]
) -> None:
    base = tmp_path_factory.mktemp("links")
    root = base / "root"
    folders = [root, root / "a", root / "a" / "b", root / "c", base / "outside", base / "outside" / "d"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x.jpg").touch()
    for i, (place, target) in enumerate(links):
        (folders[place] / f"link{i}").symlink_to(folders[target])
    found = [os.path.realpath(place) for place, _ in walk_folders(str(root), lambda error: None)]
    assert len(found) == len(set(found))
    assert set(map(str, folders[:4])) <= set(found)
    if any(place < 4 and target == 4 for place, target in links):
        assert set(map(str, folders)) == set(found)
