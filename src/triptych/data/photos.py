"""A photo of a data set."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.errors import InputError
from triptych.io.images import decode_image
from triptych.io.limits import MAX_BYTES


@dataclass(frozen=True)
class Photo:
    """One photo of a data set; its encoded bytes stay on disk until `read`.

    ``path`` is the photo's own file, or a tar shard in which it is the ``size`` bytes from ``offset`` on. ``extra`` holds
    what else the data set says of it (boxes, questions, conversations, size); ``written`` are captions by a model. A photo can
    be pickled.
    """

    id: str
    split: str
    captions: tuple[str, ...]
    extra: Mapping[str, Any] = field(hash=False)
    path: Path
    offset: int = 0
    size: int | None = None
    written: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Where the photo is, for messages."""
        return str(self.path) if self.size is None else f"{self.path}: {self.id}"

    def read(self) -> bytes:
        """The encoded file. Raises InputError where it is gone, cut short, or larger than `triptych.io.limits.MAX_BYTES`."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read(MAX_BYTES + 1 if self.size is None else min(self.size, MAX_BYTES + 1))
        except OSError as error:
            raise InputError(f"{self.name}: the photo cannot be read ({error.strerror})") from error
        if len(content) > MAX_BYTES:
            raise InputError(f"{self.name}: more than {MAX_BYTES // 2**20} MiB, too much for a photo")
        if self.size is not None and len(content) < self.size:
            raise InputError(f"{self.name}: the shard has been cut short since it was opened")
        return content

    def image(self, target: int | None = None) -> Image.Image:
        """The picture, upright RGB; ``target`` as in `load_image`. Raises InputError where it cannot be read."""
        return decode_image(self.read(), self.name, target)


def is_file(path: Path) -> bool:
    """Whether there is a file, or a link to one; False for names that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113  (Path.is_file raises on a name that is too long)
