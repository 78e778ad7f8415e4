"""Whatever a person has as a picture -> an upright RGB image -> the numbers that the vision encoders take.

Every picture is treated as hostile: what it may cost is bounded before it is decoded, only the formats named here are
tried (so that no reader which starts another program is), and whatever goes wrong comes out as a one-line `InputError`.
`load_image` opens paths and addresses alike: hand it only the bytes of a picture that a stranger sent.
"""

import base64
import binascii
import contextlib
import hashlib
import http.client
import io
import logging
import os
import re
import stat
import string
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote_to_bytes, urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt
from PIL import Image

from triptych.errors import InputError

if TYPE_CHECKING:
    import torch

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]

MAX_BYTES = 64 * 2**20
"""The largest file, download or data URL that is read."""
MAX_PIXELS = 200_000_000
"""The largest picture that is decoded, width times height (about 0.8 GB as RGB in memory)."""
MAX_SIDE = 65_500
"""The longest side of a picture, in pixels (the limit of JPEG)."""
MAX_SCANNED_PIXELS = 10 * MAX_PIXELS
"""Pixels times scans of a progressive JPEG: a small file may otherwise ask for hours of decoding."""
URL_TIMEOUT = 20.0
"""Seconds that an address may take to answer, and again to send the picture."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
"""What is decoded by Pillow itself; not among them: readers that start another program, such as EPS."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".webp", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".jp2", ".j2k"),
)
"""What `find_images` takes for a picture."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_UPRIGHT = {  # EXIF orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Pillow's notes on damaged files reach stderr


def load_image(source: ImageSource) -> Image.Image:
    """Return `source` as a new upright RGB image without metadata; transparent parts become white.

    `source` is a path, a file:, http(s): or data: URL, the bytes of a file, a PIL image (any mode) or a numpy array:
    [H, W] or [H, W, 1|3|4], of uint8, uint16 (full scale 65,535), bool, or floats in 0..1. Of an animation the first
    frame is taken. HEIC needs `pip install triptych[heic]`.

    Raises InputError, one line that names the picture, for everything that cannot be read or exceeds the bounds.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "image")
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "array")
    if isinstance(source, bytes):
        return _decode(source, "bytes")
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise InputError(f"{kind}: not a picture; give a path, a URL, bytes, a PIL image or a numpy array")
    location = os.fsdecode(source)
    name = _shown(location)
    scheme = location.partition(":")[0].lower() if isinstance(source, str) else ""
    if scheme == "data":
        return _decode(_read_data_url(location), "data URL")
    if scheme in ("http", "https"):
        name = _shown(re.sub(r"[?#].*|(?<=//)[^/?#]*@", "", location, flags=re.DOTALL))  # no tokens, no passwords
        return _decode(_download(location, name), name)
    if scheme == "file":
        location = _path_of_url(location, name)
    elif "://" in location:
        raise InputError(f"{name}: only file:, http:, https: and data: URLs can be read")
    return _decode(_read_file(location, name), name)


def content_hash(image: Image.Image) -> str:
    """Return the sha256 of an RGB image's size and pixels, in hex: the same picture has the same hash in any file."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    for top in range(0, image.height, 256):  # in strips: no second copy of a large picture
        digest.update(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())
    return digest.hexdigest()


def pixel_values(image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]) -> "torch.Tensor":
    """Return an RGB image as float32 [3, size, size]: stretched to the square, scaled to 0..1, then (x - mean) / std.

    The aspect ratio is given up, not a part of the picture: the models are trained so. Resampling is PIL's bicubic,
    which is antialiased. `mean` and `std` have one entry per channel: red, green, blue.
    """
    import torch

    square = np.array(image.resize((size, size), Image.Resampling.BICUBIC))
    values = torch.from_numpy(square).permute(2, 0, 1).float().div_(255)
    return values.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1)).contiguous()


def find_images(sources: Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Return `sources` with each folder replaced by the pictures in it, sorted by name.

    Pictures are told by suffix; hidden files and folders below are left out. Files and URLs pass through unread.
    Raises InputError for a folder that cannot be listed or holds no picture.
    """
    found: list[str | os.PathLike[str]] = []
    for source in sources:
        if not os.path.isdir(source):  # noqa: PTH112 (a URL, or a name with a null byte, is no Path)
            found.append(source)
            continue
        try:
            inside = sorted(
                path
                for path in Path(source).iterdir()
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
            )
        except OSError as error:
            raise InputError(f"{_shown(source)}: cannot list this folder: {error.strerror}") from None
        if not inside:
            raise InputError(f"{_shown(source)}: no pictures in this folder (known: {' '.join(SUFFIXES)})")
        found += inside
    return found


