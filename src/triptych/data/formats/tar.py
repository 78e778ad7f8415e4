"""WebDataset shards: plain tar files in which ``KEY.jpg`` goes with ``KEY.json`` or ``KEY.txt`` (one caption per line).

A shard is indexed once, by offset and size; a photo is then read with one seek, by as many processes as one likes.
"""

import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from triptych.data.photos import SPLITS, Photo, captions_of, decode, parse_json, record_of, split_of, text_of
from triptych.errors import InputError

PICTURES = {"jpg", "jpeg", "png", "webp"}
TEXTS = {"json", "txt"}
MAX_RECORD = 16 * 2**20
"""The largest text beside a photo, in bytes."""


def read_shards(shards: Iterable[Path]) -> list[Photo]:
    """The photos of ``shards`` in the order in which they lie there."""
    return [photo for shard in shards for photo in _photos(shard)]


def _photos(shard: Path) -> Iterator[Photo]:
    pictures, texts = _index(shard)
    orphans = texts.keys() - pictures.keys()
    if orphans:
        others = f" (nor for {len(orphans) - 1} others)" if len(orphans) > 1 else ""
        raise InputError(f"{shard}: no photo for {min(orphans)!r}{others}: expected .{', .'.join(sorted(PICTURES))}")
    named = re.fullmatch(r"(?:.*-)?([a-z]+)\d*(?:-\d+)?", shard.stem.lower())
    shard_split = named[1] if named and named[1] in SPLITS else None
    for key, (offset, size) in pictures.items():
        text, where = texts.get(key, {}), f"{shard}: {key}"
        record = record_of(parse_json(text.get("json", "{}"), f"{where}.json"), f"{where}.json")
        captions = captions_of(record.pop("captions", record.pop("caption", None)), f"{where}.json")
        yield Photo(
            id=text_of(record.pop("id", key), where),
            split=split_of(where, shard_split, record.pop("split", None)),
            captions=captions or captions_of(text.get("txt", "").splitlines(), f"{where}.txt"),
            extra=record,
            path=shard,
            offset=offset,
            size=size,
        )


def _index(shard: Path) -> tuple[dict[str, tuple[int, int]], dict[str, dict[str, str]]]:
    """KEY -> offset and size of its picture; KEY -> "json" or "txt" -> that text."""
    pictures: dict[str, tuple[int, int]] = {}
    texts: dict[str, dict[str, str]] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # would lead tarfile back to where it has been
                    raise tarfile.ReadError(f"negative size at byte {member.offset}")
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                key, suffix = folder + slash + stem, suffix.lower()
                if not stem or suffix not in PICTURES | TEXTS or member.isdir():
                    continue
                where = f"{shard}: {member.name}"
                if not member.isreg() or member.issparse():
                    raise InputError(f"{where}: not a plain file: pack the shard without links")
                if suffix in PICTURES:
                    if key in pictures:
                        raise InputError(f"{where}: a second photo of that name: give each its own")
                    pictures[key] = member.offset_data, member.size
                else:
                    if member.size > MAX_RECORD:
                        raise InputError(f"{where}: more than {MAX_RECORD // 2**20} MiB of text")
                    file.seek(member.offset_data)
                    texts.setdefault(key, {})[suffix] = decode(file.read(member.size), where)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops there without a word
                raise tarfile.ReadError(f"neither a header nor the end at byte {tar.offset}")
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{shard}: not a whole, uncompressed tar file ({error})") from error
    return pictures, texts
