"""The photo library: what is embedded and when, that nothing is lost, and what is found. The model is random projections of pixels."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from triptych.cli import main
from triptych.errors import InputError, TriptychError
from triptych.io.images import load_image
from triptych.library import Library, Report, as_matcher, find, index_photos, open_library, scan
from triptych.library import index as index_module

QUERIES, WIDTH = 4, 64


def picture(name: str) -> Image.Image:
    """A picture that its name decides."""
    pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Score:
    image: int
    text: int
    itc_cosine: float
    itm_prob: float
    rerank: float


class RandomModel:
    """The text that fits a picture is its name. ``death`` happens from photo number ``dies_at`` on."""

    def __init__(self, fingerprint: str = "random", dies_at: int = 0, death=None) -> None:
        self.fingerprint, self.dies_at, self.death = fingerprint, dies_at, death
        self.embedded = 0
        self.weights = np.random.default_rng(0).standard_normal((6 * 6 * 3, QUERIES * WIDTH)).astype(np.float32)

    def itc_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        small = np.stack([np.asarray(image.resize((6, 6)), np.float32) for image in images])
        features = ((small - 128) / 128).reshape(len(images), -1) @ self.weights
        features = features.reshape(len(images), QUERIES, WIDTH)
        if images[0].size != (64, 64):  # not the one that only tells the shape
            self.embedded += len(images)
            if self.dies_at and self.embedded >= self.dies_at:
                self.death()
        return features / (np.linalg.norm(features, axis=-1, keepdims=True) + 1e-6)

    def unknown_texts(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if not text.isascii()]

    def itc_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return RandomModel().itc_images([picture(text) for text in texts])[:, 1]

    def search_features(self, images: Sequence[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.itc_images(images), np.zeros((len(images), 0), np.float32)

    def similarity_of_features(self, itc_images: Any, pooled: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        raise AssertionError("a library without pooled features is searched by contrast alone")

    def presence_logits(self, images: Sequence[Image.Image], things: Sequence[str]) -> NDArray[np.float32]:
        return np.full((len(images), len(things)), np.nan, np.float32)

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Score]:
        cosines = (RandomModel().itc_images([*map(load_image, images)]) @ self.itc_texts(texts).T).max(1)
        return [
            Score(i, t, float(c), float(c) / 2, float(c) * 3)
            for i, row in enumerate(cosines)
            for t, c in enumerate(row)
        ]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Twelve photos, four of them in a folder below."""
    folder = tmp_path / "album"
    (folder / "2024").mkdir(parents=True)
    for n in range(12):
        put(folder / ("2024" if n % 3 == 0 else "") / f"{n}.png")
    return folder


def put(path: Path, name: str | None = None) -> Path:
    picture(name or path.stem).save(path)
    return path


def fail(error: TriptychError) -> None:
    raise AssertionError(f"unexpected notice: {error}")


def index(folder: Path, library: Path, model: RandomModel | None = None, notice=fail) -> Report:
    return index_photos(scan(folder, notice), library, model or RandomModel(), notice)


def counts(report: Report) -> tuple[int, ...]:
    return report.photos, report.added, report.changed, report.moved, report.removed, report.skipped


def best(library: Path, text: str) -> str:
    return Path(find(open_library(library), RandomModel(), text, 1, notice=fail)[0].path).name


def test_each_photo_is_found_by_its_own_text(album: Path, tmp_path: Path) -> None:
    report = index(album, tmp_path / "library")
    assert counts(report) == (12, 12, 0, 0, 0, 0)
    library = open_library(tmp_path / "library")
    for n in range(12):
        found = find(library, RandomModel(), str(n), 5, notice=fail)
        assert Path(found[0].path) == album / ("2024" if n % 3 == 0 else "") / f"{n}.png"
        assert found[0].itc_cosine == pytest.approx(1, abs=1e-3)
        assert [one.rank for one in found] == [1, 2, 3, 4, 5]
        assert sorted((one.score for one in found), reverse=True) == [one.score for one in found]
    assert len(find(library, RandomModel(), "0", 100, notice=fail)) == 12


