"""The figure and the page of where a model looked."""

import logging
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from triptych.errors import InputError, TriptychError
from triptych.evidence import Evidence
from triptych.figures import fonts
from triptych.figures.maps import draw_words, heat, light, one_line, veiled, wrap, write_png
from triptych.figures.page import PageEntry, Reading, ScoreTable, html_page
from triptych.io.files import write_file

WIDE, TALL = (300, 160), (150, 260)
VOID = {"meta", "img", "link", "br", "hr", "input"}


def evidence(words: tuple[str, ...], pictures: int = 1, grid: tuple[int, int] = (14, 14)) -> Evidence:
    random = np.random.default_rng(len(words))
    maps = random.gamma(0.5, size=(len(words), pictures, *grid)).astype(np.float32)
    maps /= maps.sum((1, 2, 3), keepdims=True)
    return Evidence(words, maps, tuple(float(x) for x in np.log(random.uniform(0.1, 1, len(words)))))


def photo(size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(size[0])
    return Image.fromarray(random.integers(90, 255, (size[1], size[0], 3), dtype=np.uint8))


def hot(row: int, column: int, grid: tuple[int, int] = (14, 14)) -> np.ndarray:
    cells = np.zeros(grid, np.float32)
    cells[row, column] = 1
    return cells


def page(words: tuple[str, ...] = ("a", "dog"), **fields: str) -> str:
    reading = Reading("sat", " ".join(words), evidence(words), logprob=-3.5, seconds=0.25)
    return html_page([PageEntry((photo(WIDE),), (reading,), **fields)], "Where it looked")


class Parsed(HTMLParser):
    """Every start tag with its attributes; unclosed or crossed tags are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.stack: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.stack):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("size", [WIDE, TALL, (10, 7), (480, 480)])
@pytest.mark.parametrize("cell", [(0, 0), (0, 13), (13, 0), (3, 9), (7, 1)])
def test_heat_peaks_inside_the_hot_cell(size: tuple[int, int], cell: tuple[int, int]) -> None:
    y, x = np.unravel_index(heat(hot(*cell), size).argmax(), size[::-1])
    assert abs((y + 0.5) * 14 / size[1] - (cell[0] + 0.5)) <= max(0.5, 7 / size[1])
    assert abs((x + 0.5) * 14 / size[0] - (cell[1] + 0.5)) <= max(0.5, 7 / size[0])


def test_heat_is_smooth_and_stays_in_the_range_of_the_cells() -> None:
    cells = np.random.default_rng(0).gamma(0.3, size=(9, 5)).astype(np.float32)
    picture = heat(cells, WIDE)
    assert picture.shape == (160, 300)
    assert cells.min() <= picture.min() < picture.max() <= cells.max()
    assert np.abs(np.diff(picture, axis=1)).max() < 0.05 * np.ptp(cells)
    np.testing.assert_allclose(heat(np.full((9, 5), 0.2, np.float32), WIDE), 0.2, rtol=1e-5)


def test_heat_has_no_preferred_direction() -> None:
    cells = np.random.default_rng(1).random((6, 8)).astype(np.float32)
    np.testing.assert_allclose(heat(cells, WIDE)[:, ::-1], heat(cells[:, ::-1], WIDE), atol=1e-6)
    np.testing.assert_allclose(heat(cells, WIDE).T, heat(cells.T, WIDE[::-1]), atol=1e-6)


def test_light_is_scaled_to_the_maximum_over_all_pictures_of_a_word_and_starts_at_zero() -> None:
    first, second = light(np.stack([hot(2, 2), 0.25 * hot(9, 9)]), [WIDE, TALL])
    assert first.max() == 1 and second.max() == pytest.approx(0.25, rel=0.02)
    (even,) = light(np.full((1, 14, 14), 1 / 196, np.float32), [WIDE])
    np.testing.assert_allclose(even, 1, rtol=1e-5)
    assert light(np.zeros((1, 4, 4), np.float32), [WIDE])[0].max() == 0


def test_the_veil_leaves_the_lit_photo_alone_and_the_rest_recognisable() -> None:
    original = photo(WIDE)
    assert np.array_equal(veiled(original, np.ones(WIDE[::-1], np.float32)), original)
    dark, bright = np.asarray(veiled(original, np.zeros(WIDE[::-1], np.float32)), float), np.asarray(original, float)
    assert dark.mean() < 0.55 * bright.mean()
    assert np.corrcoef(dark[..., 1].ravel(), bright[..., 1].ravel())[0, 1] > 0.99
    assert np.ptp(dark[..., 1]) > 20


@pytest.mark.parametrize("size", [WIDE, TALL, (200, 200)])
@pytest.mark.parametrize(("row", "column"), [(1, 1), (1, 12), (12, 1), (12, 12)])
def test_a_hot_cell_brightens_its_own_corner_of_the_figure(size: tuple[int, int], row: int, column: int) -> None:
    """Against a word that looked nowhere: an even map shows where the word's photo lies, and the cell shines in it."""

    def figure(cells: np.ndarray) -> np.ndarray:
        maps = np.stack([np.zeros((1, 14, 14)), cells[None]]).astype(np.float32)
        return np.asarray(draw_words(Image.new("RGB", size, "white"), Evidence(("a", "dog"), maps, (-1.0, -1.0))), int)

    nowhere = figure(np.zeros((14, 14)))
    ys, xs = np.nonzero((figure(np.ones((14, 14))) - nowhere).sum(-1))
    height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
    gain = (figure(hot(row, column)) - nowhere).sum(-1)
    assert gain.min() == 0
    assert gain.sum() == gain[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].sum()
    y, x = np.unravel_index(gain.argmax(), gain.shape)
    assert (x - xs.min()) / width == pytest.approx((column + 0.5) / 14, abs=0.05)
    assert (y - ys.min()) / height == pytest.approx((row + 0.5) / 14, abs=0.05)
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)


