"""Texts written into photos: the pixels and all other metadata stay, the original is kept, a killed run loses nothing."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_folders import album, run, say_red

from triptych.errors import InputError, TriptychError
from triptych.folders import Journal, PhotoMetadata, Sidecars, Summary, describe_photos, on_this_machine
from triptych.folders import metadata as module
from triptych.folders.pipeline import Description
from triptych.folders.xmp import new_xmp, parse_xmp, set_subjects, subjects, xmp_bytes

pyexiv2 = pytest.importorskip("pyexiv2")

HISTORY = "Xmp.xmpMM.History[{}]/stEvt:{}"


def photo(path: Path, red: int = 7) -> Path:
    """With metadata of other programs."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels[0, 0] = (red, 0, 0)
    Image.fromarray(pixels).save(path)
    with pyexiv2.Image(str(path)) as file:
        file.modify_exif({"Exif.Image.Make": "Nikon", "Exif.Photo.DateTimeOriginal": "2024:05:01 10:00:00"})
        file.modify_xmp({"Xmp.xmp.Rating": "4", "Xmp.dc.subject": ["holiday"]})
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """XMP, EXIF, IPTC."""
    with pyexiv2.Image(str(path)) as file:
        return file.read_xmp(), file.read_exif(), file.read_iptc()


def pixels_of(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def compressed(path: Path) -> bytes:
    """What a JPEG holds from its last start of scan on."""
    data = path.read_bytes()
    return data[data.rindex(b"\xff\xda") :]


def describe(*names: Path, say: Any = say_red, existing: str = "skip", **settings: Any) -> int:
    """Returns the number of failures."""
    sidecars = Sidecars((), existing, metadata=PhotoMetadata("toy", **settings))
    return describe_photos(map(str, names), on_this_machine(say), sidecars=sidecars).failed


def keywords(photos: Sequence[Image.Image]) -> list[Description]:
    return [Description("dog, sea", {}, {"dog": 0.5, "sea": 0.25}) for _ in photos]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_description_is_added_and_all_else_is_kept(tmp_path: Path, suffix: str) -> None:
    path = photo(tmp_path / f"a.{suffix}")
    before, pixels = path.read_bytes(), pixels_of(path)
    scan = compressed(path) if suffix == "jpg" else b""
    path.chmod(0o640)
    assert describe(path) == 0
    xmp, exif, iptc = read(path)
    text = xmp["Xmp.dc.description"]['lang="x-default"']
    assert text.startswith("red ") and exif["Exif.Image.ImageDescription"] == text and iptc == {}
    assert (xmp["Xmp.xmp.Rating"], xmp["Xmp.dc.subject"]) == ("4", ["holiday"])
    assert exif["Exif.Image.Make"] == "Nikon" and exif["Exif.Photo.DateTimeOriginal"] == "2024:05:01 10:00:00"
    assert xmp[HISTORY.format(1, "softwareAgent")].startswith("Triptych ")
    assert xmp[HISTORY.format(1, "parameters")] == "dc:description by toy"
    assert xmp[HISTORY.format(1, "when")][:2] == "20"
    assert pixels_of(path) == pixels and (suffix != "jpg" or compressed(path) == scan)
    assert (tmp_path / f"a.{suffix}.original").read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"a.{suffix}", f"a.{suffix}.original"]


