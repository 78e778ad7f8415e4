"""How a photo is cropped, resampled and normalised for an image encoder. Published encoders differ in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.errors import InputError

Colour: TypeAlias = tuple[float, float, float]  # red, green, blue
Resampling: TypeAlias = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
FILTERS: tuple[Resampling, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
MAX_SQUARE = 4096
MAX_ASPECT = 16  # longer photos are cropped to this aspect ratio before they are resampled


@dataclass(frozen=True)
class PixelSpec:
    """How a photo becomes ``pixel_values [3, size, size]``.

    size: side of the square, in pixels. mean, std: of each channel, on a scale from 0 to 1.
    shortest_side: the photo is resampled so that its shorter side has this length, in pixels, and cropped to the central square; None =
        the whole photo is stretched to the square.
    reduced: a large JPEG may first be decoded at 1/2, 1/4 or 1/8 of its size, which is faster and changes the pixels a little.
    """

    size: int
    mean: Colour
    std: Colour
    shortest_side: int | None = None
    resample: Resampling = "bicubic"
    reduced: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SQUARE:
            raise InputError(f"photos of {self.size} pixels: expected 1 to {MAX_SQUARE}")
        if self.shortest_side is not None and not self.size <= self.shortest_side <= MAX_SQUARE:
            raise InputError(f"a shortest side of {self.shortest_side} pixels: expected {self.size} to {MAX_SQUARE}")
        if self.resample not in FILTERS:
            raise InputError(f"unknown resampling {self.resample!r}: expected one of {', '.join(FILTERS)}")
        if not all(map(isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise InputError(f"pixels normalised by {self.mean} and {self.std}: expected numbers, the second above 0")

    @property
    def decode_side(self) -> int | None:
        """The ``target`` of ``load_image``."""
        return self.size if self.reduced else None

    def square(self, image: Image.Image) -> Image.Image:
        """The photo as the square that the encoder reads. The crop's corner is rounded down, as in transformers."""
        resample = Image.Resampling(FILTERS.index(self.resample))
        if self.shortest_side is None:
            return image.resize((self.size, self.size), resample)
        short, long = sorted(image.size)
        if long > MAX_ASPECT * short:  # the rest would be cropped anyway, and resampling it takes unbounded memory
            kept = [min(side, MAX_ASPECT * short) for side in image.size]
            left, top = ((side - part) // 2 for side, part in zip(image.size, kept, strict=True))
            image = image.crop((left, top, left + kept[0], top + kept[1]))
            short, long = sorted(image.size)
        longer = int(self.shortest_side * long / short)
        width, height = image.size
        size = (self.shortest_side, longer) if width <= height else (longer, self.shortest_side)
        left, top = ((side - self.size) // 2 for side in size)
        return image.resize(size, resample).crop((left, top, left + self.size, top + self.size))

    def over_photo(self, maps: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
        """Maps ``[..., h, w]`` over the square -> maps over the whole photo with the same shape and sums, 0 outside the square."""
        if self.shortest_side is None:
            return maps
        part = self.size / self.shortest_side * min(width, height)
        down = spread(maps.shape[-2], part / height)
        across = spread(maps.shape[-1], part / width)
        return np.asarray(down @ maps @ across.T, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The settings that determine the pixel values, for JSON."""
        return {
            "size": self.size,
            "shortest_side": self.shortest_side,
            "resample": self.resample,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def spread(cells: int, share: float) -> NDArray[np.float64]:
    """``[cells, cells]``: the part of each cell of a line's middle ``share`` that lies in each cell of the whole line."""
    ends = np.linspace(0, 1, cells + 1)
    inner = (1 - share) / 2 + share * ends
    first, last = np.maximum(ends[:-1, None], inner[:-1]), np.minimum(ends[1:, None], inner[1:])
    return np.maximum(last - first, 0) / (share / cells)


def pixel_spec(settings: Mapping[str, Any], image_size: int, mean: Colour, std: Colour) -> PixelSpec:
    """The ``PixelSpec`` of an image processor's settings, from transformers' preprocessor_config.json.

    Args:
        image_size: of the encoder, in pixels.
        mean, std: the defaults if the settings have none.

    Raises:
        InputError: a setting is invalid or not supported.
    """
    try:
        if not settings.get("do_rescale", True) or abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise InputError("image processor settings: do_rescale must be true and rescale_factor 1/255")
        if not settings.get("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        elif "image_mean" in settings:
            (r, g, b), (r_, g_, b_) = (map(float, settings[f"image_{x}"]) for x in ("mean", "std"))
            mean, std = (r, g, b), (r_, g_, b_)
        resample = FILTERS[int(settings.get("resample", FILTERS.index("bicubic")))]
        size, crop = settings.get("size", image_size), settings.get("crop_size", image_size)
        short = size.get("shortest_edge") if isinstance(size, Mapping) else None
        crops = settings.get("do_center_crop", short is not None)
        if isinstance(size, int) and crops:  # the form of older versions of CLIP's processor
            short = size
        if not settings.get("do_resize", True) or short is None or not crops:
            return PixelSpec(image_size, mean, std, resample=resample)
        square = crop.get("height", image_size) if isinstance(crop, Mapping) else crop
        return PixelSpec(image_size, mean, std, round(short * image_size / square), resample)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"image processor settings: invalid value ({type(error).__name__}: {error})") from None
