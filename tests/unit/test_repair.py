"""Pictures that viewers show although a strict reader refuses them; and JPEGs decoded at part of their size."""

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NOISE, PNG, SMOOTH, close, encoded, pixels, png_chunks, refusal
from PIL import Image

import triptych
from triptych.io import repair
from triptych.io.images import load_image, pixel_values
from triptych.io.pixels import PixelSpec

DOG = Path(triptych.__file__).parent / "examples" / "dog.jpg"
HEADER = struct.pack(">IIBBBBB", 17, 13, 8, 2, 0, 0, 0)
ROWS = b"".join(b"\0" + row.tobytes() for row in NOISE)
PIXELS_AT = len(PNG) - len(PNG[PNG.index(b"IDAT") - 4 :])


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def with_chunk(extra: bytes, at: int = PIXELS_AT) -> bytes:
    return PNG[:at] + extra + PNG[at:]


BOMB = zlib.compress(bytes(4_000_000))
ANCILLARY = {
    "large zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 1_100_000)),
    "large iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 1_100_000)),
    "large tEXt": chunk(b"tEXt", b"prompt\0" + b"x" * 3_000_000),
    "large iCCP": chunk(b"iCCP", b"profile\0\0" + BOMB),
    "large orientation text": chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "nonsense in zTXt": chunk(b"zTXt", b"a\0\0not compressed"),
    "nonsense in XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0not compressed"),
    "nonsense in iCCP": chunk(b"iCCP", b"profile\0\0nonsense"),
    "nonsense in eXIf": chunk(b"eXIf", b"MM\0*nonsense"),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short pHYs": chunk(b"pHYs", b"\0\0"),
    "short cHRM": chunk(b"cHRM", b""),
    "empty iCCP": chunk(b"iCCP", b""),
    "bad CRC of a text": chunk(b"tEXt", b"Software\0x", 1),
    "bad CRC of a profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x"), 1),
    "bad CRC of a time": chunk(b"tIME", bytes(7), 1),
    "bad CRC of the orientation": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0", 1),
    "bad CRC of a transparent colour": chunk(b"tRNS", struct.pack(">HHH", *NOISE[0, 0]), 1),
    "broken animation": chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0"),
    "private": chunk(b"prVt", b"anything"),
}


@pytest.mark.parametrize("name", ANCILLARY)
def test_ancillary_chunks_do_not_matter(name: str) -> None:
    for place in (PIXELS_AT, len(PNG) - 12):  # before the pixels, and behind them
        assert np.array_equal(pixels(with_chunk(ANCILLARY[name], place)), NOISE)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(
        [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"caBX", b"bKGD"]
    ),
    st.binary(max_size=60) | st.binary(max_size=20).map(lambda b: b"XML:com.adobe.xmp\0" + b),
    st.integers(0, 2**32 - 1) | st.none(),
)
def test_any_ancillary_chunk_is_harmless(kind: bytes, body: bytes, crc: int | None) -> None:
    assert close(pixels(with_chunk(chunk(kind, body, crc))), NOISE, 0)


def test_orientation_in_a_chunk_still_counts() -> None:
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    raw = b"\nexif\n%8d\n" % (len(tiff) + 6) + (b"Exif\0\0" + tiff).hex().encode() + b"\n"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="3"/></x:xmpmeta>'
    for extra in (
        chunk(b"eXIf", tiff),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    ):
        assert np.array_equal(pixels(with_chunk(extra)), NOISE[::-1, ::-1])


def test_what_the_pixels_need_is_kept() -> None:
    key = png_chunks(HEADER, ROWS, (b"tRNS", struct.pack(">HHH", *NOISE[0, 0])))
    assert pixels(key)[0, 0].tolist() == [255] * 3
    palette = encoded(Image.fromarray(NOISE).quantize(16), "PNG")
    assert np.array_equal(pixels(palette), np.asarray(Image.open(io.BytesIO(palette)).convert("RGB")))
    assert "damaged" in refusal(PNG.replace(b"IDAT", b"IDAX")) or refusal(PNG.replace(b"IDAT", b"IDAX"))
    broken = bytearray(PNG)
    broken[PNG.index(b"IDAT") + 20] ^= 255
    assert "damaged" in refusal(bytes(broken))


@pytest.mark.parametrize("cut", [13, 40, 200])
def test_a_png_cut_within_its_pixels_is_refused(cut: int) -> None:
    assert "damaged" in refusal(PNG[: -12 - cut])


@pytest.mark.parametrize("cut", [1, 4, 8, 11, 12])
def test_a_png_without_its_end(cut: int) -> None:
    assert np.array_equal(pixels(PNG[:-cut]), NOISE)
    assert np.array_equal(pixels(PNG + b"appended"), NOISE)


def test_an_animated_png_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime")]
    for default in (False, True):
        data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default)
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]


# Segments of a JPEG's metadata


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


