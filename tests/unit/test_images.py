"""Pictures of every kind, and hostile bytes: an upright RGB image with the right pixels, or one line of InputError."""

import base64
import io
import logging
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote_from_bytes

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from triptych.errors import InputError
from triptych.io import images
from triptych.io.images import content_hash, find_images, load_image, pixel_values

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
NOISE_A = RNG.integers(0, 256, (13, 17, 4), dtype=np.uint8)
SMOOTH = np.stack(
    [
        np.tile(np.linspace(20, 230, 48), (32, 1)),
        np.tile(np.linspace(200, 40, 32)[:, None], (1, 48)),
        np.full((32, 48), 90),
    ],
    axis=-1,
).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: images.ImageSource) -> npt.NDArray[np.uint8]:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(source: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_image(source)
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def over_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def close(a: npt.NDArray[Any], b: npt.NDArray[Any], levels: float) -> bool:
    return a.shape == b.shape and bool(np.abs(a.astype(float) - b.astype(float)).max() <= levels)


PNG = encoded(Image.fromarray(NOISE), "PNG")


# Where a picture comes from


def test_paths(tmp_path: Path) -> None:
    file = tmp_path / "a photo #1%.png"
    file.write_bytes(PNG)
    for source in (file, str(file), file.as_uri(), file.as_uri().replace("file:///", "FILE://localhost/")):
        assert np.array_equal(pixels(source), NOISE)


def test_bytes_and_data_urls() -> None:
    base64_text = base64.b64encode(PNG).decode()
    for source in (
        PNG,
        f"data:image/png;base64,{base64_text}",
        f"DATA:;BASE64,{base64_text.rstrip('=')}",
        f"data:image/png;base64,{base64_text.replace('+', '%2B')[:60]}\n{base64_text.replace('+', '%2B')[60:]}",
        f"data:image/png,{quote_from_bytes(PNG)}",
    ):
        assert np.array_equal(pixels(source), NOISE)


def test_result_is_the_callers_own() -> None:
    original = Image.fromarray(NOISE)
    load_image(original).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(original), NOISE)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (NOISE, NOISE),
        (NOISE[::-1, ::2], NOISE[::-1, ::2]),
        (NOISE[..., 0], NOISE[..., [0, 0, 0]]),
        (NOISE[..., :1], NOISE[..., [0, 0, 0]]),
        (NOISE.astype(np.uint16) * 257, NOISE),
        ((NOISE.astype(np.uint16) * 257).astype(">u2"), NOISE),
        ((NOISE / 255).astype(np.float32), NOISE),
        (NOISE / 255, NOISE),
        (NOISE > 127, (NOISE > 127) * np.uint8(255)),
        (NOISE[..., 0] > 127, np.repeat((NOISE[..., :1] > 127) * np.uint8(255), 3, axis=2)),
    ],
)
def test_arrays(array: npt.NDArray[Any], expected: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(pixels(array), expected)


def test_array_with_alpha() -> None:
    assert close(pixels(NOISE_A), over_white(NOISE_A), 1)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (NOISE.astype(np.int64), "int64"),
        (NOISE.astype(np.float32), "0..1"),
        (np.full((4, 4), np.nan), "0..1"),
        (np.full((4, 4), -0.1), "0..1"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((0, 4, 3), np.float32), "no pixels"),
        (np.array([["a"]]), "range"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "too large"),
    ],
)
def test_arrays_refused(array: npt.NDArray[Any], says: str) -> None:
    message = refusal(array)
    assert message.startswith("array: ") and says in message


@pytest.mark.parametrize("source", [None, 7, io.BytesIO(PNG), [PNG], torch.zeros(3, 4, 4)])
def test_other_types_refused(source: Any) -> None:
    assert type(source).__name__ in refusal(source)


