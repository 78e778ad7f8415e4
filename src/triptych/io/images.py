"""A picture from any source -> an upright RGB image -> the input array of the vision encoders.

Every picture is treated as hostile: its cost is bounded before it is decoded, only the formats listed here are tried, none
of which starts another program, and every failure is a one-line `InputError`. `load_image` opens paths and addresses: of
a picture that a stranger sent, pass only the bytes.
"""

import contextlib
import datetime
import hashlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from triptych.errors import InputError
from triptych.io import limits
from triptych.io.fetch import open_regular_file, read_source
from triptych.io.grey import grey_to_rgb, to_levels
from triptych.io.limits import check_bytes, check_size, too_large
from triptych.io.pixels import PixelSpec
from triptych.io.repair import JPEG_END, essential_jpeg, essential_png, missing_rows

if TYPE_CHECKING:
    import torch

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]

PICTURE_FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000"),
    *("QOI", "SGI", "PCX", "DIB", "TGA"),
)
"""The formats that Pillow decodes itself, without those that start another program (EPS) or contain other files (ICO)."""
JPEG_FORMATS = ("JPEG", "MPO")
RGB_BYTES = 4  # of a pixel in memory
JPEG_BYTES, OTHER_BYTES = 13, 20
"""Of a pixel while it is decoded, as measured: of a JPEG that is cut short and turned, and of a JPEG 2000."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_UPRIGHT = {  # EXIF orientation -> the transposition that turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_MISSING_SHARE, _MISSING_ROWS = 1 / 8, 16  # the larger of these may be missing from a JPEG that is cut short

LOG = logging.getLogger(__name__)
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Pillow's notes on damaged files reach stderr


def load_image(source: ImageSource, target: int | None = None) -> Image.Image:
    """Return `source` as a new upright RGB image without metadata; transparent parts become white.

    `source` is a path, a file:, http(s): or data: URL, the bytes of a file, a PIL image (any mode) or a numpy array:
    [H, W] or [H, W, 1|3|4], of uint8, uint16 (full scale 65,535), bool, or floats in 0..1. An animation is read as its
    first frame. HEIC needs `pip install 'triptych[heic]'`.

    `target`: the side in pixels to which the picture will be reduced. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its
    size, never below twice the target, which takes a third of the time for a large photo.

    A JPEG without its end is read, with a warning in the log, if no more than an eighth of its rows is missing.
    Raises InputError, one line that names the picture: it cannot be read or exceeds the bounds.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "image", shared=True)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "array")
    if isinstance(source, bytes):
        return decode_image(source, "bytes", target)
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise InputError(f"{kind}: not a picture; give a path, a URL, bytes, a PIL image or a numpy array")
    return decode_image(*read_source(source), target)


def decoding_bytes(data: bytes) -> tuple[int, int]:
    """The bytes of memory that `load_image` takes at most for a picture of this size and format, and that its result takes.

    Only the header in ``data``, the bytes of a file, is read. Raises InputError as `load_image`.
    """
    with _pillow_on_guard():
        image = _open(_essential(data, "bytes"), "bytes", None)
    pixels = image.width * image.height
    return pixels * (JPEG_BYTES if image.format in JPEG_FORMATS else OTHER_BYTES), pixels * RGB_BYTES


def decoded_pixels(path: str, target: int | None = None) -> int:
    """The pixels that `load_image` decodes of a file, as its header says; the most there can be if it cannot be read."""
    try:
        with _pillow_on_guard(), open_regular_file(path, path) as file:
            image = _read_header(file, path)
            if target is not None and image.format in JPEG_FORMATS:
                _decode_reduced(image, target)
            return image.width * image.height
    except Exception:  # decoding reports it
        return limits.MAX_PIXELS


