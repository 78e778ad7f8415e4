"""Tags: which words a photo gets, what they are written as, and how the probabilities are measured."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_library import RandomModel, picture, put

from triptych.cli import main
from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.naming import logistic_weights, naming_metrics
from triptych.folders.xmp import (
    NAMESPACES,
    description,
    new_xmp,
    parse_xmp,
    set_description,
    set_subjects,
    subjects,
    xmp_bytes,
)
from triptych.tasks.probability import (
    NAMED_WITH_PRESENCE,
    everyday_words,
    match_logits,
    naming_probability,
    standard_scores,
)
from triptych.tasks.tagging import Tagger, read_words

WORDS = ["dog", "horse", "sofa", "여우"]


def test_a_photo_gets_the_words_that_fit() -> None:
    tagger = Tagger(RandomModel(), WORDS)
    assert tagger.words == ("dog", "horse", "sofa") and tagger.left_out == ("여우",)
    first, second, neither = tagger([picture("dog"), picture("sofa"), picture("something else")])
    assert [tag.word for tag in first] == ["dog"] and [tag.word for tag in second] == ["sofa"] and neither == []
    everything = Tagger(RandomModel(), WORDS, at_least=0)
    (tags,) = everything([picture("horse")])
    assert tags[0].word == "horse" and len(tags) == 3
    assert sorted((tag.probability for tag in tags), reverse=True) == [tag.probability for tag in tags]
    assert [tag.word for tag in Tagger(RandomModel(), WORDS, 0, most=1)([picture("horse")])[0]] == ["horse"]


def test_words_to_expect_speak_for_a_tag() -> None:
    class Expecting(RandomModel):
        def presence_logits(self, images: Sequence[Image.Image], things: Sequence[str]) -> np.ndarray:
            logits = {"dog": -6.0, "horse": 6.0}
            return np.array([[logits.get(thing, np.nan) for thing in things]] * len(images), np.float32)

    (plain,) = Tagger(RandomModel(), WORDS, at_least=0)([picture("sofa")])
    (tags,) = Tagger(Expecting(), WORDS, at_least=0)([picture("sofa")])
    before, after = ({tag.word: tag.probability for tag in each} for each in (plain, tags))
    assert after["horse"] > before["horse"] and after["horse"] > 100 * after["dog"]
    assert after["sofa"] == before["sofa"]


def test_a_cut_off_removes_only_what_is_below_it() -> None:
    """Words that are not matched at all could not have reached the bound."""
    everything = Tagger(RandomModel(), everyday_words(), at_least=0, most=32)([picture("dog")])[0]
    for bound in (0.02, 0.1, 0.3):
        likely = Tagger(RandomModel(), everyday_words(), bound, most=32)([picture("dog")])[0]
        assert likely == [tag for tag in everything if tag.probability >= bound]


def test_probabilities() -> None:
    background = np.array([[0.0, 0.2, 0.4]])
    assert standard_scores(np.array([[0.2, 0.2 + background.std()]]), background) == pytest.approx(
        np.array([[0, 1]]), abs=1e-4
    )
    assert match_logits(np.array([0.5, 0.0, 1.0])).tolist() == [0.0, -8.0, 8.0]
    score, itm, presence = np.array([2.0, 2.0]), np.array([0.5, 0.5]), np.array([np.nan, -1.0])
    unknown, known = naming_probability(score, itm, presence)
    assert unknown == pytest.approx(1 / (1 + np.exp(4.2 - 2 * 1.3)))
    weights = NAMED_WITH_PRESENCE
    assert known == pytest.approx(1 / (1 + np.exp(weights.presence - 2 * weights.cosine - weights.bias)))
    assert len(everyday_words()) > 300 and len(set(everyday_words())) == len(everyday_words())


def test_the_weights_of_a_logistic_model_are_recovered() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((20_000, 2))
    right = rng.random(20_000) < 1 / (1 + np.exp(-(inputs @ np.array([1.5, -0.5]) - 1)))
    assert logistic_weights(inputs, right) == pytest.approx(np.array([1.5, -0.5, -1]), abs=0.1)


def test_naming_is_measured_against_captions(tmp_path: Path) -> None:
    photos = [
        Photo(noun, "test", (f"A {noun} .", f"the {noun} ."), {}, put(tmp_path / f"{noun}.png"))
        for noun in ("dog", "horse", "cat")
    ]
    record = naming_metrics(RandomModel(), photos, 0.2)
    assert (record["nouns"], record["precision"], record["recall"], record["tags a photo"]) == (3, 100.0, 100.0, 1.0)
    with pytest.raises(InputError, match="two captions"):
        naming_metrics(RandomModel(), [replace(photos[0], captions=("A dog .",))], 0.2)


def test_tags_are_measured_by_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Carded(RandomModel):
        name = "toy"

        def info(self) -> dict[str, object]:
            return {"card": {"data": "none"}}

    rows = [{"file_name": f"{n}.png", "caption": f"a {n}", "split": "test"} for n in ("dog", "horse") for _ in range(2)]
    for row in rows:
        put(tmp_path / row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(monkeypatch, "eval", "tags", "--data", tmp_path, "--json", matcher=Carded()) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["model"], record["photos"], record["nouns"], record["precision"]) == ("toy", 2, 2, 100.0)


def test_vocabularies_are_read_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "words.txt"
    file.write_text("\ufeff# mine\ndog\n  guide   dog \n\ndog\n", encoding="utf-8")
    assert read_words(file) == ("dog", "guide dog")
    for content, message in ((b"# nothing\n", "holds no word"), (b"\xff\xfe", "not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_words(file)
    monkeypatch.setattr("triptych.tasks.tagging.MAX_VOCABULARY", 2)
    file.write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="too large"):
        read_words(file)
    monkeypatch.setattr("triptych.tasks.tagging.MAX_VOCABULARY_BYTES", 3)
    file.write_text("여우", encoding="utf-8")  # cut within a letter
    with pytest.raises(InputError, match="too large"):
        read_words(file)
    with pytest.raises(InputError, match="cannot read"):
        read_words(tmp_path / "none.txt")
    for arguments in ((["여우"],), (WORDS, 1.0), (WORDS, -0.1), (WORDS, 0.2, 0), (WORDS, 0.2, 33)):
        with pytest.raises(InputError):
            Tagger(RandomModel(), *arguments)


def test_keywords_of_xmp_keep_all_else() -> None:
    root = new_xmp()
    set_description(root, "a dog")
    set_subjects(root, ["dog", "grass", "dog", "a\x00b"])
    again = parse_xmp(xmp_bytes(root).decode(), "test")
    assert subjects(again) == ["dog", "grass", "ab"] and description(again) == "a dog"
    set_subjects(again, [])
    assert subjects(again) == [] and description(again) == "a dog" and b"subject" not in xmp_bytes(again)


@pytest.mark.parametrize(
    "form", ['<rdf:Description dc:subject="{}"/>', "<rdf:Description><dc:subject>{}</dc:subject></rdf:Description>"]
)
def test_a_keyword_without_an_array_is_read_and_replaced(form: str) -> None:
    spaces = " ".join(f'xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in ("rdf", "dc"))
    root = parse_xmp(f"<rdf:RDF {spaces}>{form.format('holiday')}</rdf:RDF>", "test")
    assert subjects(root) == ["holiday"]
    set_subjects(root, ["holiday", "dog"])
    assert subjects(root) == ["holiday", "dog"] and xmp_bytes(root).count(b"holiday") == 1


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object, matcher: RandomModel | None = None) -> int:
    monkeypatch.setattr("triptych.tasks.load_matcher", lambda model, *_: matcher or RandomModel())
    monkeypatch.setattr(sys, "argv", ["triptych", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    album, vocabulary = tmp_path / "album", tmp_path / "words.txt"
    album.mkdir()
    for name in ("dog", "sofa", "nothing"):
        put(album / f"{name}.png")
    vocabulary.write_text("\n".join(WORDS))
    options = ("--vocabulary", vocabulary, "--at-least", 0.2)
    assert run(monkeypatch, "tag", album / "dog.png", *options) == 0
    captured = capsys.readouterr()
    assert captured.out == "dog\n" and captured.err.count("여우") == 1

    out = tmp_path / "tags.jsonl"
    sidecars = ("--sidecar", "txt", "--sidecar", "xmp")
    assert run(monkeypatch, "tag", album, *options, "--out", out, *sidecars) == 0
    records = {Path(record["image"]).stem: record for record in map(json.loads, out.read_text().splitlines())}
    assert (
        list(records["dog"]["tags"]) == ["dog"] and records["nothing"]["tags"] == {} and "caption" not in records["dog"]
    )
    assert (album / "sofa.txt").read_text() == "sofa\n"
    root = ElementTree.parse(album / "sofa.xmp").getroot()
    assert subjects(root) == ["sofa"] and description(root) == ""
    capsys.readouterr()
    assert run(monkeypatch, "tag", album, *options, "--out", out) == 0
    assert "0 described, 3 done before" in capsys.readouterr().err
    vocabulary.write_text("dog")
    assert run(monkeypatch, "tag", album, *options, "--out", out) == 2  # of another vocabulary
    assert "vocabulary" in capsys.readouterr().err

    set_subjects(root, ["holiday"])
    (album / "sofa.xmp").write_bytes(xmp_bytes(root))
    (album / "sofa.txt").write_text("holiday, sea\n")
    vocabulary.write_text("\n".join(WORDS))
    for _ in range(2):  # a second time adds nothing
        assert (
            run(monkeypatch, "tag", album, *options, *sidecars, "--existing", "append", "--out", tmp_path / "t.csv")
            == 0
        )
    assert subjects(ElementTree.parse(album / "sofa.xmp").getroot()) == ["holiday", "sofa"]
    assert (album / "sofa.txt").read_text() == "holiday, sea, sofa\n"
    with (tmp_path / "t.csv").open(newline="") as file:
        assert {row["tags"] for row in csv.DictReader(file)} == {"dog", "sofa", ""}
    capsys.readouterr()
    assert run(monkeypatch, "tag", tmp_path / "none.png", album / "dog.png", *options) == 2
    assert capsys.readouterr().out == f"{album / 'dog.png'}: dog\n"


def test_parquet_holds_keywords_as_lists(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from triptych.folders import write_output

    records = [{"image": "a.png", "tags": {"dog": 0.5, "sea": 0.4}}]
    write_output(tmp_path / "t.parquet", lambda: records)
    assert pq.read_table(tmp_path / "t.parquet").to_pylist()[0]["tags"] == ["dog", "sea"]


def test_an_empty_image_of_one_colour_is_no_error() -> None:
    assert isinstance(Tagger(RandomModel())([Image.new("RGB", (8, 8))])[0], list)
