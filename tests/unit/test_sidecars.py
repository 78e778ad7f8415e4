"""Sidecars: what they hold, which of several there are, and what becomes of those that exist."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from test_folders import SETTINGS, album, photo, say_red

from triptych.errors import InputError
from triptych.folders import Journal, Sidecars, describe_photos, on_this_machine
from triptych.folders.pipeline import Description
from triptych.folders.xmp import NAMESPACES, description, parse_xmp

DC, RDF = NAMESPACES["dc"], NAMESPACES["rdf"]


@pytest.mark.parametrize("kind", ["txt", "json", "xmp"])
def test_sidecars(tmp_path: Path, kind: str) -> None:
    names = album(tmp_path, 3)
    sidecars = Sidecars((kind,), prefix="photo of ", suffix="!")
    describe_photos(names, on_this_machine(say_red), sidecars=sidecars)
    text = Path(names[2]).with_suffix(f".{kind}").read_text()
    assert "photo of red 2!" in text
    if kind == "json":
        record = json.loads(text)
        assert record.pop("seconds") >= 0
        assert record == {"image": names[2], "caption": "photo of red 2!", "logprob": -1.0}
    assert describe_photos(names, on_this_machine(say_red), sidecars=sidecars).skipped == 3


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_photos_that_differ_in_the_suffix_have_sidecars_of_their_own(tmp_path: Path, existing: str) -> None:
    names = [str(photo(tmp_path / name, red)) for red, name in enumerate(("a.png", "a.TIF", "b.bmp"))]
    sidecars = Sidecars(("txt",), existing)
    describe_photos(names, on_this_machine(say_red), sidecars=sidecars)
    texts = {"a.png.txt": "red 0\n", "a.TIF.txt": "red 1\n", "b.txt": "red 2\n"}
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == texts
    names.append(str(photo(tmp_path / "b.png", 3)))
    for _ in range(2):
        describe_photos(names, on_this_machine(say_red), sidecars=sidecars)
    texts |= {"b.bmp.txt": "red 2\n", "b.png.txt": "red 3\n"}  # and the b.txt from when there was one b
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == texts
    assert existing != "skip" or describe_photos(names, on_this_machine(say_red), sidecars=sidecars).described == 0


def test_a_name_that_is_not_unicode_is_read_back_as_it_was(tmp_path: Path) -> None:
    """From the JSON beside the photo and from the journal."""
    name, journal = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"), Journal(tmp_path / "out.jsonl", SETTINGS)
    try:
        photo(Path(name))
    except OSError:
        pytest.skip("this file system has Unicode names only")
    describe_photos([name], on_this_machine(say_red), journal=journal, sidecars=Sidecars(("json",)))
    beside = json.loads(Path(name).with_suffix(".json").read_text(encoding="utf-8"))
    assert [beside["image"], *(record["image"] for record in journal.records())] == [name, name]


@pytest.mark.parametrize("bound", [1, 100])
def test_sidecars_that_are_asked_for_later_come_from_the_journal(
    tmp_path: Path, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.folders.pipeline.MAX_NAMES", bound)
    names = album(tmp_path, 4)
    out = tmp_path / "out.jsonl"
    describe_photos(names[:3], on_this_machine(say_red), journal=Journal(out, SETTINGS))
    Path(names[1]).with_suffix(".txt").write_text("mine\n")
    described: list[int] = []

    def counting(photos: Sequence[Image.Image]) -> list[Description]:
        described.append(len(photos))
        return say_red(photos)

    sidecars = Sidecars(("txt", "json"))
    journal = Journal(out, SETTINGS)
    summary = describe_photos(names, on_this_machine(counting), journal=journal, sidecars=sidecars)
    assert (sum(described), summary.described, summary.skipped, summary.failed) == (1, 1, 3, 0)
    texts = [Path(name).with_suffix(".txt").read_text() for name in names]
    assert texts == ["red 0\n", "mine\n", "red 2\n", "red 3\n"]
    record = json.loads(Path(names[1]).with_suffix(".json").read_text())
    assert record.pop("seconds") >= 0 and record == {"image": names[1], "caption": "red 1", "logprob": -1.0}
    assert len(list(journal.records())) == 4


def test_existing_sidecars(tmp_path: Path) -> None:
    (name,) = album(tmp_path, 1)
    text = Path(name).with_suffix(".txt")

    def run(existing: str) -> str:
        describe_photos([name], on_this_machine(say_red), sidecars=Sidecars(("txt",), existing))
        return text.read_text()

    text.write_text("holiday\n")
    assert run("skip") == "holiday\n"
    assert run("append") == run("append") == "holiday red 0\n"  # a second try adds nothing
    text.write_text("holiday\n")
    assert run("prepend") == run("prepend") == "red 0 holiday\n"
    assert run("overwrite") == "red 0\n"
    text.write_bytes(b"\xff\xfe\x00")
    assert describe_photos([name], on_this_machine(say_red), sidecars=Sidecars(("txt",), "append")).failed == 1
    for wrong in (("pdf", "skip"), ("txt", "merge"), ("json", "append")):
        with pytest.raises(InputError):
            Sidecars((wrong[0],), wrong[1])


def test_xmp_of_another_program_is_kept(tmp_path: Path) -> None:
    (name,) = album(tmp_path, 1)
    xmp = Path(name).with_suffix(".xmp")
    xmp.write_text(
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>'
    )
    describe_photos([name], on_this_machine(say_red), sidecars=Sidecars(("xmp",), "overwrite", suffix=" <&>"))
    root = ElementTree.fromstring(xmp.read_text())
    block = root.find(f".//{{{RDF}}}Description")
    assert block is not None and block.get("{http://ns.adobe.com/xap/1.0/}Rating") == "4"
    item = root.find(f".//{{{DC}}}description/{{{RDF}}}Alt/{{{RDF}}}li")
    assert item is not None and item.text == "red 0 <&>"
    for broken in ('<!DOCTYPE x [<!ENTITY a "b">]><x/>', "<no xml", "<x/>"):
        xmp.write_text(broken)
        assert describe_photos([name], on_this_machine(say_red), sidecars=Sidecars(("xmp",), "overwrite")).failed == 1
        assert xmp.read_text() == broken


@pytest.mark.parametrize(
    ("attribute", "element", "old"),
    [
        ("", "<dc:description>mine</dc:description>", "mine"),
        ("", "<dc:description><rdf:Alt/></dc:description>", ""),
        ("", "<dc:description/>", ""),
        ("", '<dc:description><rdf:Alt><rdf:li xml:lang="de">mine</rdf:li></rdf:Alt></dc:description>', "mine"),
        ('dc:description="mine"', "", "mine"),
    ],
)
def test_xmp_has_one_description_whatever_its_form_was(tmp_path: Path, attribute: str, element: str, old: str) -> None:
    (name,) = album(tmp_path, 1)
    xmp = Path(name).with_suffix(".xmp")
    xmp.write_text(
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" xmlns:dc="{DC}" '
        f"{attribute}>{element}</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    assert description(parse_xmp(xmp.read_text(), xmp)) == old
    for _ in range(2):
        describe_photos([name], on_this_machine(say_red), sidecars=Sidecars(("xmp",), "append"))
        root = parse_xmp(xmp.read_text(), xmp)
        items = root.findall(f".//{{{DC}}}description/{{{RDF}}}Alt/{{{RDF}}}li")
        assert [item.text for item in items] == [f"{old} red 0".strip()] and xmp.read_text().count(
            "dc:description"
        ) == 2
