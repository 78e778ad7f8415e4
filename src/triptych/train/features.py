"""What the encoder's frozen trunk makes of each photo, computed once and kept on disk (fp16), for the photo and its mirror image."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from triptych.checkpoints.format import sha256_of
from triptych.data import Photo
from triptych.errors import TriptychError
from triptych.io.images import pixel_values
from triptych.nn.encoder import VisionEncoder

FLUSH_EVERY = 64  # photos between two records of progress: what an interruption can cost


class Features:
    """``features[rows, mirrored]`` -> ``maps [B, C, h, w]`` fp32, read from disk as needed."""

    def __init__(self, maps: np.memmap) -> None:
        self.maps = maps

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, rows: tuple[Sequence[int], Sequence[int]]) -> Tensor:
        photos, mirrored = rows
        return torch.from_numpy(np.stack([self.maps[p, m] for p, m in zip(photos, mirrored, strict=True)])).float()


def features_key(photos: Sequence[Photo], encoder: VisionEncoder, dtype: torch.dtype) -> str:
    """A name for the cache: it changes with the photos' bytes, the trunk's weights, the image size and the precision."""
    digest = hashlib.sha256(f"{encoder.name} {encoder.image_size} {encoder.cut} {dtype}".encode())
    digest.update(sha256_of(encoder.frozen_layers.state_dict()).encode())
    for photo in photos:
        digest.update(hashlib.sha256(photo.read()).digest())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def cached_features(
    photos: Sequence[Photo], encoder: VisionEncoder, directory: Path, dtype: torch.dtype = torch.float32
) -> Features:
    """Features of ``photos``, from ``directory`` where they are there, else computed; goes on where it was interrupted.

    Args:
        dtype: what the trunk computes in; bfloat16 is about three times as fast where the processor has it.

    Raises:
        TriptychError: the disk is full.
    """
    folder = directory / features_key(photos, encoder, dtype)
    progress, array = folder / "progress.json", folder / "maps.npy"
    device = next(encoder.parameters()).device
    trunk = copy.deepcopy(encoder.frozen_layers).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    example = pixel_values(photos[0].image(), encoder.image_size, encoder.mean, encoder.std)[None]
    shape = (len(photos), 2, *trunk(example.to(device, dtype)).shape[1:])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not array.exists():
            reserve(array, shape)
        done = json.loads(progress.read_text())["photos"] if progress.exists() else 0
        maps = np.lib.format.open_memmap(array, "r+")
        rows = range(done, len(photos))
        for row in track(rows, f"{encoder.name} features", console=Console(stderr=True), disable=not rows):
            pixels = pixel_values(photos[row].image(), encoder.image_size, encoder.mean, encoder.std)
            both = torch.stack([pixels, pixels.flip(-1)]).to(device, dtype, memory_format=torch.channels_last)
            maps[row] = trunk(both).to("cpu", torch.float16).numpy()
            if (row + 1) % FLUSH_EVERY == 0 or row + 1 == len(photos):
                maps.flush()
                beside = progress.with_suffix(f".{os.getpid()}.tmp")
                beside.write_text(json.dumps({"photos": row + 1}))
                beside.replace(progress)
    except OSError as error:
        raise TriptychError(
            f"{folder}: cannot write the features ({error.strerror}); about {np.prod(shape) * 2 / 2**30:.1f} GiB are needed"
        ) from error
    return Features(np.lib.format.open_memmap(array, mode="r"))


def reserve(array: Path, shape: tuple[int, ...]) -> None:
    """An array of zeros on disk with all its bytes taken now: a disk that is too full says so here, not in the middle of a write.

    Two runs that start at once write the same values into one file.
    """
    beside = array.with_suffix(f".{os.getpid()}.tmp")
    try:
        np.lib.format.open_memmap(beside, "w+", np.float16, shape)
        if hasattr(os, "posix_fallocate"):
            with beside.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, beside.stat().st_size)
        with suppress(FileExistsError):
            os.link(beside, array)  # unlike a rename, never replaces an array that another run has begun to fill
    finally:
        beside.unlink(missing_ok=True)
