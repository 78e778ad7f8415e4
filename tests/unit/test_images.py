"""Pictures of every kind -> an upright RGB image with the right pixels."""

import base64
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pictures import NOISE, NOISE_A, PNG, SMOOTH, close, encoded, over_white, pixels, png_chunks, refusal
from PIL import Image, features

from triptych.errors import InputError
from triptych.io.images import content_hash, decoding_bytes, load_image, pixel_values
from triptych.io.pixels import PixelSpec

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
    assert "pip install 'triptych[heic]'" in refusal(header + bytes(100))


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
    ink = np.random.default_rng(0).integers(0, 256, 4)
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
    assert "0..255" in refusal(Image.fromarray(np.int32([[-1, 2]])))


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


# What is made of a picture


def test_what_decoding_takes_is_known_from_the_header() -> None:
    def cost(kind: str) -> tuple[int, int]:
        file = io.BytesIO()
        Image.new("RGB", (10, 20)).save(file, kind)
        return decoding_bytes(file.getvalue())

    assert [cost("JPEG"), cost("PNG"), cost("WEBP")] == [(2600, 800), (4000, 800), (4000, 800)]
    with pytest.raises(InputError, match="not a picture"):
        decoding_bytes(b"text")


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
    same = pixel_values(Image.fromarray(NOISE_A[:13, :13, :3].copy()), PixelSpec(13, mean, std))
    assert same.shape == (3, 13, 13) and same.dtype == torch.float32 and same.is_contiguous()
    expected = (NOISE_A[:13, :13, :3] / 255 - np.array(mean)) / np.array(std)
    assert close(same.permute(1, 2, 0).numpy(), expected, 1e-5)


def test_pixel_values_stretch_and_antialias() -> None:
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, 40:] = 255
    values = pixel_values(Image.fromarray(wide), PixelSpec(10, (0, 0, 0), (1, 1, 1)))
    assert bool((values[:, :, 0] == 0).all()) and bool((values[:, :, -1] == 1).all())  # stretched, not cropped
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    values = pixel_values(Image.fromarray(stripes), PixelSpec(8, (0, 0, 0), (1, 1, 1)))
    assert float((values - 0.5).abs().max()) < 0.03  # without antialiasing: black or white
