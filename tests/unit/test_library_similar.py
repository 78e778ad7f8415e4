"""What is like a photo, what is there twice, and how likely a photo is meant. The model is random projections of pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_library import RandomModel, fail, index, picture, put, run

from triptych.errors import InputError, TriptychError
from triptych.io.images import capture_time
from triptych.library import SheetPhoto, find, find_duplicates, open_library, sheet_page, similar_photos
from triptych.library.similar import connected


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Eight photos, one of them twice."""
    folder = tmp_path / "album"
    folder.mkdir()
    for n in range(8):
        put(folder / f"{n}.png")
    put(folder / "copy of 3.png", "3")
    return folder


def shoot(path: Path, name: str, time: str, shift: int = 0, scale: int = 64) -> None:
    """A JPEG with a time; ``shift`` makes the pixels other than those of the same name, but not what they show."""
    pixels = np.asarray(picture(name).resize((scale, scale), Image.Resampling.NEAREST), np.int16)
    noise = np.random.default_rng(shift).integers(-60, 61, pixels.shape) if shift else np.zeros(pixels.shape)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = time
    exif.get_ifd(0x8769)[0x9291] = "25"
    image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    image.save(path, quality=95, exif=exif)


def test_a_photo_is_most_like_itself(album: Path, tmp_path: Path) -> None:
    index(album, tmp_path / "library")
    library = open_library(tmp_path / "library")
    similar = similar_photos(library, RandomModel(), str(album / "3.png"), 4, notice=fail)
    assert {Path(one.path).name for one in similar[:2]} == {"3.png", "copy of 3.png"}
    assert similar[0].similarity == pytest.approx(1, abs=1e-3) and similar[2].similarity < 0.9
    assert [one.rank for one in similar] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="another model"):
        similar_photos(library, RandomModel("other"), str(album / "3.png"), notice=fail)
    with pytest.raises(InputError, match="k is 0"):
        similar_photos(library, RandomModel(), str(album / "3.png"), 0, notice=fail)


def test_copies_near_duplicates_and_bursts(album: Path, tmp_path: Path) -> None:
    shoot(album / "a1.jpg", "a", "2024:05:01 10:00:00")
    shoot(album / "a1 small.jpg", "a", "2024:05:01 10:00:00", scale=48)
    shoot(album / "b1.jpg", "b", "2024:05:01 10:00:00")
    shoot(album / "b2.jpg", "b", "2024:05:01 10:00:02", shift=1)
    shoot(album / "b3.jpg", "b", "2024:05:01 10:00:04", shift=2)
    shoot(album / "b9.jpg", "b", "2024:05:01 11:00:00", shift=3)
    index(album, tmp_path / "library")
    done: list[int] = []
    groups = find_duplicates(open_library(tmp_path / "library"), fail, done.append)
    names = [(group.kind, [Path(path).name for path in group.paths]) for group in groups]
    assert ("exact", ["3.png", "copy of 3.png"]) in names
    assert ("near", ["a1 small.jpg", "a1.jpg"]) in names
    assert ("burst", ["b1.jpg", "b2.jpg", "b3.jpg"]) in names
    assert not any("b9.jpg" in paths and kind == "burst" for kind, paths in names)
    assert sum(done) == 14  # the copy is not compared again
    assert all((album / name).exists() for name in ("3.png", "copy of 3.png"))


def test_a_photo_that_has_gone_is_named(album: Path, tmp_path: Path) -> None:
    shoot(album / "a1.jpg", "a", "2024:05:01 10:00:00")
    shoot(album / "a2.jpg", "a", "2024:05:01 10:00:00", scale=48)
    index(album, tmp_path / "library")
    (album / "a2.jpg").unlink()
    notices: list[TriptychError] = []
    kinds = [group.kind for group in find_duplicates(open_library(tmp_path / "library"), notices.append)]
    assert kinds == ["exact"] and "a2.jpg" in str(notices[0])


def test_photos_that_have_gone_are_neither_similar_nor_copies(album: Path, tmp_path: Path) -> None:
    """Who deletes copies must not be offered one that is gone."""
    index(album, tmp_path / "library")
    library = open_library(tmp_path / "library")
    copy = album / "copy of 3.png"
    copy.unlink()
    notices: list[TriptychError] = []
    assert not any("copy" in path for group in find_duplicates(library, notices.append) for path in group.paths)
    similar = similar_photos(library, RandomModel(), str(album / "3.png"), 9, notice=notices.append)
    assert [one.rank for one in similar] == list(range(1, 9)) and str(copy) not in [one.path for one in similar]
    page = sheet_page("photos", [SheetPhoto(str(path), 1, "") for path in (album / "3.png", copy)], notices.append)
    assert page.count("data:image/jpeg") == 1
    assert len(notices) == 3 and all("1 photo that cannot be read" in str(notice) for notice in notices)


def test_groups_join_and_remember_their_weakest_link() -> None:
    links = [(1, 2, 0.9), (5, 6, 0.8), (3, 4, 0.7), (2, 3, 0.95)]
    assert sorted(connected(links)) == [([1, 2, 3, 4], 0.7), ([5, 6], 0.8)]


def test_the_time_of_capture(tmp_path: Path) -> None:
    shoot(tmp_path / "a.jpg", "a", "2024:05:01 10:00:02")
    taken = capture_time((tmp_path / "a.jpg").read_bytes())
    assert taken is not None and taken.isoformat() == "2024-05-01T10:00:02.250000"
    shoot(tmp_path / "b.jpg", "a", "0000:00:00 00:00:00")
    assert capture_time((tmp_path / "b.jpg").read_bytes()) is None
    assert capture_time(b"no picture") is None


def test_unlikely_photos_are_left_out(album: Path, tmp_path: Path) -> None:
    index(album, tmp_path / "library")
    library = open_library(tmp_path / "library")
    everything = find(library, RandomModel(), "5", notice=fail)
    assert len(everything) == 9 and everything[0].probability > 2 * everything[1].probability
    likely = find(library, RandomModel(), "5", at_least=everything[0].probability - 0.01, notice=fail)
    assert [one.path for one in likely] == [everything[0].path]
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="probability"):
            find(library, RandomModel(), "5", at_least=wrong, notice=fail)


def test_commands(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("triptych.tasks.load", lambda model, **_: RandomModel())
    library, sheet = tmp_path / "library", tmp_path / "sheet.html"
    assert run(monkeypatch, "index", album, "--library", library) == 0
    capsys.readouterr()

    assert run(monkeypatch, "find", "--like", album / "5.png", "--library", library, "-k", 1, "--sheet", sheet) == 0
    assert capsys.readouterr().out == f"1.000  {album / '5.png'}\n"
    assert "Photos like 5.png" in sheet.read_text()

    assert run(monkeypatch, "find", "--duplicates", "--library", library, "--json", "--sheet", sheet) == 0
    (group,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert group == {"kind": "exact", "similarity": 1.0, "paths": [str(album / n) for n in ("3.png", "copy of 3.png")]}
    assert sheet.read_text().count("data:image/jpeg") == 2

    assert run(monkeypatch, "find", "5", "--library", library, "--sheet", sheet) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) < 9  # a sheet shows likely photos only
    assert run(monkeypatch, "find", "5", "--library", library, "--at-least", "0.9999999") == 0
    assert "no photo reaches a probability of 0.9999999" in capsys.readouterr().err

    for wrong in (
        ["find", "--library", library],
        ["find", "5", "--duplicates", "--library", library],
        ["find", "--like", album / "5.png", "--at-least", "0.5", "--library", library],
    ):
        assert run(monkeypatch, *wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
