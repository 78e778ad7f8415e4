"""Grey pictures with more than 8 bits, which Pillow would clip to white or reduce to their low byte."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from triptych.errors import InputError

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2


def grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A loaded image of a mode that begins with I or F -> RGB, black at 0 and white at its full scale.

    The full scale comes from the file (16 bits of a PNG, the bits of a TIFF). Otherwise it is 1 for floats up to 1, and for
    whole numbers 255, or 65,535 if a value exceeds 255: Pillow's ``convert`` makes the modes I and F of 8-bit pictures
    without scaling them. Raises InputError: a value is outside of it.
    """
    tags = getattr(image, "tag_v2", {})
    values: npt.NDArray[Any] = np.asarray(image)
    if image.mode == "I" and _bits(tags) == 32 and _sample_format(tags) == UNSIGNED:
        values = values.view(np.uint32)  # Pillow reads them as signed
    full = _full_scale(image, tags, values)
    if not (values.min() >= 0 and values.max() <= full):  # in this form it refuses NaN, too
        raise InputError(f"{name}: grey values must lie in 0..{full} (mode {image.mode}); convert it to 8 bits")
    levels = to_levels(full - values if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO else values, full)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = 255
    return Image.fromarray(levels).convert("RGB")


def to_levels(values: npt.NDArray[Any], full: int) -> npt.NDArray[np.uint8]:
    """0..full -> 0..255, rounded."""
    exact = np.float32 if full <= 65535 else np.float64
    levels: npt.NDArray[Any] = values.astype(exact)
    levels *= 255 / full
    return np.rint(levels, out=levels).astype(np.uint8)


def _full_scale(image: Image.Image, tags: Any, values: npt.NDArray[Any]) -> int:
    bits = _bits(tags)
    if image.mode != "F" and bits and bits <= 16:
        return int(2 ** (bits - (_sample_format(tags) == SIGNED)) - 1)
    if image.mode != "F" and image.format is not None and not bits:
        return 65535
    if image.mode == "F" and (values.max() <= 1 or not (values == np.rint(values)).all()):
        return 1
    if bits == 32 and image.mode != "F" and values.max() > 65535:
        return int(np.iinfo(values.dtype).max)
    return 255 if values.max() <= 255 else 65535


def _bits(tags: Any) -> int:
    bits = tags.get(TIFF_BITS, 0)
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _sample_format(tags: Any) -> int:
    kind = tags.get(TIFF_SAMPLE_FORMAT, UNSIGNED)
    return int(kind[0] if isinstance(kind, tuple) else kind)
