"""An accessible page of described photos; texts that the model was unsure of are marked for review."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from triptych.figures.page import environment
from triptych.folders.journal import is_described, result_text

PAGE_POLICY = Markup("default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'")
REVIEW = -1.6  # mean log-probability of a word, below which a person should review the text


def described_page(out: Path, records: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[str]:
    """The page piece by piece, so that memory does not grow with the number of photos, which are linked, not embedded.

    ``records``: a function that iterates over all records; called once to count and once to write.
    """
    counts = Counter(map(verdict, records()))
    photos = (described_fields(out, record) for record in records())
    template = environment().get_template("described.html")
    return template.generate(
        title="Photos and their texts", policy=PAGE_POLICY, photos=photos, counts=counts, total=counts.total()
    )


def described_fields(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    image = record["image"]
    return {
        "name": Path(image).name,
        "source": quote(os.path.relpath(image, out.parent).encode("utf-8", "surrogateescape")),
        "text": result_text(record),
        "error": None if is_described(record) else record["error"],
        "review": verdict(record) == "review",
    }


def verdict(record: dict[str, Any]) -> str:
    """``error`` (there is no text), ``review`` (the mean log-probability of a word is low, or the text is empty) or ``sure``."""
    if not is_described(record):
        return "error"
    words = len(result_text(record).split())
    return "sure" if words and record.get("logprob", 0.0) / words >= REVIEW else "review"
