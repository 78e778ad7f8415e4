"""The data sets of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import InputError


@dataclass(frozen=True)
class Sources:
    """``data``: one data set or several. ``shares``: relative share of each in an epoch; empty = by their sizes. ``strict``: a damaged
    photo ends the run. ``drawings``: pictures with names, for systems that learn names. ``written``: files of captions that a model wrote
    (``eval caption --output``), which language models learn in addition to those of people."""

    data: tuple[Path, ...]
    shares: tuple[float, ...] = ()
    strict: bool = False
    drawings: Path | None = None
    written: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("no data set: name one with --data")
        if self.shares and len(self.shares) != len(self.data):
            raise InputError(
                f"{len(self.data)} data sets but {len(self.shares)} shares: give one --data-share for each --data, in their order"
            )
        for share in self.shares:
            if not 0 < share < math.inf:
                raise InputError(f"--data-share {share}, expected a number above 0")

    @property
    def names(self) -> list[str]:
        """A name for each data set: that of its folder or file, numbered if several are equal."""
        plain = [path.resolve().stem if path.is_file() else path.resolve().name for path in self.data]
        return [
            name if plain[:i].count(name) == 0 else f"{name}-{plain[:i].count(name) + 1}"
            for i, name in enumerate(plain)
        ]