SEGMENTS = {
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "odd profile": segment(0xE2, b"ICC_PROFILE\0\5\2x"),
    "pictures of an MPO": segment(0xE2, b"MPF\0nonsense"),
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "empty APP0": segment(0xE0, b""),
    "short Adobe": segment(0xEE, b"Adobe\0"),
    "Photoshop": segment(0xED, b"Photoshop 3.0\08BIM\0"),
    "empty EXIF": segment(0xE1, b"Exif\0\0"),
    "nonsense in XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<bad"),
    "comment": segment(0xFE, b"x" * 60_000),
    "many profiles": segment(0xE2, b"ICC_PROFILE\0\1\xff" + b"x" * 60_000) * 40,
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_metadata_of_a_jpeg_do_not_matter(name: str) -> None:
    for file in (encoded(Image.fromarray(SMOOTH), "JPEG"), encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")):
        assert np.array_equal(pixels(file[:2] + SEGMENTS[name] + file[2:]), pixels(file))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.binary(max_size=40))
def test_any_metadata_of_a_jpeg_are_harmless(marker: int, body: bytes) -> None:
    file = encoded(Image.fromarray(SMOOTH[..., 0]), "JPEG")
    assert np.array_equal(pixels(file[:2] + segment(marker, body) + file[2:]), pixels(file))


# JPEGs without their end


def jpegs() -> dict[str, tuple[bytes, npt.NDArray[np.uint8]]]:
    photo = Image.open(DOG).convert("RGB").resize((203, 301))
    files = {
        "baseline": encoded(photo, "JPEG"),
        "progressive": encoded(photo, "JPEG", progressive=True),
        "4:4:4": encoded(photo, "JPEG", subsampling=0),
        "grey": encoded(photo.convert("L"), "JPEG"),
        "CMYK": encoded(photo.convert("CMYK"), "JPEG"),
        "restarts": encoded(photo, "JPEG", restart_marker_rows=1),
        "MPO": encoded(photo, "MPO"),
        "tiny": encoded(photo.resize((5, 4)), "JPEG"),
    }
    return {name: (data, pixels(data)) for name, data in files.items()}


@pytest.mark.parametrize("name", jpegs())
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 10])
def test_a_jpeg_without_its_end(name: str, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    data, whole = jpegs()[name]
    caplog.clear()
    read = pixels(data[:-cut])
    assert read.shape == whole.shape
    kept = len(whole) - 32  # all rows but those of the last two blocks
    assert kept < 0 or close(read[:kept], whole[:kept], 0 if name != "progressive" else 24)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].getMessage() == "bytes: the end of this JPEG is missing; what is there is used"


def test_a_whole_jpeg_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    for data, _ in jpegs().values():
        load_image(data)
        load_image(data + b"appended")
    assert not caplog.records


@pytest.mark.parametrize("name", ["baseline", "grey", "CMYK", "4:4:4"])
def test_a_jpeg_of_which_much_is_missing_is_refused(name: str) -> None:
    data = jpegs()[name][0]
    assert "damaged or cut short" in refusal(data[: len(data) * 3 // 4])
    assert "damaged or cut short" in refusal(data[: len(data) // 2])


def test_missing_rows() -> None:
    levels = np.full((40, 8, 3), 128, np.uint8)
    assert repair.missing_rows(Image.fromarray(levels)) == 40
    levels[:30, 3] = 90
    levels[35:, :, 1] = 129  # as chroma is smoothed at the border
    assert repair.missing_rows(Image.fromarray(levels)) == 10


# JPEGs at part of their size


def photo_of(width: int, height: int) -> Image.Image:
    return Image.open(DOG).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((1600, 1200), 224, (800, 600)),
        ((1600, 1200), 150, (400, 300)),
        ((1600, 1200), 601, (1600, 1200)),
        ((1600, 300), 149, (1600, 300)),
        ((1600, 1200), 60, (200, 150)),
        ((1603, 1201), 60, (802, 601)),
        ((1599, 1199), 59, (200, 150)),
        ((803, 603), 30, (201, 151)),
        ((803, 603), 31, (803, 603)),
        ((448, 448), 224, (448, 448)),
    ],
)
def test_decoding_at_part_of_the_size(size: tuple[int, int], target: int, expected: tuple[int, int]) -> None:
    data = encoded(photo_of(*size), "JPEG", quality=90)
    reduced = load_image(data, target)
    assert reduced.size == expected
    assert load_image(data).size == size
    ours, full = (
        pixel_values(image, PixelSpec(target, (0, 0, 0), (1, 1, 1))).numpy() * 255
        for image in (reduced, load_image(data))
    )
    assert np.abs(ours - full).mean() < 1


def test_what_is_upright_at_part_of_its_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo_of(800, 600), "JPEG", quality=90, exif=exif)
    assert load_image(data, 100).size == (300, 400)
    assert close(np.asarray(load_image(data, 100).resize((30, 40))), np.asarray(load_image(data).resize((30, 40))), 16)


def test_other_formats_ignore_the_target(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(SMOOTH), "PNG"))
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png", 2)), SMOOTH)


def test_a_cut_jpeg_at_part_of_its_size() -> None:
    data = encoded(photo_of(800, 600), "JPEG")
    assert load_image(data[:-10], 100).size == (400, 300)
    assert "damaged" in refusal(data[: len(data) // 2])