def test_only_what_is_new_is_embedded(album: Path, tmp_path: Path) -> None:
    library, model = tmp_path / "library", RandomModel()
    index(album, library, model)
    assert counts(index(album, library, model)) == (12, 0, 0, 0, 0, 0)
    os.utime(album / "1.png", (1, 1))  # touched, not changed
    assert counts(index(album, library, model)) == (12, 0, 0, 0, 0, 0)
    (album / "2.png").rename(album / "2024" / "two.png")
    (album / "copy of 4.png").write_bytes((album / "4.png").read_bytes())
    (album / "5.png").unlink()
    assert counts(index(album, library, model)) == (12, 1, 0, 1, 1, 0)
    assert model.embedded == 12
    put(album / "7.png", "something else")
    put(album / "new.png")
    assert counts(index(album, library, model)) == (13, 1, 1, 0, 0, 0)
    assert model.embedded == 14
    assert best(library, "something else") == "7.png"
    assert best(library, "2") == "two.png"
    assert best(library, "new") == "new.png"
    assert {Path(path).name for path in open_library(library).paths}.isdisjoint({"2.png", "5.png"})


def test_two_photos_that_change_places(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "INDEX_BATCH", 1)
    index(album, tmp_path / "library")
    put(album / "1.png", "2"), put(album / "2.png", "1")
    assert counts(index(album, tmp_path / "library")) == (12, 0, 2, 0, 0, 0)
    assert (best(tmp_path / "library", "1"), best(tmp_path / "library", "2")) == ("2.png", "1.png")


def test_a_folder_that_moved_and_a_second_folder(album: Path, tmp_path: Path) -> None:
    library, model = tmp_path / "library", RandomModel()
    index(album, library, model)
    moved = album.rename(tmp_path / "elsewhere")
    assert counts(index(moved, library, model)) == (12, 0, 0, 12, 0, 0)
    assert model.embedded == 12
    (tmp_path / "elsewhere 2").mkdir()
    put(tmp_path / "elsewhere 2" / "other.png")
    assert counts(index(tmp_path / "elsewhere 2", library, model)) == (13, 1, 0, 0, 0, 0)
    (moved / "2024" / "0.png").unlink()
    (moved / "1.png").unlink()
    assert counts(index(moved / "2024", library, model)) == (12, 0, 0, 0, 1, 0)  # looks at nothing outside 2024


def test_what_cannot_be_read_is_left_out_and_tried_again(album: Path, tmp_path: Path) -> None:
    library, notices = tmp_path / "library", []
    (album / "0.jpg").write_text("not a picture")
    (album / "link.jpg").symlink_to("nowhere")
    os.mkfifo(album / "pipe.jpg")
    assert counts(index(album, library, notice=notices.append)) == (12, 12, 0, 0, 0, 1)
    assert [str(error).count("0.jpg") for error in notices] == [1]
    (album / "1.png").write_text("spoilt")  # what it was is no longer there to be found
    put(album / "0.jpg", "mended")
    assert counts(index(album, library, notice=notices.append)) == (12, 1, 0, 0, 0, 1)
    assert best(library, "mended") == "0.jpg"
    assert not any(path.endswith("/1.png") for path in open_library(library).paths)


