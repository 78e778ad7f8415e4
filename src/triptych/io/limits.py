"""Bounds on pictures, checked before anything is decoded."""

import os

from triptych.errors import InputError

MAX_BYTES = 64 * 2**20
"""The largest file, download or data URL that is read."""
MAX_PIXELS = 200_000_000
"""The largest picture that is decoded, width times height (about 0.8 GB as RGB in memory)."""
MAX_SIDE = 65_500
"""The longest side of a picture, in pixels (the limit of JPEG)."""
MAX_SCANNED_PIXELS = 10 * MAX_PIXELS
"""Pixels times scans of a progressive JPEG: a small file could otherwise take hours to decode."""
URL_TIMEOUT = 20.0
"""Seconds that a server may take to answer, and again to send the picture."""


def check_bytes(data: bytes | bytearray, name: str) -> None:
    """Raises InputError if ``data`` is larger than `MAX_BYTES`."""
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: is larger than {MAX_BYTES / 2**20:.0f} MiB")


def check_size(size: tuple[int, int], name: str) -> None:
    """Raises InputError if a picture of this width and height has no pixels or too many."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name}: has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise too_large(name, f"{width} x {height} pixels")


def too_large(name: str, size: str = "the picture") -> InputError:
    """The error for a picture beyond the bounds."""
    bounds = f"at most {MAX_PIXELS // 10**6} million pixels and {MAX_SIDE:,} a side"
    return InputError(f"{name}: {size} is too large ({bounds}); make it smaller")


def printable(name: str | os.PathLike[str]) -> str:
    """``name`` on one line: control characters escaped, the middle of a very long one left out."""
    text = os.fsdecode(name)
    if len(text) > 240:
        text = f"{text[:120]}...{text[-100:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
