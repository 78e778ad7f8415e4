"""WebDataset shards: plain tar files in which ``KEY.jpg`` goes with ``KEY.json`` or ``KEY.txt`` (one caption per line).

A shard is indexed once, by offset and size; a photo is then read with one seek, by as many processes as one likes.
"""

import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from triptych.data.photos import Photo
from triptych.data.records import (
    captions_of,
    decode_text,
    parse_json,
    record_of,
    split_in_name,
    split_of,
    take_captions,
    text_of,
)
from triptych.errors import InputError
from triptych.io.folders import SUFFIXES

PICTURES = {suffix.removeprefix(".") for suffix in SUFFIXES}
TEXTS = {"json", "txt"}
MAX_RECORD = 16 * 2**20
"""The largest text beside a photo, in bytes."""

LOG = logging.getLogger(__name__)


@dataclass
class Shard:
    """What a tar file holds: each picture's offset and size, each text by its suffix, and the members left out."""

    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def find(path: Path) -> list[Path]:
    """The shard ``path``, or those in the folder."""
    return sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []


def read(source: Path, root: Path) -> list[Photo]:
    """The photos of a shard in the order in which they lie there; how many of its files are left out is logged."""
    shard = _index(source)
    _settle_dotted_names(source, shard)
    if shard.left_out:
        names = ", ".join(shard.left_out[:3]) + (", ..." if len(shard.left_out) > 3 else "")
        LOG.warning("%s: %d files left out, neither pictures nor captions: %s", source, len(shard.left_out), names)
    return list(_photos(source, shard))


def _photos(source: Path, shard: Shard) -> Iterator[Photo]:
    shard_split = split_in_name(source.stem)
    for key, (offset, size) in shard.pictures.items():
        text, where = shard.texts.get(key, {}), f"{source}: {key}"
        record = record_of(parse_json(text.get("json", "{}"), f"{where}.json"), f"{where}.json")
        captions = captions_of(take_captions(record), f"{where}.json")
        yield Photo(
            id=text_of(record.pop("id", key), where),
            split=split_of(where, shard_split, record.pop("split", None)),
            captions=captions or captions_of(text.get("txt", "").splitlines(), f"{where}.txt"),
            extra=record,
            path=source,
            offset=offset,
            size=size,
        )


def _settle_dotted_names(source: Path, shard: Shard) -> None:
    """Leave out files that belong to another photo: ``a.mask.png`` and ``a.boxes.json`` beside ``a.jpg``.

    Raises InputError for a text without a photo.
    """
    for key in [key for key in shard.pictures if "." in key.rpartition("/")[2]]:
        if _first_part(key) in shard.pictures and key not in shard.texts:
            del shard.pictures[key]
            shard.left_out.append(key)
    for key in [key for key in shard.texts if key not in shard.pictures and _first_part(key) in shard.pictures]:
        shard.left_out += [f"{key}.{suffix}" for suffix in shard.texts.pop(key)]
    orphans = shard.texts.keys() - shard.pictures.keys()
    if orphans:
        others = f" (nor for {len(orphans) - 1} others)" if len(orphans) > 1 else ""
        raise InputError(f"{source}: no photo for {min(orphans)!r}{others}: expected .{', .'.join(sorted(PICTURES))}")


def _first_part(key: str) -> str:
    """WebDataset's key, which ends at the first dot of the name."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _index(source: Path) -> Shard:
    shard = Shard()
    try:
        with source.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # would lead tarfile back to where it has been
                    raise tarfile.ReadError(f"negative size at byte {member.offset}")
                if not member.isdir():
                    _add(shard, source, member, file)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops there without a word
                raise tarfile.ReadError(f"neither a header nor the end at byte {tar.offset}")
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{source}: not a whole, uncompressed tar file ({error})") from error
    return shard


def _add(shard: Shard, source: Path, member: tarfile.TarInfo, file: BinaryIO) -> None:
    folder, slash, base = member.name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    if suffix.lower() not in PICTURES | TEXTS:
        stem, _, suffix = base.rpartition(".")
    key, suffix, where = folder + slash + stem, suffix.lower(), f"{source}: {member.name}"
    if base.startswith("."):
        return
    if suffix not in PICTURES | TEXTS:
        shard.left_out.append(member.name)
    elif not member.isreg() or member.issparse():
        raise InputError(f"{where}: not a plain file: pack the shard without links")
    elif suffix in PICTURES:
        if key in shard.pictures:
            raise InputError(f"{where}: a second photo of that name: give each its own")
        shard.pictures[key] = member.offset_data, member.size
    else:
        if member.size > MAX_RECORD:
            raise InputError(f"{where}: more than {MAX_RECORD // 2**20} MiB of text")
        file.seek(member.offset_data)
        shard.texts.setdefault(key, {})[suffix] = decode_text(file.read(member.size), where)