# What a picture may look like inside


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000", "GIF"])
def test_lossless_formats(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    assert np.array_equal(pixels(encoded(Image.fromarray(NOISE), kind, **options)), NOISE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg(options: dict[str, Any]) -> None:
    assert close(pixels(encoded(Image.fromarray(SMOOTH), "JPEG", quality=95, **options)), SMOOTH, 6)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif() -> None:
    assert close(pixels(encoded(Image.fromarray(SMOOTH), "AVIF", quality=95)), SMOOTH, 10)


def heic(array: npt.NDArray[np.uint8], **options: Any) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(array)).save(buffer, quality=95, **options)
    return buffer.getvalue()


def test_heic() -> None:
    formats_before = list(Image.OPEN)
    assert close(pixels(heic(SMOOTH)), SMOOTH, 12)
    assert "HEIF" in formats_before or "HEIF" not in Image.OPEN


def test_heic_without_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    header = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic"
    assert "pip install triptych[heic]" in refusal(header + bytes(100))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    stored_from_upright: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(stored_from_upright[orientation](SMOOTH)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 95}))
    assert close(pixels(data), SMOOTH, 12)
    assert np.array_equal(pixels(Image.open(io.BytesIO(data))), pixels(data))
    assert np.array_equal(pixels(load_image(data)), pixels(data)), "turned twice"
    assert not load_image(data).info


def test_damaged_exif_does_not_spoil_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    for exif in (b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03", b"MM\0*\0\0\0\x08", b"nonsense", b"MM"):
        data = encoded(Image.fromarray(SMOOTH), "JPEG", quality=95, exif=b"Exif\0\0" + exif)
        assert close(pixels(data), SMOOTH, 6)

    def getexif(_: Image.Image) -> Image.Exif:
        raise struct.error

    monkeypatch.setattr(Image.Image, "getexif", getexif)
    assert np.array_equal(pixels(PNG), NOISE)


def test_cmyk() -> None:
    ink = RNG.integers(0, 256, 4)
    cmyk = np.tile(ink.astype(np.uint8), (16, 16, 1))
    expected = np.tile((255 - ink[:3]) * (255 - ink[3]) / 255, (16, 16, 1))
    image = Image.fromarray(cmyk, "CMYK")
    assert close(pixels(image), expected, 1)
    assert close(pixels(encoded(image, "TIFF")), expected, 1)
    jpeg = encoded(image, "JPEG", quality=98)
    assert b"Adobe" in jpeg  # stored inverted, as Photoshop does
    assert close(pixels(jpeg), expected, 6)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_alpha_over_white(mode: str) -> None:
    source = Image.fromarray(NOISE_A)
    if mode == "PA":
        source = source.convert("PA")
    elif mode in ("LA", "La"):
        source = source.convert("LA").convert(mode)
    else:
        source = source.convert(mode)
    straight = source.convert("LA").convert("RGBA") if mode == "La" else source.convert("RGBA")
    assert close(pixels(source), over_white(np.asarray(straight)), 1)
    if mode in ("LA", "RGBA"):
        assert close(pixels(encoded(source, "PNG")), over_white(np.asarray(straight)), 1)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([250, 10, 20, 30, 240, 50])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, kind, transparency=1)).tolist() == [[[250, 10, 20], [255, 255, 255]]]
    assert pixels(encoded(image, kind)).tolist() == [[[250, 10, 20], [30, 240, 50]]]


def test_palette_with_an_alpha_for_each_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([250, 10, 20, 30, 240, 50])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=bytes([255, 102]))
    assert close(pixels(data), np.array([[[250, 10, 20], [165, 249, 173]]]), 1)


