"""One self-contained HTML page: photos, what each system said of them, and where it looked at each word.

The page asks nothing of the network: styles and script are inline, pictures are data URLs, and a content security
policy holds it to that. Each photo is stored once, as a style; a word's map is a small transparent PNG that lies over
it, and the browser scales it smoothly. Without a script the strip of words still shows every map.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from io import BytesIO

import numpy as np
from PIL import Image

from triptych.evidence import Evidence, Floats, check_pictures
from triptych.figures.maps import LEGEND, VEIL, VEIL_OPACITY, fit, light, percent, plain, veil_alpha

PHOTO_BOX = (480, 720)
THUMBNAIL_BOX = (96, 72)
MAP_SCALE = 3  # pixels per grid cell: enough for the browser's bilinear scaling to look like the Gaussian itself
LEVELS = 64  # of the veil's opacity
CLEAR = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@dataclass(frozen=True)
class Reading:
    """What one system said of the pictures, and where it looked."""

    model: str
    caption: str
    evidence: Evidence
    logprob: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Entry:
    """One section of the page: its pictures (RGB; several where a question spans them) and up to three readings."""

    images: tuple[Image.Image, ...]
    readings: tuple[Reading, ...]
    name: str = ""
    question: str = ""
    credit: str = ""
    credit_url: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        for reading in self.readings:
            check_pictures(len(self.images), reading.evidence)


@dataclass(frozen=True)
class Table:
    """Numbers 0..1, shown in percent and as a shade: ``scores[i][j]`` of row i, a photo (RGB) or a name, and column j."""

    title: str
    rows: tuple[Image.Image | str, ...]
    columns: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]


def html_page(entries: Sequence[Entry], title: str, tables: Sequence[Table] = ()) -> str:
    """The page as text; write it as UTF-8 (`triptych.figures.maps.write_file`). All texts are escaped."""
    script = asset("page.js")
    style = asset("page.css")
    photos = "\n".join(
        photo_style(f"photo-{e}-{n}", image) for e, entry in enumerate(entries) for n, image in enumerate(entry.images)
    )
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
    )
    veil = ",".join(map(str, VEIL))
    styles = f":root {{ --veil: rgba({veil},{VEIL_OPACITY}); --no-veil: rgba({veil},0); }}\n{style}\n{photos}"
    body = f"""<header>
<h1>{text(title)}</h1>
<p class="scale"><span>little</span><span class="bar"></span><span>much</span></p>
<p class="legend">{" ".join(map(text, LEGEND))}</p>
<p class="legend hint">Point at a word, tap it, or use the arrow keys.</p>
</header>
<main>
{"".join(section(index, entry) for index, entry in enumerate(entries))}{"".join(map(table_section, tables))}</main>
<script>{script}</script>"""
    return document(title, policy, styles, body)


def document(title: str, policy: str, style: str, body: str) -> str:
    """A page that asks nothing of the network: ``policy`` is its content security policy, ``title`` is escaped here."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{text(title)}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def section(index: int, entry: Entry) -> str:
    heading = f"<h2>{text(entry.name)}</h2>\n" if entry.name else ""
    question = f'<p class="question">{text(entry.question)}</p>\n' if entry.question else ""
    panels = "".join(panel(f"{index}-{at}", index, reading) for at, reading in enumerate(entry.readings))
    return (
        f'<section>\n<div class="about">\n{heading}{credit_line(entry)}</div>\n{question}'
        f'<div class="panels of-{min(3, len(entry.readings))}">\n{panels}</div>\n</section>\n'
    )


def credit_line(entry: Entry) -> str:
    credit = text(entry.credit)
    if entry.credit_url.startswith(("https://", "http://")):
        credit = f'<a href="{text(entry.credit_url)}" rel="noreferrer">{credit or text(entry.credit_url)}</a>'
    parts = [part for part in (credit, text(entry.licence)) if part]
    kind = "Pictures" if entry.images[1:] else "Photo"
    return f'<p class="credit">{kind}: {", ".join(parts)}</p>\n' if parts else ""


