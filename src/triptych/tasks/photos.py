"""A photo is encoded once for as long as it is remembered, by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from triptych.io.images import ImageSource, content_hash, load_image, pixel_values

REMEMBERED_BYTES = 128 * 2**20  # of photos' features that a model keeps


class PhotoMemory:
    """``memory(image)`` -> what the frozen encoder makes of it, ``[1, ...]``."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
    ) -> None:
        """``encode``: ``pixel_values [1, 3, size, size]`` -> features; ``mean``, ``std``: of its pixels."""
        self.encode, self.size, self.mean, self.std, self.device = encode, size, mean, std, device
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    @torch.inference_mode()
    def __call__(self, image: ImageSource) -> Tensor:
        photo = load_image(image, self.size)
        key = content_hash(photo)
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            pixels = pixel_values(photo, self.size, self.mean, self.std)[None].to(self.device)
            found = self.encode(pixels.contiguous(memory_format=torch.channels_last)).contiguous()
        with self._lock:
            self._kept[key] = found
            self._kept.move_to_end(key)
            while len(self._kept) * found.nbytes > max(REMEMBERED_BYTES, found.nbytes):
                self._kept.popitem(last=False)
        return found
