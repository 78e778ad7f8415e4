"""One self-contained HTML page: photos, what each system said of them, and where it looked at each word.

The page asks nothing of the network: styles and script are inline, pictures are data URLs, and a content security
policy enforces it. Each photo is stored once, as a style; a word's map is a small transparent PNG that lies over
it, and the browser scales it smoothly. Without a script the strip of words still shows every map.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from triptych.evidence import Evidence, Floats, check_pictures
from triptych.figures.maps import LEGEND, VEIL, VEIL_OPACITY, fit_within, light, one_line, percent, veil_alpha

STATIC_POLICY = Markup("default-src 'none'; img-src data:; style-src 'unsafe-inline'")  # of a page without a script
PHOTO_BOX = (480, 720)
THUMBNAIL_BOX = (96, 72)
MAP_SCALE = 3  # pixels per grid cell: enough for the browser's bilinear scaling to look like the Gaussian itself
LEVELS = 64  # of the veil's opacity
CLEAR = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@dataclass(frozen=True)
class Reading:
    """What one system said of the pictures, and where it looked.

    ``caption`` is what it answers. Where ``evidence`` is about other words (a choice that was made by scoring them), the page shows both;
    None = it is not known where the system looked.
    """

    model: str
    caption: str
    evidence: Evidence | None
    logprob: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class PageEntry:
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
            if reading.evidence is not None:
                check_pictures(len(self.images), reading.evidence)


@dataclass(frozen=True)
class ScoreTable:
    """Numbers 0..1, shown in percent and as a shade: ``scores[i][j]`` of row i, a photo (RGB) or a name, and column j."""

    title: str
    rows: tuple[Image.Image | str, ...]
    columns: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]


def html_page(entries: Sequence[PageEntry], title: str, tables: Sequence[ScoreTable] = ()) -> str:
    """The page as text; write it as UTF-8 (`triptych.io.files.write_file`). All texts are escaped."""
    templates = environment()
    script = templates.get_template("page.js").render()
    veil = ",".join(map(str, VEIL))
    return templates.get_template("page.html").render(
        title=title,
        policy=Markup(f"{STATIC_POLICY}; script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"),
        colours={"veil": f"rgba({veil},{VEIL_OPACITY})", "no-veil": f"rgba({veil},0)"},
        entries=[entry_fields(number, entry) for number, entry in enumerate(entries)],
        tables=[table_fields(table) for table in tables],
        legend=" ".join(LEGEND),
        clear=CLEAR,
        script=Markup(script),
    )


def environment() -> Environment:
    """The templates of this package: every text is escaped and brought to one line; an unknown name is an error."""
    return Environment(
        loader=PackageLoader("triptych.figures", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        finalize=lambda value: one_line(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def entry_fields(number: int, entry: PageEntry) -> dict[str, Any]:
    """What the template shows of a section, the ``number``-th of its page."""
    count = len(entry.images)
    photos = [
        {"name": f"photo-{number}-{n}", "label": f"Photo {n + 1} of {count}" if count > 1 else "Photo"}
        | jpeg_fields(image)
        for n, image in enumerate(entry.images)
    ]
    url = entry.credit_url if entry.credit_url.startswith(("https://", "http://")) else ""
    credits = [(entry.credit or url, url), (entry.licence, "")]
    return {
        "name": entry.name,
        "question": entry.question,
        "photos": photos,
        "credits": [(text, link) for text, link in credits if text],
        "readings": [reading_fields(f"word-{number}-{at}", reading) for at, reading in enumerate(entry.readings)],
    }


def jpeg_fields(photo: Image.Image) -> dict[str, str]:
    """A photo at the page's size: its shape, and its JPEG as a data URL."""
    small = fit_within(photo, (min(photo.width, PHOTO_BOX[0]), min(photo.height, PHOTO_BOX[1])))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True, progressive=True)
    return {"aspect": f"{small.width / small.height:.4f}", "url": data_url(buffer.getvalue(), "jpeg")}


def reading_fields(key: str, reading: Reading) -> dict[str, Any]:
    """What the template shows of one system's answer: its words, each with its maps; ``key`` begins their ids."""
    notes = []
    if reading.logprob is not None:
        notes.append(f"log probability {reading.logprob:.2f}".replace("-", "−"))
    if reading.seconds is not None:
        notes.append(f"{reading.seconds:.1f} s")
    if reading.evidence is not None and reading.evidence.expected:
        notes.append(f"expected words: {', '.join(reading.evidence.expected)}")
    words = [] if reading.evidence is None else word_fields(key, reading.evidence)
    chosen = letters(reading.caption) != letters(" ".join(word["text"] for word in words))
    return {
        "model": reading.model,
        "text": reading.caption,
        "answer": reading.caption if chosen else "",
        "notes": " · ".join(notes),
        "words": words,
    }


def word_fields(key: str, evidence: Evidence) -> list[dict[str, Any]]:
    """What the template shows of each word."""
    return [
        {
            "id": f"{key}-{t}",
            "text": word,
            "percent": percent(evidence.logprobs[t]),
            "veils": [veil_url(lit) for lit in cell_lights(evidence.maps[t])],
        }
        for t, word in enumerate(evidence.words)
    ]


def letters(text: str) -> str:
    """The text without case, spaces and punctuation: a sentence and its words give the same."""
    return "".join(filter(str.isalnum, text.casefold()))


def table_fields(table: ScoreTable) -> dict[str, Any]:
    """What the template shows of a table; the largest number of a row is marked."""
    rows = [
        {
            "name": row if isinstance(row, str) else "",
            "photo": "" if isinstance(row, str) else thumbnail(row),
            "cells": [{"percent": f"{100 * score:.0f}", "largest": score == max(scores)} for score in scores],
        }
        for row, scores in zip(table.rows, table.scores, strict=True)
    ]
    return {"title": table.title, "columns": table.columns, "rows": rows}


def thumbnail(photo: Image.Image, box: tuple[int, int] = THUMBNAIL_BOX) -> str:
    """The photo as a small JPEG in a data URL, never larger than it is."""
    buffer = BytesIO()
    small = fit_within(photo, (min(photo.width, box[0]), min(photo.height, box[1])))
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return data_url(buffer.getvalue(), "jpeg")


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