@pytest.mark.parametrize("count", [0, 1, 12, 40])
@pytest.mark.parametrize("size", [WIDE, TALL, (900, 30), (20, 700), (1, 1)])
def test_every_caption_length_and_photo_shape_gives_a_figure(count: int, size: tuple[int, int]) -> None:
    figure = draw_words(photo(size), evidence(tuple(f"word{n}" for n in range(count))))
    assert figure.mode == "RGB" and figure.width == 1400
    border = np.asarray(figure)
    assert (border[:20] == 255).all() and (border[-20:] == 255).all() and (border[:, -20:] == 255).all()


@pytest.mark.parametrize("pictures", [2, 3, 9])
def test_several_pictures_are_stacked_under_each_word(pictures: int) -> None:
    photos = [photo((200 + 10 * n, 150)) for n in range(pictures)]
    heights = [draw_words(photos, evidence(("a",) * words, pictures)).height for words in (4, 8, 12)]
    assert heights[1] - heights[0] == heights[2] - heights[1] > pictures * 200
    with pytest.raises(TriptychError, match=f"about {pictures} pictures, but 1"):
        draw_words(photos[0], evidence(("word",), pictures))
    with pytest.raises(TriptychError, match="pictures"):
        PageEntry((photos[0],), (Reading("sat", "word", evidence(("word",), pictures)),))


ODD = ("naïve", "犬", "👩‍👩‍👧", "e\u0301", "\u202eabc", "\ud800", "a\nb\0c", "", "x" * 3000, "ﷺ")


def test_odd_words_are_drawn_and_encoded() -> None:
    assert draw_words(photo(WIDE), evidence(ODD)).width == 1400
    html = page(ODD)
    assert "犬" in html and "👩‍👩‍👧" in html
    assert "\0" not in html.encode().decode()
    assert one_line("\ud800a \n b") == "?a b"


