"""Memory that the requests in progress may take together: their bodies and their decoded pictures.

A picture may outlive its request: when the client has gone, a thread may still decode it, and a model may read it until its next step. So
the memory of a picture is given back when the picture itself is not used any more.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

from PIL.Image import Image

from triptych.serve.errors import ApiError

SCOPE_KEY = "triptych.memory"  # of a request's RequestMemory in its ASGI scope


class SharedMemory:
    """``most``: bytes that all requests may take together."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self.lock = threading.RLock()  # a picture may be collected while its thread has the lock

    def take(self, size: int) -> bool:
        """Whether there was room."""
        with self.lock:
            has_room = self.taken + size <= self.most
            self.taken += size if has_room else 0
        return has_room

    def give_back(self, size: int) -> None:
        with self.lock:
            self.taken -= size


class RequestMemory:
    """What one request takes of the shared memory: for its body until it is ``released``, for each picture as long as that is used."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared, self._own, self._body = shared, 0, 0
        self._released = False

    def take(self, size: int) -> None:
        """For a part of the body. Raises ApiError: 413, this request alone is too large; 503, others have the memory now."""
        self._take(size)
        self._body += size

    def load(self, most: int, size: int, decode: Callable[[], Image]) -> Image:
        """The picture that ``decode`` returns. It takes ``most`` bytes while it is decoded, and ``size`` bytes then.

        Raises ApiError as ``take``, or when the client has gone.
        """
        if self._released:
            raise ApiError(400, "the connection closed before the pictures were read")
        self._take(most)
        kept = 0
        try:
            picture = decode()
            weakref.finalize(picture, self._shared.give_back, size)
            kept = size
        finally:
            self._own -= most - kept
            self._shared.give_back(most - kept)
        return picture

    def _take(self, size: int) -> None:
        shared = self._shared
        if self._own + size > shared.most:
            raise ApiError(413, f"the pictures take more than {shared.most >> 20} MB: send fewer or smaller ones")
        if not shared.take(size):
            gc.collect()  # pictures of failed requests, which only the collector finds
            if not shared.take(size):
                raise ApiError(503, "too many large pictures are being read: try again later", retry_after=2)
        self._own += size

    def release(self) -> None:
        """The request is over."""
        self._shared.give_back(self._body)
        self._body, self._released = 0, True