def png_chunks(header: bytes, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in chunks
    )


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_key(depth: int) -> None:
    unit, full = (">B", 1) if depth == 8 else (">H", 257)

    def pack(*levels: int) -> bytes:
        return b"".join(struct.pack(unit, level * full) for level in levels)

    def key(*levels: int) -> bytes:
        return b"".join(struct.pack(">H", level * full) for level in levels)

    grey = png_chunks(struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0), b"\0" + pack(40, 200), (b"tRNS", key(40)))
    assert pixels(grey).tolist() == [[[255] * 3, [200] * 3]]
    colour = png_chunks(
        struct.pack(">IIBBBBB", 2, 1, depth, 2, 0, 0, 0), b"\0" + pack(9, 8, 7, 90, 80, 70), (b"tRNS", key(9, 8, 7))
    )
    assert pixels(colour).tolist() == [[[255] * 3, [90, 80, 70]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat((levels // 257).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(pixels(encoded(Image.fromarray(levels), kind)), expected)
    assert np.array_equal(pixels(Image.fromarray(levels.astype(np.int32))), expected)


def test_float_grey() -> None:
    grey = Image.fromarray((NOISE[..., 0] / 255).astype(np.float32))
    assert np.array_equal(pixels(grey), NOISE[..., [0, 0, 0]])
    assert np.array_equal(pixels(encoded(grey, "TIFF")), NOISE[..., [0, 0, 0]])
    assert "0..1" in refusal(Image.fromarray(np.float32([[0.5, 2.0]])))
    assert "0..65535" in refusal(Image.fromarray(np.int32([[-1, 2]])))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_1_bit(kind: str) -> None:
    bits = NOISE[..., 0] > 127
    expected = np.repeat((bits * np.uint8(255))[..., None], 3, axis=2)
    assert np.array_equal(pixels(encoded(Image.fromarray(bits), kind)), expected)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX", "L", "1"])
def test_other_pil_modes(mode: str) -> None:
    flat = Image.new("RGB", (5, 4), (180, 180, 180))
    if mode == "LAB":
        image = Image.new("LAB", (5, 4), (184, 128, 128))  # L* = 72
        expected = 176
    else:
        image, expected = flat.convert(mode, dither=Image.Dither.NONE), 255 if mode == "1" else 180
    assert close(pixels(image), np.full((4, 5, 3), expected), 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame(kind: str) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (30, 200, 90)]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert close(pixels(data), np.full((16, 16, 3), 30), 1)


def test_a_lazy_pil_image() -> None:
    assert np.array_equal(pixels(Image.open(io.BytesIO(PNG))), NOISE)
    assert refusal(Image.open(io.BytesIO(PNG[:-60]))).startswith("image: ")


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
    monkeypatch.setattr(images, "MAX_PIXELS", 17 * 13)
    assert np.array_equal(pixels(PNG), NOISE)
    monkeypatch.setattr(images, "MAX_PIXELS", 17 * 13 - 1)
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
    monkeypatch.setattr(images, "MAX_BYTES", len(PNG))
    assert np.array_equal(pixels(PNG), NOISE)
    monkeypatch.setattr(images, "MAX_BYTES", len(PNG) - 1)
    (tmp_path / "a.png").write_bytes(PNG)
    for source in (PNG, tmp_path / "a.png", "data:;base64," + base64.b64encode(PNG).decode()):
        assert "larger than" in refusal(source)
    assert "larger than" in refusal("data:," + "a" * 5 * len(PNG))


def test_jpeg_with_too_many_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG", progressive=True)
    monkeypatch.setattr(images, "MAX_SCANNED_PIXELS", 3 * 32 * 48)
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
    encoded(Image.fromarray(NOISE), "PPM"),
]
FUZZ = settings(max_examples=250, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True)


def check_hostile(data: bytes) -> None:
    try:
        image = load_image(data)
    except InputError as error:
        assert str(error).startswith("bytes: ") and str(error).isprintable()
    else:
        assert image.mode == "RGB" and min(image.size) > 0
        assert image.width * image.height <= images.MAX_PIXELS


@pytest.fixture
def small_bounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # else a flipped bit in a size costs seconds and gigabytes, rightly
        patch.setattr(images, "MAX_PIXELS", 4_000_000)
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


# Addresses


class Site(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.seen.append(self.path)
        page, _, query = self.path.partition("?")
        if page == "/redirect":
            return self.reply(302, b"", Location=query)
        if page == "/missing":
            return self.reply(404, b"")
        if page == "/html":
            return self.reply(200, b"<html>")
        if page == "/endless":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(4096))
            except OSError:
                return None
        if page == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", "9999")
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return None
        if page == "/silent":
            time.sleep(1)
        if page == "/broken":
            self.send_response(200)
            self.send_header("Content-Length", "9999")
            self.end_headers()
            self.wfile.write(PNG[:80])
            self.close_connection = True
            return None
        return self.reply(200, PNG)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_url(site: str) -> None:
    assert np.array_equal(pixels(f"{site}/a.png?size=3#top"), NOISE)
    assert Site.seen[-1] == "/a.png?size=3"
    assert np.array_equal(pixels(f"{site}/사진 1%20.png?q=é"), NOISE)
    assert Site.seen[-1] == "/%EC%82%AC%EC%A7%84%201%20.png?q=%C3%A9"


def test_redirects(site: str, tmp_path: Path) -> None:
    assert np.array_equal(pixels(f"{site}/redirect?/a.png"), NOISE)
    file = tmp_path / "secret.png"
    file.write_bytes(PNG)
    for target in (file.as_uri(), "data:image/png;base64,AAAA", "/redirect?/redirect"):
        refusal(f"{site}/redirect?{target}")
    assert "unknown url type: ftp" in refusal(f"{site}/redirect?ftp://127.0.0.1/a.png")
    assert "404" in refusal(f"{site}/redirect?{site}/missing")


def test_addresses_refused(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "404" in refusal(f"{site}/missing")
    assert "not a picture" in refusal(f"{site}/html")
    assert "damaged" in refusal(f"{site}/broken")
    assert "refused" in refusal("http://127.0.0.1:9/a.png")
    message = refusal(f"{site}/html?token=SECRET#x")
    assert "SECRET" not in message and message.startswith(f"{site}/html: ")
    message = refusal(site.replace("//", "//user:SECRET@") + "/a.png")
    assert "SECRET" not in message and "password" in message
    for address in (
        "http://",
        "http:///a.png",
        "http://[::1/a.png",
        "http://a..b/",
        "http://127.0.0.1:port/",
        "http:x",
    ):
        refusal(address)


def test_address_bounds(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100_000)
    assert "larger than" in refusal(f"{site}/endless")
    monkeypatch.setattr(images, "URL_TIMEOUT", 0.3)
    start = time.perf_counter()
    assert "did not arrive" in refusal(f"{site}/slow")
    assert "no answer" in refusal(f"{site}/silent")
    assert time.perf_counter() - start < 2


# What is made of a picture


def test_content_hash() -> None:
    image = Image.fromarray(NOISE)
    assert content_hash(load_image(PNG)) == content_hash(load_image(encoded(image, "BMP"))) == content_hash(image)
    changed = NOISE.copy()
    changed[-1, -1, 2] ^= 1
    others = [Image.fromarray(changed), Image.fromarray(NOISE.reshape(17, 13, 3))]
    assert len({content_hash(image), *map(content_hash, others)}) == 3
    tall = np.zeros((700, 2, 3), np.uint8)
    last = tall.copy()
    last[600] = 1
    assert content_hash(Image.fromarray(tall)) != content_hash(Image.fromarray(last))


def test_pixel_values() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    same = pixel_values(Image.fromarray(NOISE_A[:13, :13, :3].copy()), 13, mean, std)
    assert same.shape == (3, 13, 13) and same.dtype == torch.float32 and same.is_contiguous()
    expected = (NOISE_A[:13, :13, :3] / 255 - np.array(mean)) / np.array(std)
    assert close(same.permute(1, 2, 0).numpy(), expected, 1e-5)


def test_pixel_values_stretch_and_antialias() -> None:
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, 40:] = 255
    values = pixel_values(Image.fromarray(wide), 10, (0, 0, 0), (1, 1, 1))
    assert bool((values[:, :, 0] == 0).all()) and bool((values[:, :, -1] == 1).all())  # stretched, not cropped
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    values = pixel_values(Image.fromarray(stripes), 8, (0, 0, 0), (1, 1, 1))
    assert float((values - 0.5).abs().max()) < 0.03  # without antialiasing: black or white


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt", "c.heic"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    single, url = tmp_path / "notes.txt", "https://example.org/a.jpg"
    found = find_images([url, tmp_path, str(single)])
    assert found == [url, tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "c.heic", str(single)]
    with pytest.raises(InputError, match=r"folder\.png: no pictures"):
        find_images([tmp_path / "folder.png"])
    assert find_images(["no\0such"]) == ["no\0such"]