def box(left: int, right: int) -> object:
    """A glyph: a rectangle."""
    pen = TTGlyphPen(None)
    pen.moveTo((left, 0))
    for point in ((left, 700), (right, 700), (right, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


@pytest.fixture
def hangul(tmp_path: Path) -> str:
    """A font file with one letter, 강, and a narrower box for all others."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "gang"])
    builder.setupCharacterMap({ord("강"): "gang"})
    builder.setupGlyf({".notdef": box(100, 300), "gang": box(50, 900)})
    builder.setupHorizontalMetrics({".notdef": (400, 100), "gang": (950, 50)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Letter", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "one-letter.ttf")
    return str(tmp_path / "one-letter.ttf")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without fonts, on which nothing has been drawn yet."""
    monkeypatch.delenv("TRIPTYCH_FONT", raising=False)
    monkeypatch.setattr(fonts, "system_files", lambda letters: [])
    fonts.font_file.cache_clear()
    return monkeypatch


def test_a_font_is_chosen_that_has_the_letters(hangul: str, bare: pytest.MonkeyPatch) -> None:
    assert fonts.missing_letters(fonts.DEFAULT, "a강") == "강"
    assert fonts.font(24, "dog").getname()[0] == "Aileron"
    bare.setattr(fonts, "system_files", lambda letters: [hangul])
    assert fonts.font(24, "강").getname()[0] == "One Letter"
    assert fonts.font(24, "dog").getname()[0] == "Aileron"


def test_a_word_that_the_default_font_lacks_is_drawn_with_the_font_of_the_environment(
    hangul: str, bare: pytest.MonkeyPatch
) -> None:
    words = Evidence(("강",), np.ones((1, 1, 2, 2), np.float32), (-1.0,))
    boxes = np.asarray(draw_words(photo(WIDE), words))
    bare.setenv("TRIPTYCH_FONT", hangul)
    assert fonts.font(24, "강").getname()[0] == "One Letter"
    assert (np.asarray(draw_words(photo(WIDE), words)) != boxes).any()


def test_letters_that_no_font_has_are_reported_once(bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            fonts.font(24, "강 dog")
    (record,) = caplog.records
    assert "'강'" in record.getMessage() and ".html" in record.getMessage() and "TRIPTYCH_FONT" in record.getMessage()


def test_a_font_that_cannot_be_read_is_bad_input(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    bare.setenv("TRIPTYCH_FONT", str(tmp_path / "missing.ttf"))
    with pytest.raises(InputError, match=r"missing\.ttf is not a font file"):
        fonts.font(24, "dog")


@pytest.mark.skipif(shutil.which("fc-match") is None, reason="needs fontconfig")
def test_fontconfig_is_asked_for_the_letters() -> None:
    found = fonts.system_files("α")
    assert found and fonts.missing_letters(found[0], "α") == ""


def test_lines_are_wrapped_within_the_room() -> None:
    assert wrap("", 30, 100) == [""]
    assert " ".join(wrap("a dog runs over the long grass", 30, 150)) == "a dog runs over the long grass"
    assert len(wrap("a dog runs over the long grass", 30, 150)) > 2
    assert wrap("x" * 100, 30, 150)[0].endswith("…")


def test_the_same_evidence_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_png(tmp_path / name, draw_words(photo(WIDE), evidence(("a", "dog"))))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert page() == page()


@pytest.mark.parametrize(
    "wrong",
    [
        (("a", "b"), np.ones((1, 1, 2, 2)), (-1.0,)),
        (("a",), np.ones((1, 1, 2, 2)), ()),
        (("a",), np.ones((1, 2, 2)), (-1.0,)),
        (("a",), np.ones((1, 0, 2, 2)), (-1.0,)),
        (("a",), -np.ones((1, 1, 2, 2)), (-1.0,)),
        (("a",), np.full((1, 1, 2, 2), np.nan), (-1.0,)),
    ],
)
def test_evidence_that_does_not_agree_is_refused(wrong: tuple[tuple[str, ...], np.ndarray, tuple[float, ...]]) -> None:
    with pytest.raises(TriptychError, match="evidence"):
        Evidence(*wrong)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    write_png(path, Image.new("RGB", (3, 2), "red"))
    with Image.open(path) as written:
        assert written.size == (3, 2)
    old = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TriptychError, match=r"figure\.png: the disk is full") as error:
        write_png(path, Image.new("RGB", (9, 9)))
    assert error.value.exit_code == 1
    assert path.read_bytes() == old and [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
    with pytest.raises(InputError, match="no folder"):
        write_file(tmp_path / "missing" / "figure.png", b"")


EVIL = "</a><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def test_every_text_is_escaped() -> None:
    words = (EVIL, "dog")
    reading = Reading(EVIL, " ".join(words), evidence(words))
    fields = {
        "name": EVIL,
        "question": EVIL,
        "credit": EVIL,
        "credit_url": f"https://example.org/{EVIL}",
        "licence": EVIL,
    }
    html = html_page([PageEntry((photo(WIDE),), (reading,), **fields)], EVIL)
    parsed = Parsed(html)
    assert len(parsed.all("script")) == 1 and "alert(1)" not in html.rsplit("<script>", 1)[1]
    assert not [attributes for _, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]
    # title, heading, name, question, credit, licence, model, the word and its place in the strip
    assert parsed.text.count(EVIL) == 9
    assert '<a href="javascript' not in page(credit="me", credit_url="javascript:alert(1)")


def test_the_page_asks_nothing_of_the_network() -> None:
    html = page(name="dog.jpg", credit="Jane", credit_url="https://example.org/photo", licence="CC BY 2.0")
    parsed = Parsed(html)
    for tag, attributes in parsed.tags:
        assert attributes.get("src", "data:").startswith("data:"), tag
        if not attributes.get("href", "#").startswith("#"):
            assert attributes["href"] == "https://example.org/photo"
    assert not parsed.all("link") and "@import" not in html
    assert all(url.startswith("data:") for url in re.findall(r"url\((.*?)\)", html))
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    anchors = [link["href"][1:] for link in parsed.all("a") if link["href"].startswith("#")]
    assert anchors == ids == ["word-0-0-0", "word-0-0-1"]


def test_page_says_which_words_the_photo_suggests() -> None:
    with_words = replace(evidence(("a", "dog")), expected=("dog", "grass & sky"))
    html = html_page([PageEntry((photo(WIDE),), (Reading("sat", "a dog", with_words),))], "Where it looked")
    assert "expected words: dog, grass &amp; sky" in html and "expected words" not in page()


def test_the_page_says_everything_without_a_script() -> None:
    parsed = Parsed(page(("a", "dog"), name="dog.jpg", credit="Jane", licence="CC BY 2.0"))
    alts = [image["alt"] for image in parsed.all("img")]
    assert alts == ["Photo: a dog", "Photo: where the model looked for “a”", "Photo: where the model looked for “dog”"]
    for part in ("dog.jpg", "Photo: Jane, CC BY 2.0", "sat", "log probability −3.50 · 0.2 s", "little", "much"):
        assert part in parsed.text


@pytest.mark.parametrize("cell", [(1, 2), (12, 11)])
def test_a_map_on_the_page_is_a_small_png_that_is_clear_where_the_model_looked(cell: tuple[int, int]) -> None:
    found = Evidence(("dog",), hot(*cell)[None, None], (-1.0,))
    html = html_page([PageEntry((photo(TALL),), (Reading("sat", "dog", found),))], "t")
    data = b64decode(Parsed(html).all("img")[1]["src"].removeprefix("data:image/png;base64,"))
    assert len(data) < 1500
    alpha = np.asarray(Image.open(BytesIO(data)).convert("RGBA"))[..., 3].astype(int)
    y, x = np.unravel_index(alpha.argmin(), alpha.shape)
    assert alpha.min() == 0 and alpha.max() == pytest.approx(0.82 * 255, abs=3)
    assert (y * 14 // alpha.shape[0], x * 14 // alpha.shape[1]) == cell


def test_three_systems_share_one_copy_of_each_photo() -> None:
    readings = tuple(Reading(model, "a dog", evidence(("a", "dog"), 3)) for model in ("sat", "flamingo", "blip2"))
    html = html_page([PageEntry(tuple(photo((200, 100 + n)) for n in range(3)), readings)] * 2, "t")
    parsed = Parsed(html)
    assert html.count("image/jpeg") == 6
    assert len(parsed.all("article")) == 6 and len(parsed.all("img")) == 6 * 3 * 3
    assert "Photo 3 of 3: a dog" in {image["alt"] for image in parsed.all("img")}
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) == 12
    assert max(len(image["src"]) for image in parsed.all("img")) < 3000


def test_a_choice_is_shown_beside_the_words_that_were_scored() -> None:
    words = evidence(("a", "dog"))
    chosen = html_page([PageEntry((photo(WIDE),), (Reading("flamingo", "left", words),))], "t")
    written = html_page([PageEntry((photo(WIDE),), (Reading("flamingo", "A dog.", words),))], "t")
    assert '<p class="answer">left</p>' in chosen and "the words that were scored" in chosen
    assert 'class="answer"' not in written and "the words that were scored" not in written


def test_a_table_names_its_columns_in_every_cell_and_marks_the_largest() -> None:
    html = html_page(
        [], "t", [ScoreTable("Texts", ("dog.jpg", photo(WIDE)), ("a dog", "a <cat>"), ((0.9, 0.2), (0.1, 0.3)))]
    )
    cells = [cell for cell in Parsed(html).all("td") if cell]
    assert [cell["data-column"] for cell in cells] == ["a dog", "a <cat>"] * 2
    assert [cell.get("class", "") for cell in cells] == ["largest", "", "", "largest"]
    assert [cell["style"] for cell in cells] == ["--share:90%", "--share:20%", "--share:10%", "--share:30%"]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_page_with_a_wide_table_does_not_scroll_sideways_on_a_phone(tmp_path: Path) -> None:
    columns = tuple(f"a rather long description number {n}" for n in range(12))
    readings = (Reading("sat", "a dog", evidence(("a", "dog"))),) * 3
    entries = [PageEntry((photo((900, 300)),), readings, name="x" * 200, question="y" * 200)]
    html = html_page(entries, "z" * 100, [ScoreTable("t", (photo(WIDE), "a name"), columns, ((0.5,) * 12,) * 2)])
    html = re.sub(r"<meta http-equiv=[^>]*>", "", html)  # the probe below is a script that the policy forbids
    probe = "<script>document.title = innerWidth + ' ' + document.documentElement.scrollWidth</script>"
    (tmp_path / "page.html").write_text(html.replace("</body>", probe + "</body>"), encoding="utf-8")
    frame = '<iframe src="page.html" style="width:400px" onload="document.title = this.contentDocument.title"></iframe>'
    (tmp_path / "frame.html").write_text(frame)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
    ]
    command = [str(CHROMIUM), *options, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    width, content = map(int, re.findall(r"<title>(\d+) (\d+)</title>", shown)[0])
    assert width == 400 and content <= width
