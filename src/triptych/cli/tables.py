"""Nested records as readable text: sections, aligned columns, wrapped lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LINE_WIDTH = 100
MOST_INLINE = 60  # characters of a list that is written on one line
LABELS = {
    "card": "model card",
    "gates": "gates (tanh): attention, feed-forward",
    "lm": "language model",
    "memory_mb": "memory (MB)",
    "xattn": "gated cross-attention",
}


def record_text(record: Mapping[str, Any]) -> str:
    """A record as text: its plain values first, then a section for each nested value."""
    return "\n".join(section_lines(record, "")).strip("\n")


def section_lines(record: Mapping[str, Any], title: str) -> Iterator[str]:
    plain = {name: value for name, value in record.items() if inline(value)}
    nested = {name: value for name, value in record.items() if not inline(value)}
    if plain:
        yield from heading(title)
        yield from columns([[label(name), text(value)] for name, value in plain.items()])
    for name, value in nested.items():
        path = f"{title}: {label(name)}" if title else label(name)
        if not isinstance(value, Mapping):
            yield from heading(path)
            for item in value:
                yield from textwrap.wrap(text(item), LINE_WIDTH, initial_indent="  - ", subsequent_indent="    ")
        elif rows := table_rows(value):
            yield from heading(path)
            yield from columns(rows)
        else:
            yield from section_lines(value, path)


def table_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """A table with a head for a record whose values are records with the same fields; empty for any other."""
    values = list(record.values())
    if not values or not all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values):
        return []
    head = ["", *map(label, values[0])]
    return [head, *([name, *map(text, value.values())] for name, value in record.items())]


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as aligned columns; the last column is wrapped."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        start = "  " + "".join(f"{cell:{width}}  " for cell, width in zip(row, widths, strict=False))
        yield from textwrap.wrap(
            row[-1], max(LINE_WIDTH, len(start) + 20), initial_indent=start, subsequent_indent=" " * len(start)
        ) or [start.rstrip()]


def heading(title: str) -> list[str]:
    return ["", title] if title else []


def inline(value: Any) -> bool:
    """Whether a value fits on a line: a plain value, or a short list of them."""
    if isinstance(value, Mapping):
        return False
    if isinstance(value, list | tuple):
        return all(not isinstance(item, Mapping | list | tuple) for item in value) and len(text(value)) <= MOST_INLINE
    return True


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def text(value: Any) -> str:
    """``1234567`` -> ``1,234,567``; ``[14, 14]`` -> ``14 x 14``; ``True`` -> ``yes``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return str(round(value, 4))
    if isinstance(value, list | tuple):
        grid = len(value) == 2 and all(isinstance(item, int) for item in value)
        return (" x " if grid else ", ").join(map(text, value)) or "none"
    return "not given" if value is None else str(value)
