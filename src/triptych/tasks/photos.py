"""Photos are encoded once for as long as they are remembered, by content, and several at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock

import numpy as np

from triptych.engines.interface import Array, PhotoEncoder
from triptych.evidence import Floats
from triptych.io.images import ImageSource, content_hash, load_image, pixel_array
from triptych.io.pixels import PixelSpec

REMEMBERED_BYTES = 128 * 2**20  # of photos' features that a model keeps
ENCODED_TOGETHER = 8  # photos; more take memory and save no time on a CPU
DECODED_TOGETHER = 16  # prompts


class ArrayMemory:
    """Arrays by key; the least recently used are forgotten beyond ``limit`` bytes, but never the last one. Threads may share it."""

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
                self._bytes -= self._arrays.pop(key).nbytes
            self._arrays[key] = array
            self._bytes += array.nbytes
            while self._bytes > self.limit and len(self._arrays) > 1:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._arrays)


class PhotoMemory:
    """``memory(images)`` -> what the frozen encoder makes of each."""

    def __init__(self, encoder: PhotoEncoder, limit: int = REMEMBERED_BYTES) -> None:
        self.encoder, self.features = encoder, ArrayMemory(limit)
        self._lock = Lock()

    def __call__(self, images: Sequence[ImageSource]) -> list[Array]:
        """The image features of each. Raises InputError for one that cannot be read."""
        with self._lock:  # a photo that two threads need is encoded by one of them
            return self._encode(images)

    def _encode(self, images: Sequence[ImageSource]) -> list[Array]:
        pixels = self.encoder.photos.pixels
        keys: list[str] = []
        known: dict[str, Array] = {}
        new: dict[str, Floats] = {}  # pixels, of one size: the photos themselves may be large
        for image in images:
            photo = load_image(image, pixels.decode_side)
            keys.append(key := content_hash(photo))
            if key in known or key in new:
                continue
            if (features := self.features.get(key)) is not None:
                known[key] = features
            else:
                new[key] = pixel_array(photo, pixels)
        waiting = list(new)
        for first in range(0, len(waiting), ENCODED_TOGETHER):
            part = waiting[first : first + ENCODED_TOGETHER]
            batch = np.stack([new.pop(key) for key in part])
            for key, features in zip(part, self.encoder.encode(batch), strict=True):
                known[key] = features
                self.features.put(key, features)
        return [known[key] for key in keys]


def over_photos(maps: Floats, images: Sequence[ImageSource], pixels: PixelSpec) -> Floats:
    """Maps ``[T, N, h, w]`` over what the encoder saw of N pictures as maps over the whole pictures."""
    if pixels.shortest_side is None:
        return maps
    sizes = [load_image(image).size for image in images]
    return np.stack([pixels.over_photo(maps[:, n], *size) for n, size in enumerate(sizes)], 1)
