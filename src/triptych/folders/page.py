"""An accessible page of described photos; texts that the model was unsure of are marked for review."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from triptych.figures.page import environment

PAGE_POLICY = Markup("default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'")
REVIEW = -1.6  # log-probability a word below which a text should be read by a person


def described_page(
    out: Path, records: Iterable[dict[str, Any]], title: str = "Photos and their texts"
) -> Iterator[str]:
    """The page piece by piece, so that memory does not grow with the number of photos, which are linked and not embedded."""
    photos = (described_fields(out, record) for record in records)
    return environment().get_template("described.html").generate(title=title, policy=PAGE_POLICY, photos=photos)


def described_fields(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    image, text = record["image"], record.get("caption", "")
    words = max(1, len(text.split()))
    return {
        "name": Path(image).name,
        "source": quote(os.path.relpath(image, out.parent).encode("utf-8", "surrogateescape")),
        "text": text,
        "error": record.get("error"),
        "review": record.get("logprob", 0.0) / words < REVIEW,
    }