def content_hash(image: Image.Image) -> str:
    """Return the sha256 of an RGB image's size and pixels, in hex: the same picture has the same hash in any file."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    for top in range(0, image.height, 256):  # in strips: no second copy of a large picture
        digest.update(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())
    return digest.hexdigest()


def capture_time(data: bytes) -> datetime.datetime | None:
    """The time when a photo was taken, from the EXIF in the bytes of its file (DateTimeOriginal and its fraction); None = unknown."""
    with _pillow_on_guard():
        try:
            exif = _read_header(io.BytesIO(data), "photo").getexif().get_ifd(ExifTags.IFD.Exif)
            taken = datetime.datetime.strptime(str(exif[ExifTags.Base.DateTimeOriginal]), "%Y:%m:%d %H:%M:%S")
            fraction = str(exif.get(ExifTags.Base.SubsecTimeOriginal, "0")).strip()
            return taken.replace(microsecond=int(float(f"0.{fraction}") * 1_000_000))
        except Exception:  # none, or damaged
            return None


def pixel_array(image: Image.Image, spec: PixelSpec) -> npt.NDArray[np.float32]:
    """Return an RGB image as float32 [3, size, size]: resized to a square (`PixelSpec.square`), scaled to 0..1, then (x - mean) / std.

    For the models trained here the whole photo is stretched to the square. Resampling is Pillow's, which is antialiased.
    """
    square = np.asarray(spec.square(image))
    values = np.ascontiguousarray(square.transpose(2, 0, 1)).astype(np.float32)
    values /= np.float32(255)
    values -= np.array(spec.mean, np.float32)[:, None, None]
    values /= np.array(spec.std, np.float32)[:, None, None]
    return values


def pixel_values(image: Image.Image, spec: PixelSpec) -> "torch.Tensor":
    """`pixel_array` for torch."""
    import torch

    return torch.from_numpy(pixel_array(image, spec))


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"array: has shape {array.shape}; a picture is [H, W] or [H, W, 1, 3 or 4]")
    check_size((array.shape[1], array.shape[0]), "array")
    if array.dtype == np.bool_:
        levels = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint8:
        levels = array
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        levels = to_levels(array, 65535)
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # in this form it refuses NaN, too
            raise InputError(f"array: {array.dtype} values must lie in 0..1; give uint8 for 0..255")
        levels = to_levels(array, 1)
    else:
        raise InputError(
            f"array: {array.dtype} values have no known range; give uint8, uint16, bool, or floats in 0..1"
        )
    return Image.fromarray(np.ascontiguousarray(levels[..., 0] if levels.shape[2:] == (1,) else levels))


def decode_image(data: bytes, name: str, target: int | None = None) -> Image.Image:
    """The picture in the bytes of a file, as `load_image` returns it; ``name``: for messages."""
    data = _essential(data, name)
    with _pillow_on_guard():
        image = _open(data, name, target)
        if image.format in JPEG_FORMATS:
            image = _load_jpeg(image, data, name, target)
        return _to_rgb(image, name)


def _essential(data: bytes, name: str) -> bytes:
    """Raises InputError: it is empty or too large."""
    if not data:
        raise InputError(f"{name}: is empty")
    check_bytes(data, name)
    return essential_jpeg(essential_png(data))


def _open(data: bytes, name: str, target: int | None) -> Image.Image:
    """Read only the header, and check the cost of decoding the rest."""
    try:
        image = _read_header(io.BytesIO(data), name)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise too_large(name) from None
    except Exception:  # on hostile bytes each format has exceptions of its own
        known = ", ".join(PICTURE_FORMATS)
        raise InputError(f"{name}: not a picture, or damaged at its start (known: {known}, HEIC)") from None
    check_size(image.size, name)
    if image.format in JPEG_FORMATS:
        scans = data.count(b"\xff\xda")
        if scans * image.width * image.height > limits.MAX_SCANNED_PIXELS:
            raise InputError(f"{name}: this JPEG has too many scans ({scans}); save it again and retry")
        if target is not None:
            _decode_reduced(image, target)
    return image


def _decode_reduced(image: Image.Image, target: int) -> None:
    """Let a JPEG be decoded at 1/8, 1/4 or 1/2 of its size, not below twice the target.

    Sides are rounded up to whole pixels. A reduction is not used if that shifts the picture by more than a twentieth of a
    pixel of the target.
    """
    for part in (8, 4, 2):
        if all(side >= 2 * target * part and 20 * (-side % part) * target <= side for side in image.size):
            image.draft(image.mode, (image.width // part, image.height // part))
            return


def _read_header(file: BinaryIO, name: str) -> Image.Image:
    start = file.read(64)
    file.seek(0)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and b"avif" not in start[8:]:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise InputError(f"{name}: HEIC pictures need a plugin: pip install 'triptych[heic]'") from None
        read_header: Callable[[BinaryIO], Image.Image] = HeifImageFile
        return read_header(file)
    return Image.open(file, formats=PICTURE_FORMATS)


def _load_jpeg(image: Image.Image, data: bytes, name: str, target: int | None) -> Image.Image:
    """Decode a JPEG; if its end is missing, add one, which leaves the missing rows grey."""
    try:
        image.load()
        return image
    except OSError:
        whole = _open(data + JPEG_END, name, target)
        try:
            whole.load()
        except OSError:
            return image  # damaged in another way: _to_rgb fails, too, and reports it
    missing = missing_rows(whole)
    if missing > max(_MISSING_ROWS, whole.height * _MISSING_SHARE):
        return image
    LOG.warning("%s: the end of this JPEG is missing; what is there is used", name)
    return whole


def _to_rgb(image: Image.Image, name: str, shared: bool = False) -> Image.Image:
    """``shared``: the caller keeps ``image``, so the result has pixels of its own."""
    with _pillow_on_guard():
        try:
            check_size(image.size, name)
            image.load()
            check_size(image.size, name)  # some formats have the true size only now
            rgb = grey_to_rgb(image, name) if image.mode[0] in "IF" else _colour_to_rgb(image, shared)
            turn = _turn_upright(image)
            rgb = rgb if turn is None else rgb.transpose(turn)
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise too_large(name) from None
        except MemoryError:
            raise InputError(f"{name}: not enough memory to decode it; make it smaller") from None
        except Exception:  # on hostile bytes each format has exceptions of its own
            kind = f" ({image.format})" if image.format else ""
            raise InputError(
                f"{name}: the picture{kind} is damaged or cut short; get it again, or save it again"
            ) from None
    rgb.info.clear()  # with the orientation in it, the result would be turned again when it is read
    return rgb


def _colour_to_rgb(image: Image.Image, shared: bool) -> Image.Image:
    """Large pictures are not copied without need: several copies would be in memory together."""
    if not image.has_transparency_data:
        return image._new(image.im) if image.mode == "RGB" and not shared else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(rgba, mask=rgba)
    return rgb


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a picture with damaged metadata is still usable
        return None


_guard_lock = threading.Lock()
_guard_exit = contextlib.ExitStack()
_guarded = 0


@contextlib.contextmanager
def _pillow_on_guard() -> Iterator[None]:
    """Silence Pillow's warnings and set its pixel limit to ours while any thread is in the block.

    Both are global to the process, so the first thread to enter sets them and the last to leave restores them.
    """
    global _guarded
    with _guard_lock:
        if _guarded == 0:
            _guard_exit.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\b")
            _guard_exit.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = (limits.MAX_PIXELS + 1) // 2  # Pillow refuses above twice this
        _guarded += 1
    try:
        yield
    finally:
        with _guard_lock:
            _guarded -= 1
            if _guarded == 0:
                _guard_exit.close()