def test_what_is_there_is_skipped_overwritten_or_extended(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    with pyexiv2.Image(str(path)) as file:
        file.modify_xmp({"Xmp.dc.description": {'lang="x-default"': "my dog"}})
    first = path.read_bytes()

    def text() -> str:
        return str(read(path)[0]["Xmp.dc.description"]['lang="x-default"'])

    assert describe(path) == 0 and path.read_bytes() == first
    for _ in range(2):  # a second time adds nothing
        assert describe(path, existing="append") == 0
        assert text() == "my dog red 7"
    assert HISTORY.format(2, "when") not in read(path)[0]
    assert describe(path, existing="overwrite") == 0 and text() == "red 7"
    assert (tmp_path / "a.png.original").read_bytes() == first  # the first one, not a later one


def test_keywords_are_merged(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg")
    assert describe(path, say=keywords, keywords=True) == 0
    assert read(path)[0]["Xmp.dc.subject"] == ["holiday"]  # there are keywords: skipped
    assert describe(path, say=keywords, existing="append", keywords=True, keep_original=False) == 0
    xmp, exif, _ = read(path)
    assert xmp["Xmp.dc.subject"] == ["holiday", "dog", "sea"] and "Exif.Image.ImageDescription" not in exif
    assert "Xmp.dc.description" not in xmp and xmp[HISTORY.format(1, "parameters")] == "dc:subject by toy"
    assert [file.name for file in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(
    "word", ["caf\u00e9\u00a0noir", "\u0915\u094d\u200d\u0937", "\U0001f468\u200d\U0001f467", "\u6771\u3000\u4eac"]
)
def test_a_keyword_keeps_characters_that_are_no_letters(word: str) -> None:
    """A no-break space, a joiner within a letter and within an emoji, a wide space; what XML forbids is left out."""
    root = new_xmp()
    set_subjects(root, [word, "tab\x00le\ud800\uffff"])
    assert subjects(parse_xmp(xmp_bytes(root, declaration=False).decode(), "test")) == [word, "table"]


def test_iptc_is_changed_only_where_it_is(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg")
    with pyexiv2.Image(str(path)) as file:
        file.modify_iptc({"Iptc.Application2.Byline": "Ann", "Iptc.Application2.Keywords": ["holiday"]})
    assert describe(path) == 0
    assert read(path)[2]["Iptc.Application2.Caption"].startswith("red ")
    assert describe(path, say=keywords, existing="overwrite", keywords=True) == 0
    iptc = read(path)[2]
    assert iptc["Iptc.Application2.Keywords"] == ["dog", "sea"] and iptc["Iptc.Application2.Byline"] == ["Ann"]

    def korean(photos: Sequence[Image.Image]) -> list[Description]:
        return [Description("강아지", {}) for _ in photos]

    assert describe(path, say=korean, existing="overwrite") == 0  # IPTC of an unknown encoding stays
    assert read(path)[2]["Iptc.Application2.Caption"].startswith("red ")
    assert read(path)[0]["Xmp.dc.description"]['lang="x-default"'] == "강아지"


def test_what_cannot_be_written_is_named_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bmp"
    Image.new("RGB", (8, 8)).save(path)
    before = path.read_bytes()
    assert describe(path) == 1 and path.read_bytes() == before
    with pytest.raises(InputError, match="JPEG, PNG, WebP and TIFF only"):
        PhotoMetadata("toy").write(str(path), lambda root: None)
    broken = photo(tmp_path / "b.jpg")
    data = broken.read_bytes().replace(b"</rdf:RDF>", b"</rdf:XXX>")
    broken.write_bytes(data)
    assert describe(broken) == 1 and broken.read_bytes() == data
    monkeypatch.setitem(sys.modules, "pyexiv2", None)
    with pytest.raises(InputError, match=r"triptych\[metadata\]"):
        PhotoMetadata("toy")


def test_a_text_that_cannot_be_written_into_the_photo_is_in_the_results(tmp_path: Path) -> None:
    """And no later run computes it again, or forgets that it is not in the photo."""
    path, out = tmp_path / "a.bmp", tmp_path / "out.jsonl"
    Image.new("RGB", (8, 8), (5, 0, 0)).save(path)
    described = list[int]()

    def say(photos: Sequence[Image.Image]) -> list[Description]:
        described.append(len(photos))
        return say_red(photos)

    def describe_into(existing: str) -> tuple[Summary, dict[str, Any]]:
        sidecars = Sidecars((), existing, metadata=PhotoMetadata("toy"))
        journal = Journal(out, {}, None if existing == "skip" else {"run": 1})
        summary = describe_photos([str(path)], on_this_machine(say), journal=journal, sidecars=sidecars)
        (record,) = journal.records()
        return summary, record

    summary, record = describe_into("skip")
    assert record["caption"] == "red 5" and "JPEG, PNG, WebP and TIFF only" in record["error"]
    assert (summary.described, summary.skipped, summary.failed) == (0, 0, 1)
    for _ in range(2):
        summary, record = describe_into("skip")
        assert record["caption"] == "red 5" and (summary.skipped, summary.failed, sum(described)) == (1, 1, 1)
    for _ in range(2):  # interrupted, then continued
        summary, record = describe_into("overwrite")
        assert record["caption"] == "red 5" and (summary.skipped, summary.failed) == (0, 1)


def test_a_full_disk_leaves_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photo(tmp_path / "a.jpg")
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TriptychError, match="disk is full"):
        describe(path)
    assert path.read_bytes() == before


def test_without_links_the_original_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(1, "not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    path = photo(tmp_path / "a.jpg")
    before = path.read_bytes()
    assert describe(path) == 0
    assert (tmp_path / "a.jpg.original").read_bytes() == before


CHILD = """
import sys
from pathlib import Path
from test_folders import say_red
from triptych.folders import Journal, PhotoMetadata, Sidecars, Summary, describe_photos, on_this_machine
names = sorted(map(str, Path(sys.argv[1]).glob("*.png")))
describe_photos(names, on_this_machine(say_red), sidecars=Sidecars(metadata=PhotoMetadata("toy")))
"""


def test_a_killed_run_loses_no_photo(tmp_path: Path) -> None:
    names = [Path(name) for name in album(tmp_path, 60)]
    hashes = {name: hashlib.sha256(name.read_bytes()).digest() for name in names}
    pixels = {name: pixels_of(name) for name in names}
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], env=environment)
        count = len(list(tmp_path.glob("*.original")))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(tmp_path.glob("*.original"))) > count:
                break
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name in names:
            original = name.with_name(name.name + ".original")
            kept = original if original.exists() else name
            assert hashlib.sha256(kept.read_bytes()).digest() == hashes[name] and pixels_of(name) == pixels[name]
    assert subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], env=environment).returncode == 0
    assert all(PhotoMetadata("toy").has_text(str(name)) for name in names)


def test_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = album(tmp_path / "a", 1)
    page = tmp_path / "report.html"
    code, _, said = run(capsys, monkeypatch, "caption", name, "--write-metadata", "--alt-text", str(page))
    assert code == 0 and "1 described" in said and str(page) in said
    assert read(Path(name))[0]["Xmp.dc.description"]['lang="x-default"'] == "red 0"
    assert 'alt="red 0"' in page.read_text() and (tmp_path / "report.html.jsonl").exists()
    out = str(tmp_path / "out.jsonl")
    code, *_ = run(capsys, monkeypatch, "caption", name, "--out", out, "--alt-text", str(page))
    assert code == 0 and 'alt="red 0"' in page.read_text()
    for wrong in (("--no-keep-original",), ("--alt-text", str(tmp_path / "report.pdf"))):
        code, _, said = run(capsys, monkeypatch, "caption", name, "--out", out, *wrong)
        assert code == 2 and wrong[0] in said
