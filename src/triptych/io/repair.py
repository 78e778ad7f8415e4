"""Repairing files that viewers show but strict readers refuse: large or damaged metadata, JPEGs without their end."""

import struct
import zlib

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
"""The chunks that determine the pixels; all others (profiles, texts, times, animation) are left out."""
PNG_ORIENTATION = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""The chunks that may contain the orientation; kept only if undamaged, texts only if small."""
ORIENTATION_TEXTS = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")
MAX_METADATA = 64 * 2**10
"""The largest text in a picture that is read, in unpacked bytes."""

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_SCAN, JPEG_COMMENT = 0xDA, 0xFE
JPEG_METADATA = range(0xE0, 0xF0)
JPEG_KEPT = {0xE0: (b"JFIF\0", 14), 0xE1: (b"", 0), 0xEE: (b"Adobe", 12)}
"""The metadata segments that affect how the picture looks (APP0, APP1 with the orientation, APP14): their start and smallest size."""
STRIP = 256  # rows
MISSING = 128
"""The grey level of the rows that a JPEG decoder has no data for."""


def essential_png(data: bytes) -> bytes:
    """A PNG without the chunks that do not affect its pixels, damaged or not; other data unchanged.

    An animated PNG is reduced to its default image. Unknown critical chunks are kept, so that the decoder refuses them.
    """
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind == b"IEND":
            break
        if end > len(data) and kind != b"IDAT":  # cut short within it, or its length is damaged
            break
        body = memoryview(data)[at + 8 : end - 4]
        critical = not kind[0] & 32  # PNG specification, 5.4: an upper-case first letter
        if critical or (_is_whole(data, at, end) and (kind in PNG_PIXELS or _tells_orientation(kind, body))):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))])


def _is_whole(data: bytes, at: int, end: int) -> bool:
    (crc,) = struct.unpack_from(">I", data, end - 4)
    return zlib.crc32(memoryview(data)[at + 4 : end - 4]) == crc


def _tells_orientation(kind: bytes, body: memoryview) -> bool:
    if kind not in PNG_ORIENTATION:
        return False
    if kind == b"eXIf":
        return True
    text = bytes(body)
    return text.partition(b"\0")[0] in ORIENTATION_TEXTS and _unpacked_size(kind, text) <= MAX_METADATA


def _unpacked_size(kind: bytes, text: bytes) -> int:
    """The unpacked size of a text chunk; `MAX_METADATA` + 1 if it is larger or cannot be unpacked."""
    if kind == b"tEXt":
        return len(text)
    rest = text.partition(b"\0")[2]
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
        if not packed:
            return len(rest)
    elif rest[:1] == b"\0":  # the only method of compression
        rest = rest[1:]
    else:
        return MAX_METADATA + 1
    try:
        return len(zlib.decompressobj().decompress(rest, MAX_METADATA + 1))
    except zlib.error:
        return MAX_METADATA + 1


def essential_jpeg(data: bytes) -> bytes:
    """A JPEG without the metadata segments that do not affect its pixels, damaged or not; other data unchanged."""
    if not data.startswith(JPEG_START):
        return data
    kept, at = [JPEG_START], len(JPEG_START)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, at + 1)
        end = at + 2 + length
        if marker < 0xC0 or marker in (0xFF, JPEG_SCAN) or 0xD0 <= marker <= 0xD9 or length < 2 or end > len(data):
            break
        if marker != JPEG_COMMENT and (marker not in JPEG_METADATA or _is_needed(marker, data[at + 4 : end])):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _is_needed(marker: int, body: bytes) -> bool:
    start, least = JPEG_KEPT.get(marker, (b"", MAX_METADATA))
    return body.startswith(start) and len(body) >= least


def missing_rows(image: Image.Image) -> int:
    """The number of rows at the bottom of a decoded JPEG that its data did not reach."""
    for top in range(
        (image.height - 1) // STRIP * STRIP, -1, -STRIP
    ):  # from below; large pictures are not copied as a whole
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        levels = np.asarray(strip).reshape(strip.height, -1).astype(np.int16)
        present = np.flatnonzero((np.abs(levels - MISSING) > 2).any(axis=1))
        if len(present):
            return image.height - 1 - top - int(present[-1])
    return image.height
