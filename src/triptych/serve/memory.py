"""Memory that the requests in progress may take together: their bodies and their decoded pictures."""

from __future__ import annotations

import threading

from triptych.serve.errors import ApiError

SCOPE_KEY = "triptych.memory"  # of a request's RequestMemory in its ASGI scope


class SharedMemory:
    """``most``: bytes that all requests may take together."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self.lock = threading.Lock()


class RequestMemory:
    """What one request takes of the shared memory until it is ``released``."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared, self._own = shared, 0

    def take(self, size: int) -> None:
        """Raises ApiError: 413, this request alone is too large; 503, others have the memory now."""
        shared = self._shared
        with shared.lock:
            if self._own + size > shared.most:
                raise ApiError(413, f"the pictures take more than {shared.most >> 20} MB: send fewer or smaller ones")
            if shared.taken + size > shared.most:
                raise ApiError(503, "too many large pictures are being read: try again later", retry_after=2)
            shared.taken += size
            self._own += size

    def release(self) -> None:
        with self._shared.lock:
            self._shared.taken -= self._own
            self._own = 0
