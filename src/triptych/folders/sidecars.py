"""Sidecars: small files beside each photo with its description.

``photo.txt`` has the text alone, ``photo.json`` the whole record, ``photo.xmp`` the text as ``dc:description`` or the keywords as
``dc:subject``, which photo managers read. Everything else in an ``.xmp`` file of another program is kept. If the names of two
photos differ in the suffix alone, their sidecars keep the whole name: ``photo.jpg.txt``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from triptych.errors import InputError
from triptych.folders.metadata import PhotoMetadata
from triptych.folders.xmp import (
    description,
    new_xmp,
    parse_xmp,
    set_description,
    set_subjects,
    subjects,
    xmp_bytes,
)
from triptych.io.files import json_bytes, write_file
from triptych.io.folders import is_picture_name

SIDECARS = ("txt", "json", "xmp")
EXISTING = ("skip", "overwrite", "append", "prepend")
MAX_SIDECAR = 16 << 20


@dataclass(frozen=True)
class Sidecars:
    """How sidecars are written.

    ``kinds``: some of ``SIDECARS``. ``existing``: what to do with an existing sidecar: skip the photo, overwrite the text, or append or
    prepend the new text (only once, however often it is tried); keywords are merged likewise, each once. ``prefix``, ``suffix``: put around
    every text. ``metadata``: also write into the photo itself, by the same rules.
    """

    kinds: tuple[str, ...] = ()
    existing: str = "skip"
    prefix: str = ""
    suffix: str = ""
    metadata: PhotoMetadata | None = None

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in SIDECARS:
                raise InputError(f"--sidecar is {kind!r}: choose {', '.join(SIDECARS[:-1])} or {SIDECARS[-1]}")
        if self.existing not in EXISTING:
            raise InputError(f"--existing is {self.existing!r}: choose {', '.join(EXISTING[:-1])} or {EXISTING[-1]}")
        if "json" in self.kinds and self.existing in ("append", "prepend"):
            raise InputError(f"--existing {self.existing} works with txt and xmp sidecars, not with json")

    @property
    def fill_gaps(self) -> bool:
        """Whether only missing sidecars and metadata are written."""
        return self.existing == "skip" and bool(self.kinds or self.metadata)

    def complete(self, image: str) -> bool:
        """Whether the photo can be skipped, because it has all its sidecars, and metadata if they are written."""
        if not self.fill_gaps:
            return False
        sidecars = all(path(image, kind).exists() for kind in self.kinds)
        return sidecars and (self.metadata is None or self.metadata.has_text(image))

    def write(self, image: str, record: Mapping[str, Any], text: str) -> None:
        """Write the sidecars of one photo, each atomically, and its metadata.

        Raises InputError: an existing ``.xmp`` or ``.txt`` file is not one; the photo's metadata cannot be written.
        """
        for kind in self.kinds:
            file = path(image, kind)
            if self.existing == "skip" and file.exists():
                continue
            if kind == "json":
                write_file(file, json_bytes(dict(record), indent=1) + b"\n")
            elif kind == "txt":
                old = read_sidecar(file).strip() if self.existing != "overwrite" and file.exists() else ""
                if "tags" in record:
                    words = [word for part in old.split(",") if (word := part.strip())]
                    new = ", ".join(self.merged(words, record["tags"]))
                else:
                    new = self.joined(old, text)
                write_file(file, f"{new}\n")
            else:
                tree = read_xmp(file) if file.exists() else new_xmp()
                self.describe(tree, record, text)
                write_file(file, xmp_bytes(tree))
        if self.metadata is not None and not (self.existing == "skip" and self.metadata.has_text(image)):
            self.metadata.write(image, lambda xmp: self.describe(xmp, record, text))

    def describe(self, xmp: ElementTree.Element, record: Mapping[str, Any], text: str) -> None:
        """Add the record's tags to the keywords, or else ``text`` to the description."""
        if "tags" in record:
            set_subjects(xmp, self.merged(subjects(xmp), record["tags"]))
        else:
            set_description(xmp, self.joined(description(xmp), text))

    def decorated(self, text: str) -> str:
        return f"{self.prefix}{text}{self.suffix}"

    def joined(self, old: str, text: str) -> str:
        if not old or self.existing not in ("append", "prepend"):
            return text
        if self.existing == "append":
            return old if old.endswith(text) else f"{old} {text}"
        return old if old.startswith(text) else f"{text} {old}"

    def merged(self, old: Iterable[str], words: Iterable[str]) -> list[str]:
        """Old and new keywords by ``existing``, each once."""
        before, after = {"append": (old, words), "prepend": (words, old)}.get(self.existing, ((), words))
        return list(dict.fromkeys((*before, *after)))


def path(image: str, kind: str) -> Path:
    """The path of a photo's sidecar: ``holiday/a.jpg`` -> ``holiday/a.txt``; ``a.jpg.txt`` if there is a ``holiday/a.png``."""
    photo = Path(image)
    return photo.with_name(f"{photo.name}.{kind}") if has_namesake(photo) else photo.with_suffix(f".{kind}")


def has_namesake(photo: Path) -> bool:
    """Whether the name of another photo in the folder differs only in the suffix."""
    if photo.suffix not in suffixes_by_stem(photo.parent).get(photo.stem, ()):  # it came after the folder was listed
        suffixes_by_stem.cache_clear()
    return len(suffixes_by_stem(photo.parent).get(photo.stem, ())) > 1


@lru_cache(maxsize=8)
def suffixes_by_stem(folder: Path) -> dict[str, tuple[str, ...]]:
    """Of the photos in ``folder``; none if it cannot be listed."""
    suffixes: dict[str, tuple[str, ...]] = {}
    with suppress(OSError):
        for name in filter(is_picture_name, os.listdir(folder)):  # noqa: PTH208 (names of millions of photos)
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            suffixes[stem] = (*suffixes.get(stem, ()), suffix)
    return suffixes


def read_sidecar(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_SIDECAR:
            raise InputError(f"{file} is too large for a sidecar ({MAX_SIDECAR >> 20} MB at most)")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: move it elsewhere, or use --existing overwrite") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def read_xmp(file: Path) -> ElementTree.Element:
    """Raises InputError: it is not XMP, or declares entities."""
    return parse_xmp(read_sidecar(file), file)
