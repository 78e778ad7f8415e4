"""Every raster format that is read, in every mode and depth that Pillow can write: the same picture comes back."""

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import close, encoded, pixels, refusal
from PIL import Image

from triptych.io.images import PICTURE_FORMATS, load_image

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")
DEEP = ("I", "I;16", "I;16B", "F")
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG2000": {"irreversible": False},
}
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "webp")


def picture(mode: str, levels: npt.NDArray[np.uint8]) -> tuple[Image.Image, npt.NDArray[Any]]:
    """An image of this mode, and the RGB levels that it shows; ``levels [H, W]`` are of 8 bits."""
    grey = np.repeat(levels[..., None], 3, axis=2)
    if mode in DEEP[:3]:
        deep = levels.astype(np.uint16) * 257
        deep[0, 0], grey[0, 0] = 65535, 255  # so that the values cannot be taken for those of 8 bits
        image = Image.fromarray(deep.astype({"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]))
        assert image.mode == mode
        return image, grey
    if mode == "F":
        return Image.fromarray((levels / 255).astype(np.float32)), grey
    image = Image.fromarray(levels)
    if mode == "LAB":
        image = Image.merge("LAB", [image, *(Image.new("L", image.size, 128),) * 2])
    elif mode == "1":
        image = image.point(lambda v: 255 * (v > 127), "1")
    elif mode in ("P", "PA"):
        image = image.convert("RGB").quantize(255).convert(mode)
    else:
        image = image.convert("RGB").convert(mode)
    return image, np.asarray(image.convert("RGB"))


def write(image: Image.Image, kind: str, **options: Any) -> bytes | None:
    """The file, or None where Pillow cannot write this mode in this format."""
    try:
        return encoded(image, kind, **OPTIONS.get(kind, {}) | options)
    except (OSError, ValueError, KeyError):
        return None


@pytest.mark.parametrize("kind", [*PICTURE_FORMATS, "MPO"])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_mode_of_every_format(kind: str, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(4, 24)), data.draw(st.integers(4, 24))
    low, high = data.draw(st.integers(0, 120)), data.draw(st.integers(130, 255))
    levels = np.linspace(low, high, height * width).reshape(height, width).astype(np.uint8)
    written = 0
    for mode in MODES:
        image, expected = picture(mode, levels)
        if (kind in ("JPEG", "MPO", "AVIF") and mode in ("1", "PA")) or (
            kind in ("GIF", "WEBP", "AVIF") and mode in DEEP
        ):
            continue  # the format has no sharp edges, or no more than 8 bits
        if (file := write(image, kind)) is None:
            continue
        written += 1
        lossy = kind in ("JPEG", "MPO", "AVIF") or (kind == "GIF" and mode not in ("1", "L", "P"))
        assert close(pixels(file), expected, 8 if lossy else 2), (kind, mode)
    assert written >= 2


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I", "F", "RGB"])
def test_tiff_compressions(compression: str, mode: str) -> None:
    image, expected = picture(mode, np.arange(0, 256, dtype=np.uint8).reshape(16, 16))
    file = write(image, "TIFF", compression=compression)
    if file is None:
        pytest.skip("Pillow cannot write it")
    assert close(pixels(file), expected, 8 if compression == "webp" else 2)


# Grey deeper than 8 bits


def tiff(values: npt.NDArray[Any], **tags: int) -> bytes:
    names = {"photometric": 262}
    return encoded(Image.fromarray(values), "TIFF", tiffinfo={names[name]: tag for name, tag in tags.items()})


def raw_tiff(samples: bytes, bits: int, width: int, height: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A TIFF of one grey channel, uncompressed, little-endian."""
    tags = [
        *((256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)),
        *((277, 3, 1), (278, 4, height), (279, 4, len(samples)), (339, 3, sample_format)),
    ]
    samples += b"\0" * (len(samples) % 2)
    entries = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("file", "level"),
    [
        (tiff(65535 - np.full((8, 8), 50000, np.uint16), photometric=0), 195),
        (tiff(np.full((8, 8), 50000, np.uint16)), 195),
        (raw_tiff(np.full(64, 15535, ">u2").byteswap().tobytes(), 16, 8, 8, 0), 195),
        (raw_tiff(np.full(64, 50, np.uint8).tobytes(), 8, 8, 8, 0), 205),
        (raw_tiff(b"\x5a" * 32, 4, 8, 8), None),
        (raw_tiff(b"\x44" * 32, 4, 8, 8), 68),
        (raw_tiff(b"\x44" * 32, 4, 8, 8, 0), 187),
        (raw_tiff(b"\x55" * 16, 2, 8, 8), 85),
        (raw_tiff(b"\x55" * 16, 2, 8, 8, 0), 170),
        (raw_tiff(b"\xff" * 8, 1, 8, 8, 0), 0),
        (raw_tiff(b"\xff" * 8, 1, 8, 8, 1), 255),
        (raw_tiff(b"\xc8\x0c\x80" * 32, 12, 8, 8), 199),  # 3200 of 4095
        (raw_tiff(np.full(64, 25000, "<i2").tobytes(), 16, 8, 8, 1, 2), 195),
        (raw_tiff(np.full(64, 3_368_601_800, "<u4").tobytes(), 32, 8, 8), 200),
        (raw_tiff(np.full(64, 1_684_300_900, "<i4").tobytes(), 32, 8, 8, 1, 2), 200),
        (raw_tiff(np.full(64, 0.25, "<f4").tobytes(), 32, 8, 8, 0, 3), 191),
        (raw_tiff(np.full(64, 0.25, "<f4").tobytes(), 32, 8, 8, 1, 3), 64),
        (encoded(Image.new("L", (8, 8), 200).convert("I"), "TIFF"), 200),
        (encoded(Image.new("L", (8, 8), 200).convert("F"), "TIFF"), 200),
        (encoded(Image.fromarray(np.full((8, 8), 200, np.uint16)), "PNG"), 1),  # a PNG says that it has 16 bits
        (b"P5 8 8 1023\n" + np.full(64, 802, ">u2").tobytes(), 200),
        (b"P5 8 8 100\n" + bytes([78] * 64), 199),
        (b"P2 8 8 4095\n" + b"3212 " * 64, 200),
    ],
)
def test_the_depth_that_a_file_states(file: bytes, level: int | None) -> None:
    read = pixels(file)
    if level is None:
        assert read[0, :2, 0].tolist() == [85, 170]
    else:
        assert np.abs(read.astype(int) - level).max() <= 1


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L", "F"])
@given(level=st.integers(2, 255))
@settings(max_examples=20, deadline=None)
def test_converted_from_8_bits(mode: str, level: int) -> None:
    assert load_image(Image.new("L", (8, 8), level).convert(mode)).getpixel((0, 0)) == (level,) * 3


def test_deep_values_without_a_stated_depth() -> None:
    def level(values: npt.NDArray[Any]) -> int:
        return int(pixels(Image.fromarray(values))[0, 0, 0])

    assert level(np.full((8, 8), 50000, np.int32)) == level(np.full((8, 8), 50000, np.uint16)) == 195
    assert level(np.full((8, 8), 50000, np.float32)) == 195
    assert level(np.full((8, 8), 0.5, np.float32)) == 128
    assert pixels(Image.fromarray(np.float32([[0, 1]])))[0, :, 0].tolist() == [0, 255]
    for values in (np.int32([[70_000]]), np.int32([[-1, 300]]), np.float32([[0.5, 2]]), np.float32([[np.nan, 1]])):
        assert "grey values must lie in" in refusal(Image.fromarray(values))


def test_a_lazy_tiff_keeps_what_its_file_states() -> None:
    data = tiff(65535 - np.full((8, 8), 50000, np.uint16), photometric=0)
    assert np.array_equal(pixels(Image.open(io.BytesIO(data))), pixels(data))