def panel(key: str, entry: int, reading: Reading) -> str:
    """One system's part of a section: the photo to look at, the caption as words, the strip of all words."""
    evidence = reading.evidence
    count = evidence.maps.shape[1]
    names = [f"Photo {n + 1} of {count}" if count > 1 else "Photo" for n in range(count)]

    def picture(n: int, source: str, note: str) -> str:
        return f'<img class="photo photo-{entry}-{n}" src="{source}" alt="{names[n]}: {text(note)}">'

    def item(t: int, word: str) -> str:
        veils = map(veil_url, cell_lights(evidence.maps[t]))
        pictures = "".join(picture(n, veil, f"where the model looked for “{word}”") for n, veil in enumerate(veils))
        label = f"<span><b>{text(word)}</b> <i>{percent(evidence.logprobs[t])}</i></span>"
        return f'<li id="word-{key}-{t}">{pictures}{label}</li>'

    stage = "".join(picture(n, CLEAR, reading.caption) for n in range(count))
    words = " ".join(
        f'<a class="word" href="#word-{key}-{t}">{text(word)}</a>' for t, word in enumerate(evidence.words)
    )
    notes = []
    if reading.logprob is not None:
        notes.append(f"log probability {reading.logprob:.2f}".replace("-", "−"))
    if reading.seconds is not None:
        notes.append(f"{reading.seconds:.1f} s")
    return f"""<article class="panel">
<div class="stage">{stage}</div>
<div class="said">
<h3>{text(reading.model)}</h3>
<p class="caption">{words}</p>
<p class="notes">{" · ".join(notes)}</p>
</div>
<ol class="strip">
{"".join(f"{item(t, word)}{chr(10)}" for t, word in enumerate(evidence.words))}</ol>
</article>
"""


def table_section(table: Table) -> str:
    """The largest number of a row is bold."""
    head = "".join(f"<th>{text(column)}</th>" for column in table.columns)
    rows = []
    for row, scores in zip(table.rows, table.scores, strict=True):
        label = text(row) if isinstance(row, str) else f'<img src="{thumbnail(row)}" alt="">'
        cells = "".join(
            f'<td style="--share:{100 * score:.0f}%">{"<b>" if score == max(scores) else ""}{100 * score:.0f}'
            f"{'</b>' if score == max(scores) else ''}</td>"
            for score in scores
        )
        rows.append(f"<tr><th>{label}</th>{cells}</tr>")
    body = "\n".join(rows)
    return f"<section>\n<h2>{text(table.title)}</h2>\n<table>\n<tr><td></td>{head}</tr>\n{body}\n</table>\n</section>\n"


def thumbnail(photo: Image.Image, box: tuple[int, int] = THUMBNAIL_BOX) -> str:
    """The photo as a small JPEG in a data URL, never larger than it is."""
    buffer = BytesIO()
    small = fit(photo, (min(photo.width, box[0]), min(photo.height, box[1])))
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return data_url(buffer.getvalue(), "jpeg")


def photo_style(name: str, photo: Image.Image) -> str:
    """A style rule that shows the photo at its own shape, as the background of what carries its map."""
    small = fit(photo, (min(photo.width, PHOTO_BOX[0]), min(photo.height, PHOTO_BOX[1])))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True, progressive=True)
    jpeg = data_url(buffer.getvalue(), "jpeg")
    return f".{name}{{--aspect:{small.width / small.height:.4f};background-image:url({jpeg})}}"


def cell_lights(maps: Floats) -> list[Floats]:
    """One word's maps [N, h, w] as N small pictures of light in 0..1, a few pixels per grid cell."""
    height, width = maps.shape[1:]
    return light(maps, [(width * MAP_SCALE, height * MAP_SCALE)] * len(maps))


def veil_url(lit: Floats) -> str:
    """The veil over a photo where the light is `lit` [H, W], as a PNG of one colour and LEVELS opacities."""
    opacities = np.rint(np.linspace(0, 255, LEVELS)).astype(np.uint8)
    veil = Image.fromarray(np.rint(veil_alpha(lit) * (LEVELS - 1)).astype(np.uint8), mode="P")
    veil.putpalette(VEIL * LEVELS)
    buffer = BytesIO()
    veil.save(buffer, "PNG", optimize=True, transparency=opacities.tobytes())
    return data_url(buffer.getvalue(), "png")


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def asset(name: str) -> str:
    return (files("triptych") / "figures" / "templates" / name).read_text("utf-8").strip()


def text(raw: str) -> str:
    """Text for HTML content or a quoted attribute."""
    return escape(plain(raw))