def test_photos_of_a_closed_folder_stay(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[TriptychError] = []
    index(album, tmp_path / "library")
    real = os.scandir

    def scandir(folder: str) -> object:
        if Path(folder) in closed:
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = [album / "2024"]
    (album / "1.png").unlink()
    assert counts(index(album, tmp_path / "library", notice=notices.append)) == (11, 0, 0, 0, 1, 0)
    assert len(notices) == 1
    closed = [album]
    with pytest.raises(InputError, match="cannot list this folder: Permission denied"):
        scan(album, fail)


def test_hidden_files_are_left_out_and_names_may_be_bytes(album: Path, tmp_path: Path) -> None:
    put(album / ".hidden.png")
    (album / ".trash").mkdir()
    put(album / ".trash" / "gone.png")
    odd = put(album / "it's.png", "odd").rename(os.fsdecode(os.fsencode(album) + b"/it's \xff.png"))
    assert index(album, tmp_path / "library").photos == 13
    assert best(tmp_path / "library", "odd") == odd.name
    odd.unlink()
    assert counts(index(album, tmp_path / "library")) == (12, 0, 0, 0, 1, 0)


def test_an_interruption_costs_one_batch(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "INDEX_BATCH", 5)

    def death() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index(album, tmp_path / "library", RandomModel(dies_at=11, death=death))
    assert len(open_library(tmp_path / "library").paths) == 10
    model = RandomModel()
    assert counts(index(album, tmp_path / "library", model)) == (12, 2, 0, 0, 0, 0)
    assert model.embedded == 2


def test_a_killed_process_costs_one_batch(album: Path, tmp_path: Path) -> None:
    child = (
        "import os, signal, sys; from pathlib import Path; import test_library as t; t.index_module.INDEX_BATCH = 5\n"
        "model = t.RandomModel(dies_at=11, death=lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        "t.index(Path(sys.argv[1]), Path(sys.argv[2]), model)"
    )
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", child, str(album), str(tmp_path / "library")]
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    model = RandomModel()
    assert counts(index(album, tmp_path / "library", model)) == (12, 2, 0, 0, 0, 0)
    assert model.embedded == 2
    assert len(set(open_library(tmp_path / "library").paths)) == 12


def test_reading_while_indexing(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading is of whole batches, and none fails, also while the pieces are joined."""
    monkeypatch.setattr(index_module, "INDEX_BATCH", 2)
    library = tmp_path / "library"
    index(album / "2024", library)
    seen: list[int] = []
    done, fresh = threading.Event(), threading.Event()

    def wait_for_reader() -> None:
        fresh.clear()
        fresh.wait(10)

    def read() -> None:
        while not done.is_set():
            opened = open_library(library)
            assert np.allclose(np.linalg.norm(opened.features, axis=-1), 1, atol=1e-2)
            seen.append(len(opened.paths))
            fresh.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(2):
            for n in range(12, 32):
                put(album / f"{n}.png", f"{version} of {n}")
            index(album, library, RandomModel(dies_at=1, death=wait_for_reader))
    finally:
        done.set()
        reader.join()
    assert seen == sorted(seen)
    assert set(seen) <= set(range(4, 33, 2))
    assert len(set(seen)) > 3


def test_one_writer_at_a_time(album: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"

    def another() -> None:
        with pytest.raises(TriptychError, match="another process is indexing"):
            index(album, library)

    assert index(album, library, RandomModel(dies_at=1, death=another)).photos == 12


def test_what_is_no_library_is_refused(album: Path, tmp_path: Path) -> None:
    library, empty = tmp_path / "library", tmp_path / "empty"
    empty.mkdir()
    for missing in (library, empty, album / "1.png"):
        with pytest.raises(InputError, match="triptych index DIR"):
            open_library(missing)
    with pytest.raises(InputError, match="a library is a folder"):
        index(album, album / "1.png")
    with pytest.raises(InputError, match="no photos in this folder"):
        index(empty, library)
    with pytest.raises(InputError, match="no such folder"):
        index(album / "1.png", library)
    (empty / "1.png").write_text("not a picture")
    with pytest.raises(InputError, match="none of its 1 photos can be read"):
        index(empty, library, notice=str)
    with pytest.raises(InputError, match="holds no photos yet"):
        open_library(library)


def test_a_library_of_another_model_or_version(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    index(album, library)
    with pytest.raises(InputError, match="another model"):
        index(album, library, RandomModel("other"))
    with pytest.raises(InputError, match="another model"):
        find(open_library(library), RandomModel("other"), "1", notice=fail)
    monkeypatch.setattr("triptych.library.table.LIBRARY_FORMAT", "3")
    with pytest.raises(InputError, match="another version"):
        index(album, library)
    with pytest.raises(InputError, match="another version"):
        open_library(library)
    for file in (library / "photos.lance" / "_versions").iterdir():
        file.write_bytes(b"spoilt")
    with pytest.raises(InputError, match="damaged"):
        open_library(library)


def test_without_lancedb(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(TriptychError, match=re.escape("pip install 'triptych[library]'")):
        index(album, tmp_path / "library")


@pytest.fixture
def opened(album: Path, tmp_path: Path) -> Library:
    index(album, tmp_path / "library")
    return open_library(tmp_path / "library")


@pytest.mark.parametrize(("text", "k", "candidates"), [("", 1, None), (" \n", 1, None), ("a", 0, None), ("a", 5, 4)])
def test_bounds(opened: Library, text: str, k: int, candidates: int | None) -> None:
    with pytest.raises(InputError):
        find(opened, RandomModel(), text, k, candidates, notice=fail)


def test_candidates_are_ranked_again(opened: Library) -> None:
    """A re-ranking that turns the order round does so among the candidates alone."""

    class Contrary(RandomModel):
        def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Score]:
            return [replace(score, rerank=-score.rerank) for score in super().match(images, texts)]

    usual = [one.path for one in find(opened, RandomModel(), "3", 4, 4, notice=fail)]
    assert [one.path for one in find(opened, Contrary(), "3", 4, 4, notice=fail)] == usual[::-1]


def test_photos_that_vanished_give_way_to_the_next(opened: Library) -> None:
    notices: list[TriptychError] = []
    usual = [one.path for one in find(opened, RandomModel(), "3", 6, 6, notice=fail)]
    Path(usual[0]).unlink()
    Path(usual[2]).unlink()
    found = find(opened, RandomModel(), "3", 4, 4, notice=notices.append)
    assert [one.path for one in found] == [usual[1], *usual[3:]]
    assert len(notices) == 1
    assert "left out 2 photos" in str(notices[0])
    for path in opened.paths:
        Path(path).unlink(missing_ok=True)
    with pytest.raises(InputError, match="none of its photos can be read"):
        find(opened, RandomModel(), "3", notice=fail)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["triptych", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_commands(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("triptych.tasks.load", lambda model, **_: RandomModel() if model == "blip2" else object())
    (album / "0.jpg").write_text("not a picture")
    library = tmp_path / "library"
    assert run(monkeypatch, "index", album, "--library", library, "--json") == 2  # a photo was left out
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert list(record) == ["library", "photos", "added", "changed", "moved", "removed", "skipped", "seconds"]
    assert (record["library"], record["photos"], record["skipped"]) == (str(library), 12, 1)
    assert captured.err.count("0.jpg") == 1

    sheet = ("--sheet", tmp_path / "s.html", "--at-least", 0)
    assert run(monkeypatch, "find", "5", "--library", library, "-k", 3, "--json", *sheet) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["rank"] for record in records] == [1, 2, 3]
    assert records[0]["path"] == str(album / "5.png")
    assert set(records[0]) == {"path", "score", "itc_cosine", "itm_prob", "probability", "rank"}
    assert (tmp_path / "s.html").read_text().count("data:image/jpeg") == 3

    (album / "5.png").unlink()
    assert run(monkeypatch, "find", "5", "--library", library, "-k", 3, "--json") == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3 and "left out 1 photo that cannot be read" in captured.err

    for arguments in (
        ["index", tmp_path / "none", "--library", library],
        ["index", album, "--library", library, "--model", "sat"],
        ["find", "5", "--library", tmp_path / "none"],
        ["find", "5", "--library", library, "-k", 0],
        ["find", " ", "--library", library],
        ["find", "5", "--library", library, "--model", "sat"],
    ):
        assert run(monkeypatch, *arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("triptych: ")
        assert captured.err.count("\n") == 1


def test_what_is_a_matcher() -> None:
    assert as_matcher(RandomModel(), "blip2").fingerprint == "random"
    with pytest.raises(InputError, match="cannot match"):
        as_matcher(object(), "sat")
