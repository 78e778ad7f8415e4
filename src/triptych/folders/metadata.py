"""Writing texts into photos: XMP ``dc:description`` and EXIF ImageDescription, or keywords in ``dc:subject``; IPTC if a photo has it.

Exiv2 rewrites only the metadata, not the compressed pixels. A photo is replaced atomically; the original is kept as
``photo.jpg.original``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from triptych.errors import InputError
from triptych.folders.xmp import add_history, description, new_xmp, parse_xmp, subjects, xmp_bytes
from triptych.io.files import replacement, write_error
from triptych.io.limits import MAX_BYTES

ORIGINAL = ".original"
IPTC_CAPTION, IPTC_KEYWORD = 2000, 64  # bytes at most (IPTC-IIM 4.2)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"II*\x00", b"MM\x00*")  # of files that Exiv2 can write


@dataclass(frozen=True)
class PhotoMetadata:
    """How texts are written into photos.

    ``model``: recorded in the photo's history (``xmpMM:History``), with this program and the date. ``keywords``: write keywords instead of
    a description. ``keep_original``: as ``photo.jpg.original``, unless that exists.

    Raises InputError: pyexiv2 is not installed.
    """

    model: str
    keywords: bool = False
    keep_original: bool = True

    def __post_init__(self) -> None:
        exiv2()

    def has_text(self, image: str) -> bool:
        """Whether the photo already has a description, or keywords. False for unreadable photos."""
        try:
            with opened(image, read_photo(Path(image))) as photo:
                root = read_photo_xmp(photo, image)
        except InputError:
            return False
        return bool(subjects(root) if self.keywords else description(root))

    def write(self, image: str, change: Callable[[ElementTree.Element], None]) -> None:
        """Rewrite the photo with the changed XMP, and a description also in EXIF. ``change``: modifies the XMP in place.

        Raises:
            InputError: the photo's format has no metadata that can be written, or they are damaged.
            TriptychError: the disk is full, or the photo cannot be replaced.
        """
        path = Path(os.path.realpath(image))
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        what = f"dc:{'subject' if self.keywords else 'description'} by {self.model}"
        with opened(image, read_photo(path)) as photo:
            root = read_photo_xmp(photo, image)
            change(root)
            add_history(root, f"Triptych {version('triptych')}", when, what)
            try:
                photo.modify_raw_xmp(xmp_bytes(root, declaration=False).decode())
                if not self.keywords:
                    photo.modify_exif({"Exif.Image.ImageDescription": description(root)})
                if fields := iptc_fields(photo.read_iptc(), root, self.keywords):
                    photo.modify_iptc(fields)
                data = photo.get_bytes()
            except (RuntimeError, ValueError, UnicodeDecodeError) as error:
                raise InputError(f"{image}: its metadata cannot be written ({error}); use --sidecar xmp") from None
        if self.keep_original:
            keep(path)
        with replacement(path, fsync=True) as beside:
            beside.write_bytes(data)
            shutil.copymode(path, beside)


def exiv2() -> Any:
    """The module pyexiv2. Raises InputError: it is not installed."""
    try:
        module = import_module("pyexiv2")
    except ImportError:
        raise InputError("writing into photos needs pyexiv2: pip install 'triptych[metadata]'") from None
    module.set_log_level(4)  # its notes on damaged metadata would reach stderr
    return module


def read_photo(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: is too large to be rewritten ({MAX_BYTES >> 20} MB at most); use --sidecar xmp")
    return data


def opened(image: str, data: bytes) -> Any:
    """The metadata of a photo, as a context manager of pyexiv2. Raises InputError: a format without metadata that can be written."""
    if not data.startswith(SIGNATURES):
        raise InputError(f"{image}: metadata can be written into JPEG, PNG, WebP and TIFF only; use --sidecar xmp")
    try:
        return exiv2().ImageData(data)
    except RuntimeError as error:
        raise InputError(f"{image}: its metadata cannot be read ({error}); use --sidecar xmp") from None


def read_photo_xmp(photo: Any, image: str) -> ElementTree.Element:
    """The photo's XMP, empty if it has none. Raises InputError: it is damaged."""
    try:
        text = photo.read_raw_xmp()
        return parse_xmp(text, image) if text.strip() else new_xmp()
    except (InputError, RuntimeError, UnicodeDecodeError):
        raise InputError(f"{image}: the XMP in it is damaged; use --sidecar xmp") from None


def iptc_fields(old: Mapping[str, Any], root: ElementTree.Element, keywords: bool) -> dict[str, Any]:
    """The changes to a photo's IPTC: none if it has no IPTC, or if its encoding lacks characters of the text."""
    texts = subjects(root) if keywords else [description(root)]
    is_utf8 = old.get("Iptc.Envelope.CharacterSet") == "\x1b%G"
    if not old or not (is_utf8 or all(map(str.isascii, texts))):
        return {}
    most = IPTC_KEYWORD if keywords else IPTC_CAPTION
    cut = [text.encode()[:most].decode(errors="ignore") for text in texts]
    return {"Iptc.Application2.Keywords": cut} if keywords else {"Iptc.Application2.Caption": cut[0]}


def keep(path: Path) -> None:
    """Keep the original under a second name, by a link or, where the disk has none, a copy; an earlier original is not replaced."""
    original = path.with_name(path.name + ORIGINAL)
    if original.exists():
        return
    try:
        os.link(path, original)
    except OSError:
        try:
            with replacement(original, fsync=True) as beside:
                shutil.copy2(path, beside)
        except OSError as error:
            raise write_error(original, error) from None
