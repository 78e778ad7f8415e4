"""Encoding photos, several at a time, with a memory of the last ones by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from threading import Lock

import numpy as np

from triptych.engines.interface import Array, PhotoEncoder
from triptych.evidence import Floats
from triptych.io.images import ImageSource, content_hash, load_image, pixel_array
from triptych.io.pixels import PixelSpec

REMEMBERED_BYTES = 128 * 2**20  # of image features
ENTRY_BYTES = 400  # of the objects around an array and its key
ENCODED_TOGETHER = 8  # photos; more need memory and save no time on a CPU
DECODED_TOGETHER = 16  # prompts


class ArrayMemory:
    """Arrays by key. Beyond ``limit`` bytes, keys included, the least recently used are forgotten, but never the last one.
    Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._arrays: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable) -> Array | None:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: Hashable, array: Array) -> None:
        with self._lock:
            if key in self._arrays:
                self._bytes -= size_in_memory(key, self._arrays.pop(key))
            self._arrays[key] = array
            self._bytes += size_in_memory(key, array)
            while self._bytes > self.limit and len(self._arrays) > 1:
                self._bytes -= size_in_memory(*self._arrays.popitem(last=False))

    def __len__(self) -> int:
        return len(self._arrays)


def size_in_memory(key: Hashable, array: Array) -> int:
    """Bytes of an array and its key, about."""
    return ENTRY_BYTES + len(str(key)) + int(array.nbytes)


class PhotoMemory:
    """``memory(images)`` -> the image features of each picture. Thread-safe: a photo that several threads need at the same time is
    encoded by one of them."""

    def __init__(self, encoder: PhotoEncoder, limit: int = REMEMBERED_BYTES) -> None:
        self.encoder, self.features = encoder, ArrayMemory(limit)
        self._lock = Lock()
        self._encoding: dict[str, Future[Array | None]] = {}  # by content hash; None = that thread failed

    def open(self, images: Sequence[ImageSource]) -> list[ImageSource]:
        """The pictures as the memory reads them, so that several uses read each file or address once. Raises as a call."""
        return [load_image(image, self.encoder.photos.pixels.decode_side) for image in images]

    def __call__(self, images: Sequence[ImageSource]) -> list[Array]:
        """The image features of each. Raises InputError: a picture cannot be read."""
        pixels = self.encoder.photos.pixels
        keys: list[str] = []
        known: dict[str, Array] = {}
        new: dict[str, Floats] = {}  # pixels, resized: the photos themselves may be large
        for image in images:
            photo = load_image(image, pixels.decode_side)
            keys.append(key := content_hash(photo))
            if key in known or key in new:
                continue
            if (features := self.features.get(key)) is not None:
                known[key] = features
            else:
                new[key] = pixel_array(photo, pixels)
        while new:
            known |= self._encode_once(new)
            new = {key: array for key, array in new.items() if key not in known}
        return [known[key] for key in keys]

    def _encode_once(self, new: Mapping[str, Floats]) -> dict[str, Array]:
        """The features of photos by content hash, without those that another thread tried to encode and failed."""
        known: dict[str, Array] = {}
        own: dict[str, Future[Array | None]] = {}
        others: dict[str, Future[Array | None]] = {}
        with self._lock:
            for key in new:
                if (running := self._encoding.get(key)) is not None:
                    others[key] = running
                elif (features := self.features.get(key)) is not None:
                    known[key] = features
                else:
                    own[key] = self._encoding[key] = Future()
        try:
            for first in range(0, len(own), ENCODED_TOGETHER):
                part = list(own)[first : first + ENCODED_TOGETHER]
                for key, features in zip(part, self.encoder.encode(np.stack([new[k] for k in part])), strict=True):
                    known[key] = features
                    self.features.put(key, features)
        finally:
            with self._lock:
                for key, future in own.items():
                    del self._encoding[key]
                    future.set_result(known.get(key))
        waited = {key: future.result() for key, future in others.items()}
        return known | {key: features for key, features in waited.items() if features is not None}


def over_photos(maps: Floats, images: Sequence[ImageSource], pixels: PixelSpec) -> Floats:
    """Maps ``[T, N, h, w]`` over the encoder's view of N pictures, which may be cropped, as maps over the whole pictures."""
    if pixels.shortest_side is None:
        return maps
    sizes = [load_image(image).size for image in images]
    return np.stack([pixels.over_photo(maps[:, n], *size) for n, size in enumerate(sizes)], 1)
