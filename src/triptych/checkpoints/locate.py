"""Where checkpoints are, and whether their files belong together. Nothing here needs torch."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from triptych.checkpoints.config import CheckpointConfig, read_config
from triptych.checkpoints.parts import home
from triptych.errors import InputError, TriptychError
from triptych.io.files import sha256_of_file, write_file

BUNDLED = Path(__file__).parents[1] / "weights"


def load_config(directory: Path | str) -> CheckpointConfig[dict[str, Any]]:
    """The config of a checkpoint, given its directory or its config.json. Raises InputError: see ``read_config``."""
    path = Path(directory)
    return read_config(path if path.name == "config.json" else existing_or_backup(path) / "config.json")


def check_files(directory: Path, config: CheckpointConfig[Any]) -> None:
    """Whether the files are those that the config was written with. The weights are hashed once for each size and time of change.

    Raises:
        InputError: a file is missing, or is another.
    """
    for name in {config.weights, *config.files}:
        path = directory / name
        try:
            intact = (weights_hash(path) if name == config.weights else sha256_of_file(path)) == config.files.get(name)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
        if not intact:
            raise InputError(f"{path} is damaged or of another checkpoint: config.json expects another sha256")


def weights_hash(path: Path) -> str:
    """The sha256 of a file, which the cache remembers for as long as its size and time stay the same. Raises OSError."""
    stat = path.stat()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    note, key = home() / "hashes" / place[:32], f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    with suppress(OSError, ValueError):
        remembered, _, digest = note.read_text().rpartition(" ")
        if remembered == key:
            return digest
    digest = sha256_of_file(path)
    with suppress(OSError, TriptychError):  # a cache that cannot be written costs time, not more
        note.parent.mkdir(parents=True, exist_ok=True)
        write_file(note, f"{key} {digest}")
    return digest


def refuse_adapter(directory: Path) -> None:
    """Raises InputError: the folder holds an adapter; a model beside it, read alone, would write other texts."""
    if (directory / "adapter_config.json").exists():
        raise InputError(
            f"{directory} holds an adapter: merge it into its base model (peft: merge_and_unload) and save that"
        )


def features_fingerprint(config: CheckpointConfig[Any]) -> str:
    """Names the weights that BLIP-2's features for contrast come from: those of the checkpoint, and the image encoder below them."""
    encoder = config.encoder
    name = f"{config.files.get(config.weights, 'unsaved')[:32]}-{encoder.name}-{encoder.image_size}"
    return name if encoder.shortest_side is None else f"{name}-{encoder.shortest_side}"


def backup_of(directory: Path) -> Path:
    """Where a save keeps what it replaces until it is done."""
    return directory.with_name(f".{directory.name}.old")


def existing_or_backup(directory: Path) -> Path:
    """The directory to read: itself, or its predecessor when a crash came between the two renames of a save."""
    return backup_of(directory) if not directory.exists() and backup_of(directory).exists() else directory


def shipped_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.name for path in BUNDLED.iterdir())
