"""The features of the encoder's frozen trunk, computed once for each photo and its mirror image and kept on disk (fp16)."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from triptych.checkpoints.format import sha256_of
from triptych.data import Photo
from triptych.data.reading import PhotoReader
from triptych.errors import InputError, TriptychError
from triptych.io.files import write_file
from triptych.io.images import pixel_values
from triptych.nn.encoder import VisionEncoder
from triptych.nn.vit import ViT

FLUSH_EVERY = 64  # photos between two records of progress; an interruption loses at most these
NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


class Features(Protocol):
    """``features[rows, mirrored]`` -> the trunk's output ``[B, ...]`` in fp32: maps ``[C, h, w]`` of a CNN, cells ``[L, D]`` of a
    transformer. ``mirrored``: 1 = that of the mirror image."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: tuple[Sequence[int], Sequence[int]]) -> Tensor: ...


class StoredFeatures:
    """Features in an array ``[photos, 2, ...]``, read from disk as needed. ``rows``: the rows to use, None = all."""

    def __init__(self, maps: np.ndarray[Any, Any], rows: Sequence[int] | None = None) -> None:
        self.maps, self.rows = maps, range(len(maps)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: tuple[Sequence[int], Sequence[int]]) -> Tensor:
        chosen = [self.maps[self.rows[row], mirror] for row, mirror in zip(*rows, strict=True)]
        return torch.from_numpy(np.stack(chosen)).float()


class JoinedFeatures:
    """The features of several sets of pictures, numbered one set after another."""

    def __init__(self, *parts: Features) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, rows: tuple[Sequence[int], Sequence[int]]) -> Tensor:
        features = []
        for row, mirror in zip(*rows, strict=True):
            for part in self.parts:
                if row < len(part):
                    features.append(part[[row], [mirror]])
                    break
                row -= len(part)
            else:
                raise IndexError(f"{row + len(self)} of {len(self)} pictures")
        return torch.cat(features)


def features_key(photos: Sequence[Photo], encoder: VisionEncoder, dtype: torch.dtype) -> str:
    """A name in the cache that depends on the photos' bytes and how they are resized, the trunk, and the precision."""
    described = f"{encoder.name} {encoder.image_size} {encoder.cut} {dtype}"
    if isinstance(encoder, ViT):  # the pixels and layers of a CNN follow from its name and size
        described += f" {encoder.config} {encoder.pixels}"
    digest = hashlib.sha256(described.encode())
    digest.update(sha256_of(encoder.frozen_layers.state_dict()).encode())
    for photo in photos:
        try:
            digest.update(hashlib.sha256(photo.read()).digest())
        except InputError:
            digest.update(b"unreadable")
    return digest.hexdigest()[:16]


@torch.inference_mode()
def cached_features(
    photos: Sequence[Photo],
    encoder: VisionEncoder,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    reader: PhotoReader | None = None,
) -> StoredFeatures:
    """The features of ``photos``, from the cache in ``directory`` or computed; continues where it was interrupted.

    Args:
        dtype: the trunk's precision; bfloat16 is about three times as fast on processors that have it.
        reader: names and counts unreadable photos, which are left out: ``rows`` of the result are the others.
            None = the first unreadable photo raises InputError.

    Raises:
        InputError: a photo cannot be read, and the reader is strict; or no photo can be read.
        TriptychError: the disk is full or not writable.
    """
    reader = reader or PhotoReader(strict=True)
    folder = directory / features_key(photos, encoder, dtype)
    progress = folder / "progress.json"
    device = next(encoder.parameters()).device
    trunk = copy.deepcopy(encoder.frozen_layers).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features_of(image: Image.Image) -> Tensor:
        pixels = pixel_values(image, encoder.pixels)
        both = torch.stack([pixels, pixels.flip(-1)]).to(device, dtype, memory_format=torch.channels_last)
        features = trunk(both).to("cpu", torch.float16)
        if not features.isfinite().all():
            raise TriptychError(f"{encoder.name} has features that 16 bits cannot hold: choose another --encoder")
        return features

    shape = (len(photos), *features_of(Image.new("RGB", (8, 8))).shape)
    with naming_the_folder(folder, shape):
        reserve(folder, shape)
        maps = np.lib.format.open_memmap(folder / "maps.npy", "r+")
        known = json.loads(progress.read_text()) if progress.exists() else {}
        done, damaged = known.get("photos", 0), list(known.get("damaged", []))
        for row in damaged:
            reader.image(photos[row])  # reads them again, so that they are named and counted in each run
        rows = range(done, len(photos))
        for row in track(rows, f"{encoder.name} features", console=Console(stderr=True), disable=not rows):
            image = reader.image(photos[row])
            if image is None:
                damaged.append(row)
            else:
                maps[row] = features_of(image).numpy()
            if (row + 1) % FLUSH_EVERY == 0 or row + 1 == len(photos):
                maps.flush()
                write_file(progress, json.dumps({"photos": row + 1, "damaged": damaged}))
    if len(damaged) == len(photos):
        raise InputError(f"none of the {len(photos)} photos can be read; {next(iter(reader.damaged.values()))}")
    kept = sorted(set(range(len(photos))) - set(damaged))
    return StoredFeatures(np.lib.format.open_memmap(folder / "maps.npy", mode="r"), kept)


@contextmanager
def naming_the_folder(folder: Path, shape: tuple[int, ...]) -> Iterator[None]:
    """Turns an OSError into a TriptychError with the folder's name, and for a full disk the room that is needed."""
    try:
        yield
    except OSError as error:
        needed = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = f"; about {np.prod(shape) * 2 / 2**30:.1f} GiB are needed"
        raise TriptychError(f"{folder}: cannot write the features ({error.strerror or error}){needed}") from error


def reserve(folder: Path, shape: tuple[int, ...]) -> None:
    """Make ``folder`` with an array of zeros and allocate all its bytes, so that a full disk fails here, not in the middle of a write.

    The folder is made under another name and renamed, which never replaces one that another run is filling. Two runs that start
    at the same time write the same values into one array.
    """
    array = folder / "maps.npy"
    if array.exists():
        return
    beside = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(beside / array.name, "w+", np.float16, shape)
        take_room(beside / array.name)
        try:
            beside.rename(folder)
        except OSError:
            if not array.exists():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def take_room(file: Path) -> None:
    """Allocate all bytes of a sparse file of zeros; where the file system cannot do that, write them."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, size)
            return
        except AttributeError:
            pass  # Windows, macOS
        except OSError as error:
            if error.errno not in NO_FALLOCATE:
                raise
        start = opened.read(1 << 12)  # the header of the array
        opened.seek(0)
        opened.write(start)
        for first in range(len(start), size, 1 << 24):
            opened.write(bytes(min(1 << 24, size - first)))
