"""Sidecars: a small file beside each photo with what was said about it.

``photo.txt`` holds the text alone, ``photo.json`` the whole record, ``photo.xmp`` the text as ``dc:description`` (what photo managers
read). Of an ``.xmp`` file that another program wrote, everything else is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from triptych.errors import InputError
from triptych.io.files import write_file

SIDECARS = ("txt", "json", "xmp")
EXISTING = ("skip", "overwrite", "append", "prepend")
MAX_SIDECAR = 16 << 20
RDF, DC, XMETA, XML = (
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "http://purl.org/dc/elements/1.1/",
    "adobe:ns:meta/",
    "http://www.w3.org/XML/1998/namespace",
)
for prefix, uri in (("rdf", RDF), ("dc", DC), ("x", XMETA)):
    ElementTree.register_namespace(prefix, uri)


@dataclass(frozen=True)
class Sidecars:
    """How sidecars are written.

    ``kinds``: of ``SIDECARS``. ``existing``: what happens to a sidecar that is there: the photo is skipped, the text is overwritten, or
    the new text is put behind or before the old one (once, however often it is tried). ``prefix``, ``suffix``: around every text.
    """

    kinds: tuple[str, ...] = ()
    existing: str = "skip"
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in SIDECARS:
                raise InputError(f"--sidecar is {kind!r}: choose {', '.join(SIDECARS)}")
        if self.existing not in EXISTING:
            raise InputError(f"--existing is {self.existing!r}: choose {', '.join(EXISTING)}")
        if "json" in self.kinds and self.existing in ("append", "prepend"):
            raise InputError(f"--existing {self.existing} works with txt and xmp sidecars, not with json")

    def complete(self, image: str) -> bool:
        """Whether the photo has all its sidecars and is to be skipped therefore."""
        return bool(self.kinds) and self.existing == "skip" and all(path(image, kind).exists() for kind in self.kinds)

    def write(self, image: str, record: Mapping[str, Any], text: str) -> None:
        """Write the sidecars of one photo, each as a whole. Raises InputError: an ``.xmp`` or ``.txt`` file there is not one."""
        for kind in self.kinds:
            file = path(image, kind)
            if self.existing == "skip" and file.exists():
                continue
            if kind == "json":
                write_file(file, (json.dumps(dict(record), ensure_ascii=False, indent=1) + "\n").encode())
            elif kind == "txt":
                old = read_sidecar(file) if self.existing != "overwrite" and file.exists() else ""
                write_file(file, (self.joined(old.strip(), text) + "\n").encode())
            else:
                tree = read_xmp(file) if file.exists() else new_xmp()
                old = "" if self.existing == "overwrite" else description(tree)
                set_description(tree, self.joined(old, text))
                write_file(file, xmp_bytes(tree))

    def decorated(self, text: str) -> str:
        return f"{self.prefix}{text}{self.suffix}"

    def joined(self, old: str, text: str) -> str:
        if not old or self.existing not in ("append", "prepend"):
            return text
        if self.existing == "append":
            return old if old.endswith(text) else f"{old} {text}"
        return old if old.startswith(text) else f"{text} {old}"


def path(image: str, kind: str) -> Path:
    """The sidecar of a photo: ``holiday/a.jpg`` -> ``holiday/a.txt``."""
    return Path(image).with_suffix(f".{kind}")


def read_sidecar(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_SIDECAR:
            raise InputError(f"{file} is too large for a sidecar ({MAX_SIDECAR >> 20} MB at most)")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: move it elsewhere, or use --existing overwrite") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def new_xmp() -> ElementTree.Element:
    root = ElementTree.Element(f"{{{XMETA}}}xmpmeta")
    ElementTree.SubElement(
        ElementTree.SubElement(root, f"{{{RDF}}}RDF"), f"{{{RDF}}}Description", {f"{{{RDF}}}about": ""}
    )
    return root


def read_xmp(file: Path) -> ElementTree.Element:
    """Raises InputError: it is no XMP, or declares entities (which could expand without bound)."""
    text = read_sidecar(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{file} declares a document type, which XMP has not: move it elsewhere")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{file} is not XMP ({error}): move it elsewhere") from None
    if root.find(f".//{{{RDF}}}Description") is None:
        raise InputError(f"{file} is not XMP (it has no rdf:Description): move it elsewhere")
    return root


def description(root: ElementTree.Element) -> str:
    """``dc:description`` in the default language; empty if there is none."""
    item = root.find(f".//{{{DC}}}description/{{{RDF}}}Alt/{{{RDF}}}li")
    return (item.text or "") if item is not None else ""


def set_description(root: ElementTree.Element, text: str) -> None:
    """Put ``text`` where ``dc:description`` is, or into the first rdf:Description."""
    item = root.find(f".//{{{DC}}}description/{{{RDF}}}Alt/{{{RDF}}}li")
    if item is None:
        block = root.find(f".//{{{RDF}}}Description")
        assert block is not None
        alternatives = ElementTree.SubElement(ElementTree.SubElement(block, f"{{{DC}}}description"), f"{{{RDF}}}Alt")
        item = ElementTree.SubElement(alternatives, f"{{{RDF}}}li", {f"{{{XML}}}lang": "x-default"})
    item.text = "".join(character for character in text if character.isprintable() or character in "\n\t")


def xmp_bytes(root: ElementTree.Element) -> bytes:
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
