"""Reading and changing XMP: the description, the keywords and the history of a photo; everything else in it is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

from triptych.errors import InputError

NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "x": "adobe:ns:meta/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "stEvt": "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}
NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
for prefix, uri in NAMESPACES.items():
    ElementTree.register_namespace(prefix, uri)


def qualified(name: str) -> str:
    """``dc:subject`` in ElementTree's form."""
    prefix, _, local = name.partition(":")
    return f"{{{NAMESPACES[prefix]}}}{local}"


def new_xmp() -> ElementTree.Element:
    root = ElementTree.Element(qualified("x:xmpmeta"))
    rdf = ElementTree.SubElement(root, qualified("rdf:RDF"))
    ElementTree.SubElement(rdf, qualified("rdf:Description"), {qualified("rdf:about"): ""})
    return root


def parse_xmp(text: str, source: object) -> ElementTree.Element:
    """Raises InputError: it is not XMP, or declares entities, which could expand without bound. ``source``: named in the message."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{source} declares a document type, which XMP does not have: move it elsewhere")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{source} is not XMP ({error}): move it elsewhere") from None
    if root.find(f".//{qualified('rdf:Description')}") is None:
        raise InputError(f"{source} is not XMP (it has no rdf:Description): move it elsewhere")
    return root


def description(root: ElementTree.Element) -> str:
    """``dc:description`` in the default language; empty if there is none."""
    item = _description_item(root)
    return (item.text or "") if item is not None else next(iter(_plain_values(root, "dc:description")), "")


def set_description(root: ElementTree.Element, text: str) -> None:
    """Set ``dc:description`` in the default language; a new one goes into the first rdf:Description, in place of a plain text."""
    item = _description_item(root)
    if item is None:
        _remove(root, "dc:description")
        item = ElementTree.SubElement(_array(root, "dc:description", "rdf:Alt"), qualified("rdf:li"))
        item.set(XML_LANGUAGE, "x-default")
    item.text = allowed_text(text)


def subjects(root: ElementTree.Element) -> list[str]:
    """The keywords (``dc:subject``)."""
    items = root.iterfind(f".//{qualified('dc:subject')}//{qualified('rdf:li')}")
    return [item.text for item in items if item.text] + _plain_values(root, "dc:subject")


def set_subjects(root: ElementTree.Element, words: Iterable[str]) -> None:
    """Replace the keywords by ``words``, each once."""
    _remove(root, "dc:subject")
    if words := list(dict.fromkeys(map(allowed_text, words))):
        bag = _array(root, "dc:subject", "rdf:Bag")
        for word in words:
            ElementTree.SubElement(bag, qualified("rdf:li")).text = word


def add_history(root: ElementTree.Element, software: str, when: str, what: str) -> None:
    """Record in ``xmpMM:History`` that ``software`` wrote ``what``; replaces an earlier record of the same."""
    history = root.find(f".//{qualified('xmpMM:History')}/{qualified('rdf:Seq')}")
    if history is None:
        history = _array(root, "xmpMM:History", "rdf:Seq")
    event = {"action": "edited", "softwareAgent": software, "when": when, "changed": "/metadata", "parameters": what}
    same = ("softwareAgent", "parameters")
    for item in list(history):
        if all(_field(item, f"stEvt:{name}") == event[name] for name in same):
            history.remove(item)
    item = ElementTree.SubElement(history, qualified("rdf:li"), {qualified("rdf:parseType"): "Resource"})
    for name, value in event.items():
        ElementTree.SubElement(item, qualified(f"stEvt:{name}")).text = value


def xmp_bytes(root: ElementTree.Element, declaration: bool = True) -> bytes:
    """``declaration``: start with an XML declaration, as files do."""
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=declaration) + b"\n"


def allowed_text(text: str) -> str:
    """``text`` without characters that XML 1.0 does not allow (section 2.2), and without carriage returns, which readers change."""
    return NOT_XML.sub("", text)


def _field(item: ElementTree.Element, name: str) -> str | None:
    """A field of a structure: an element, or an attribute."""
    return item.findtext(f".//{qualified(name)}") or item.get(qualified(name))


def _description_item(root: ElementTree.Element) -> ElementTree.Element | None:
    items = root.findall(f".//{qualified('dc:description')}/{qualified('rdf:Alt')}/{qualified('rdf:li')}")
    default = (item for item in items if item.get(XML_LANGUAGE) == "x-default")
    return next(default, items[0] if items else None)


def _plain_values(root: ElementTree.Element, name: str) -> list[str]:
    """A property's values where it has no array, as some programs write it: the text of its element, or an attribute."""
    values: list[str | None] = []
    for block in root.iter(qualified("rdf:Description")):
        values += [block.get(qualified(name)), *(element.text for element in block.findall(qualified(name)))]
    return [text for value in values if value is not None and (text := value.strip())]


def _remove(root: ElementTree.Element, name: str) -> None:
    """Remove a property in all its forms."""
    for block in list(root.iter(qualified("rdf:Description"))):
        block.attrib.pop(qualified(name), None)
        for element in block.findall(qualified(name)):
            block.remove(element)


def _array(root: ElementTree.Element, name: str, kind: str) -> ElementTree.Element:
    """A new array property in the first rdf:Description."""
    block = root.find(f".//{qualified('rdf:Description')}")
    assert block is not None  # of ``new_xmp``, or checked by ``parse_xmp``
    return ElementTree.SubElement(ElementTree.SubElement(block, qualified(name)), qualified(kind))