def _shown(name: str | os.PathLike[str]) -> str:
    """`name` on one line: control characters escaped, the middle of a very long one left out."""
    text = os.fsdecode(name)
    if len(text) > 240:
        text = f"{text[:120]}...{text[-100:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _read_file(location: str, name: str) -> bytes:
    try:
        kind = os.stat(location).st_mode  # noqa: PTH116
        if stat.S_ISDIR(kind):
            raise InputError(f"{name}: is a folder, not a picture")
        if not stat.S_ISREG(kind):
            raise InputError(f"{name}: is a pipe or a device, not a file")
        with open(location, "rb") as file:  # noqa: PTH123
            return file.read(MAX_BYTES + 1)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except PermissionError:
        raise InputError(f"{name}: no permission to read this file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{name}: is no valid path") from None


def _path_of_url(url: str, name: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{name}: a file: URL must name this machine (file:///folder/photo.jpg)")
        return urllib.request.url2pathname(parts.path)
    except InputError:
        raise
    except (ValueError, OSError):
        raise InputError(f"{name}: is no valid file: URL") from None


def _read_data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise InputError("data URL: has no comma between its header and its data")
    try:
        data = unquote_to_bytes(body)
        if header.lower().endswith(";base64"):
            data = b"".join(data.split()).rstrip(b"=")
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, UnicodeError):
        raise InputError("data URL: its data is not valid base64") from None
    return data


def _download(url: str, name: str) -> bytes:
    opener = urllib.request.OpenerDirector()  # unlike `urlopen`, without file: and ftp:, which a redirect could name
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise InputError(f"{name}: a user name or password in an address cannot be used; download the file first")
        address = urlunsplit(
            (
                parts.scheme,
                parts.netloc.encode("idna").decode("ascii"),
                quote(parts.path, safe=string.punctuation),
                quote(parts.query, safe=string.punctuation),
                "",
            )
        )
        request = urllib.request.Request(address, headers={"User-Agent": "triptych", "Accept": "image/*"})
        with opener.open(request, timeout=URL_TIMEOUT) as response:
            return _read_response(response, name)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise InputError(f"{name}: the server answered {error.code} ({_shown(str(error.reason))})") from None
    except TimeoutError:
        raise InputError(f"{name}: no answer within {URL_TIMEOUT:.0f} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise InputError(f"{name}: no answer within {URL_TIMEOUT:.0f} s") from None
        raise InputError(f"{name}: cannot be fetched: {_shown(str(error.reason))}") from None
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{name}: the connection failed: {_shown(str(error) or type(error).__name__)}") from None
    except ValueError:
        raise InputError(f"{name}: is no valid address") from None


def _read_response(response: http.client.HTTPResponse, name: str) -> bytes:
    deadline = time.monotonic() + URL_TIMEOUT
    data = bytearray()
    while chunk := response.read1(2**18):
        data += chunk
        if len(data) > MAX_BYTES:
            raise InputError(f"{name}: is larger than {_megabytes(MAX_BYTES)}")
        if time.monotonic() > deadline:
            raise InputError(f"{name}: did not arrive within {URL_TIMEOUT:.0f} s")
    return bytes(data)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"array: has shape {array.shape}; a picture is [H, W] or [H, W, 1, 3 or 4]")
    _check_size((array.shape[1], array.shape[0]), "array")
    if array.dtype == np.bool_:
        levels = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint8:
        levels = array
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        levels = _scale(array, 65535)
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # so written, NaN is refused too
            raise InputError(f"array: {array.dtype} values must lie in 0..1; give uint8 for 0..255")
        levels = _scale(array, 1)
    else:
        raise InputError(
            f"array: {array.dtype} values have no known range; give uint8, uint16, bool, or floats in 0..1"
        )
    return Image.fromarray(np.ascontiguousarray(levels[..., 0] if levels.shape[2:] == (1,) else levels))


def _scale(values: npt.NDArray[Any], full: int) -> npt.NDArray[np.uint8]:
    """0..full -> 0..255, rounded."""
    levels: npt.NDArray[np.float32] = np.rint(values.astype(np.float32) * np.float32(255 / full))
    return levels.astype(np.uint8)


def _decode(data: bytes, name: str) -> Image.Image:
    if not data:
        raise InputError(f"{name}: is empty")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: is larger than {_megabytes(MAX_BYTES)}")
    with _pillow_on_guard():
        try:
            image = _open(data, name)
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise _too_large(name) from None
        except Exception:  # on hostile bytes each format has exceptions of its own
            known = ", ".join(FORMATS)
            raise InputError(f"{name}: not a picture, or damaged at its start (known: {known}, HEIC)") from None
        _check_size(image.size, name)
        scans = data.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 0
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise InputError(f"{name}: this JPEG has too many scans ({scans}); save it anew and try again")
        return _to_rgb(image, name)


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header alone."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise InputError(f"{name}: HEIC pictures need a plugin: pip install triptych[heic]") from None
        read_header: Callable[[io.BytesIO], Image.Image] = HeifImageFile
        return read_header(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    with _pillow_on_guard():
        try:
            _check_size(image.size, name)
            image.load()
            _check_size(image.size, name)  # some formats tell the truth only now
            rgb = _grey_to_rgb(image, name) if image.mode[0] in "IF" else _colour_to_rgb(image)
            turn = _turn_upright(image)
            rgb = rgb if turn is None else rgb.transpose(turn)
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise _too_large(name) from None
        except MemoryError:
            raise InputError(f"{name}: not enough memory to decode it; make it smaller") from None
        except Exception:  # on hostile bytes each format has exceptions of its own
            kind = f" ({image.format})" if image.format else ""
            raise InputError(f"{name}: the picture{kind} is damaged or cut short; get or save it anew") from None
    rgb.info.clear()  # with the orientation left in, reading the result once more would turn it again
    return rgb


def _colour_to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Grey deeper than 8 bits: PIL itself would clip it to white, or keep its low byte."""
    values, full = np.asarray(image), 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= full):
        raise InputError(f"{name}: grey values must lie in 0..{full} (mode {image.mode}); convert it to 8 bits")
    grey = _scale(values, full)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata do not spoil a good picture
        return None


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name}: has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise _too_large(name, f"{width} x {height} pixels")


def _too_large(name: str, size: str = "the picture") -> InputError:
    bounds = f"at most {MAX_PIXELS // 10**6} million pixels and {MAX_SIDE:,} a side"
    return InputError(f"{name}: {size} is too large ({bounds}); make it smaller")


_guard_lock = threading.Lock()
_guard_exit = contextlib.ExitStack()
_guarded = 0


@contextlib.contextmanager
def _pillow_on_guard() -> Iterator[None]:
    """Keep Pillow's warnings quiet and its own pixel limit at ours, while any thread is in here.

    Both are global to the process, so the first to enter sets them and the last to leave restores them.
    """
    global _guarded
    with _guard_lock:
        if _guarded == 0:
            _guard_exit.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\b")
            _guard_exit.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = (MAX_PIXELS + 1) // 2  # Pillow refuses above twice this
        _guarded += 1
    try:
        yield
    finally:
        with _guard_lock:
            _guarded -= 1
            if _guarded == 0:
                _guard_exit.close()
