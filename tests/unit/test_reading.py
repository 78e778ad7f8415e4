"""One damaged photo in a long run is named, left out and counted."""

from pathlib import Path

import pytest
from PIL import Image

from triptych.data import Photo
from triptych.data.reading import PhotoReader
from triptych.errors import InputError


def photos(folder: Path, damaged: set[int], count: int = 5) -> list[Photo]:
    made = []
    for i in range(count):
        path = folder / f"{i}.png"
        if i in damaged:
            path.write_bytes(b"not a picture")
        else:
            Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(path)
        made.append(Photo(str(i), "train", (), {}, path))
    return made


def test_damaged_photos_are_named_left_out_and_counted(tmp_path: Path) -> None:
    notices: list[str] = []
    reader = PhotoReader(notice=notices.append)
    given = photos(tmp_path, {1, 3})
    (tmp_path / "4.png").unlink()
    found = [(photo.id, image.getpixel((0, 0))) for photo, image in reader.images(given)]
    assert found == [("0", (0, 0, 0)), ("2", (80, 0, 0))]
    assert [photo.id for photo in reader.readable(given)] == ["0", "2"]
    assert len(notices) == 3  # once each, however often they are met
    for i, notice in zip((1, 3, 4), notices, strict=True):
        assert notice.startswith(f"left out: {tmp_path / f'{i}.png'}: ")
    summary = reader.summary()
    assert summary is not None and summary.startswith("3 photos were left out") and "1.png" in summary


def test_strict_stops_at_the_first(tmp_path: Path) -> None:
    reader = PhotoReader(strict=True)
    read = []
    with pytest.raises(InputError, match=r"2\.png"):
        read += [photo.id for photo, _ in reader.images(photos(tmp_path, {2}))]
    assert PhotoReader(strict=True).readable(photos(tmp_path, set())) != []


def test_nothing_to_say_where_all_is_well(tmp_path: Path) -> None:
    reader = PhotoReader(notice=lambda text: pytest.fail(text))
    assert len(reader.readable(photos(tmp_path, set()))) == 5
    assert reader.summary() is None
    assert reader.readable([]) == []


def test_a_run_without_one_readable_photo_fails(tmp_path: Path) -> None:
    reader = PhotoReader(notice=lambda text: None)
    with pytest.raises(InputError, match=r"none of the 3 photos can be read; .*0\.png"):
        reader.readable(photos(tmp_path, {0, 1, 2}, 3))


def test_by_default_notices_are_log_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PhotoReader().readable(photos(tmp_path, {0}))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
