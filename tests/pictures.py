"""Pictures in memory and in files, and what reading them gives."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from triptych.errors import InputError
from triptych.io.images import ImageSource, load_image

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


def block_photos(count: int) -> list[Image.Image]:
    """Photos of three by three blocks of pure colours: a model of random weights tells them apart."""
    rng = np.random.default_rng(0)
    blocks = (rng.integers(0, 2, (3, 3, 3), dtype=np.uint8) * 255 for _ in range(count))
    return [Image.fromarray(block.repeat(8, 0).repeat(10, 1)) for block in blocks]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: ImageSource) -> npt.NDArray[np.uint8]:
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


def png_chunks(header: bytes, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in chunks
    )
