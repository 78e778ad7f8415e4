"""Hostile and damaged pictures: bounds on what they cost, one line of InputError for what cannot be read."""

import base64
import logging
import os
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pictures import NOISE, PNG, SMOOTH, encoded, pixels, png_chunks, refusal
from PIL import Image

from triptych.errors import InputError
from triptych.io import limits
from triptych.io.images import load_image

# Bounds and damage


def header_only(kind: str, width: int, height: int) -> bytes:
    if kind == "PNG":
        return png_chunks(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), bytes(1000))
    if kind == "BMP":
        return (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99)
        )
    if kind == "GIF":
        frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
        return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame + b"\x02\x02L\x01\0;"
    if kind == "PPM":
        return b"P6 %d %d 255\n" % (width, height) + bytes(99)
    if kind == "JPEG":
        data = bytearray(encoded(Image.fromarray(SMOOTH), "JPEG"))
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
        return bytes(data)
    if kind == "WEBP":
        data = bytearray(encoded(Image.fromarray(NOISE), "WEBP", lossless=True))
        at = data.index(b"VP8L") + 9
        bits = (width - 1) | (height - 1) << 14
        struct.pack_into("<I", data, at, bits & 0xFFFFFFF)
        return bytes(data)
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 100))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("kind", "width", "height"), [
    ("PNG", 2**31 - 1, 2**31 - 1), ("PNG", 65_501, 1), ("PNG", 14_143, 14_142), ("BMP", 2**31 - 1, 2**30),
    ("GIF", 65_535, 65_535), ("PPM", 10**9, 10**9), ("JPEG", 65_500, 65_500), ("WEBP", 16_384, 16_384),
    ("TIFF", 2**32 - 1, 2**32 - 1), ("TIFF", 2**31, 1),
])  # fmt: skip
def test_huge_sizes_are_refused_from_the_header(kind: str, width: int, height: int) -> None:
    start = time.perf_counter()
    message = refusal(header_only(kind, width, height))
    assert "too large" in message
    assert time.perf_counter() - start < 1


def test_size_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS", 17 * 13)
    assert np.array_equal(pixels(PNG), NOISE)
    monkeypatch.setattr(limits, "MAX_PIXELS", 17 * 13 - 1)
    assert "too large" in refusal(PNG)
    assert "17 x 13" in refusal(Image.fromarray(NOISE))


def test_pillows_own_limit_and_filters_are_restored() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    big = header_only("PNG", 14_000, 14_000)  # within our bound, though Pillow itself would refuse it
    assert "damaged" in refusal(big)
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(20):
            load_image(PNG)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", len(PNG))
    assert np.array_equal(pixels(PNG), NOISE)
    monkeypatch.setattr(limits, "MAX_BYTES", len(PNG) - 1)
    (tmp_path / "a.png").write_bytes(PNG)
    for source in (PNG, tmp_path / "a.png", "data:;base64," + base64.b64encode(PNG).decode()):
        assert "larger than" in refusal(source)
    assert "larger than" in refusal("data:," + "a" * 5 * len(PNG))


