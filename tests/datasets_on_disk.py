"""Small data sets on disk, and what opening them gives."""

import io
import json
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from triptych.data import Photo, open_dataset
from triptych.errors import InputError

RANDOM = random.Random(0)

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(suffix: str = "jpg") -> bytes:
    file = io.BytesIO()
    colour = tuple(RANDOM.randrange(256) for _ in range(3))
    Image.new("RGB", (RANDOM.randint(3, 9), RANDOM.randint(3, 9)), colour).save(
        file, {"jpg": "JPEG"}.get(suffix, suffix)
    )
    return file.getvalue()


def put(path: Path, content: bytes | str | None = None) -> bytes:
    """Write ``content`` (a new picture, if it is not given) to ``path``."""
    content = picture() if content is None else content
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def put_tar(path: Path, members: Mapping[str, bytes | str]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(path: Path, *parts: str, split: str | None = None) -> None:
    """Opening ``path`` fails with one line that holds all ``parts``."""
    with pytest.raises(InputError) as error:
        open_dataset(path, split)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def summary(photos: list[Photo]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(photo.id, photo.split, photo.captions) for photo in photos]