def test_jpeg_with_too_many_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG", progressive=True)
    monkeypatch.setattr(limits, "MAX_SCANNED_PIXELS", 3 * 32 * 48)
    assert "scans" in refusal(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_cut_short(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    file = tmp_path / "half.img"
    file.write_bytes(data[: len(data) // 2])
    message = refusal(file)
    assert message.startswith(f"{file}: ") and "damaged" in message


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not a photo")
    assert refusal(text).startswith(f"{text}: not a picture")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert refusal(empty) == f"{empty}: is empty"
    assert refusal(b"") == "bytes: is empty"
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "none.jpg")
    assert "valid path" in refusal("a\0b.jpg")
    assert "too long" in refusal("a" * 5000)
    assert len(refusal("a" * 5000)) < 400
    assert "only file:" in refusal("ftp://example.org/a.jpg")
    assert "this machine" in refusal("file://elsewhere/a.jpg")
    assert "base64" in refusal("data:image/png;base64,@@@@")
    assert "comma" in refusal("data:image/png")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    assert "not a picture" in refusal(eps)  # Pillow would start Ghostscript
    assert "not a picture" in refusal(encoded(Image.fromarray(SMOOTH), "ICO"))  # holds files of other formats


def test_pipes_and_devices(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for source in (pipe, "/dev/zero"):
        assert "pipe or a device" in refusal(source)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "locked.png"
    file.write_bytes(PNG)
    file.chmod(0)
    if os.access(file, os.R_OK):  # root may read everything

        def locked(*_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", locked)
    assert refusal(file) == f"{file}: no permission to read this file"


def test_a_name_with_control_characters_stays_on_one_line(tmp_path: Path) -> None:
    name = "a\nTraceback\r\x1b[31m\u2028\u202eb\udcff.jpg"
    (tmp_path / name).write_bytes(b"x")
    for source in (tmp_path / name, str(tmp_path / ("no" + name)), "ftp://" + name):
        assert "\\nTraceback" in refusal(source)
    assert "\\nTraceback" in refusal(tmp_path / name)


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    assert "not enough memory" in refusal(Image.fromarray(NOISE))


def test_pillows_log_stays_off_stderr(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a program that has not set up logging
    many = header_only("TIFF", 4, 4).replace(struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 277, 4, 1, 9999))
    refusal(many)
    assert capfd.readouterr() == ("", "")


# Fuzzing


def with_metadata(jpeg: bytes) -> bytes:
    segments = ((0xE2, b"ICC_PROFILE\0\1\1" + bytes(30)), (0xED, b"Photoshop 3.0\0" + bytes(9)), (0xFE, b"comment"))
    written = (b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return jpeg[:2] + b"".join(written) + jpeg[2:]


FILES = [
    encoded(Image.fromarray(SMOOTH), "JPEG"),
    encoded(
        Image.fromarray(SMOOTH),
        "JPEG",
        progressive=True,
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06",
    ),
    PNG,
    encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
    encoded(Image.fromarray(NOISE).quantize(16), "PNG", transparency=3),
    encoded(Image.fromarray(NOISE), "GIF", save_all=True, append_images=[Image.fromarray(NOISE[::-1])]),
    encoded(Image.fromarray(NOISE), "WEBP", lossless=True),
    encoded(Image.fromarray(SMOOTH), "WEBP"),
    encoded(Image.fromarray(NOISE), "BMP"),
    encoded(Image.fromarray(NOISE[..., 0] > 127), "BMP"),
    encoded(Image.fromarray(NOISE), "TIFF"),
    encoded(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(NOISE), "TIFF", compression="tiff_adobe_deflate"),
    encoded(Image.fromarray(NOISE), "JPEG2000"),
    *(encoded(Image.fromarray(NOISE), kind) for kind in ("PPM", "QOI", "SGI", "PCX", "DIB", "TGA")),
    encoded(Image.fromarray(NOISE), "TGA", compression="tga_rle"),
    encoded(Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[Image.fromarray(SMOOTH)]),
    with_metadata(encoded(Image.fromarray(SMOOTH), "JPEG")),
]
FUZZ = settings(max_examples=250, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True)


def check_hostile(data: bytes) -> None:
    try:
        image = load_image(data)
    except InputError as error:
        assert str(error).startswith("bytes: ") and str(error).isprintable()
    else:
        assert image.mode == "RGB" and min(image.size) > 0
        assert image.width * image.height <= limits.MAX_PIXELS


@pytest.fixture
def small_bounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # else a flipped bit in a size costs seconds and gigabytes, rightly
        patch.setattr(limits, "MAX_PIXELS", 4_000_000)
        yield


@pytest.mark.usefixtures("small_bounds")
@FUZZ
@given(
    prefix=st.sampled_from([b"", *(data[:size] for data in FILES for size in (4, 12))]), tail=st.binary(max_size=300)
)
@example(prefix=b"", tail=b"\0")
def test_fuzz_random_bytes(prefix: bytes, tail: bytes) -> None:
    check_hostile(prefix + tail)


@pytest.mark.usefixtures("small_bounds")
@FUZZ
@given(
    data=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    early=st.booleans(),
    keep=st.floats(0, 1),
    cut=st.booleans(),
)
def test_fuzz_damaged_files(data: bytes, changes: list[tuple[float, int]], early: bool, keep: float, cut: bool) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * (min(200, len(data)) if early else len(data)))] = value
    check_hostile(bytes(damaged[: int(len(data) * keep)] if cut else damaged))


@pytest.mark.usefixtures("small_bounds")
@FUZZ
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]),
    width=st.integers(0, 2**31 - 1),
    height=st.integers(0, 2**31 - 1),
)
def test_fuzz_huge_headers(kind: str, width: int, height: int) -> None:
    top = {"JPEG": 2**16, "GIF": 2**16, "WEBP": 2**14}.get(kind, 2**31)
    check_hostile(header_only(kind, width % top or 1, height % top or 1))
