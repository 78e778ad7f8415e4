"""Options and steps that ``caption`` and ``ask`` share when they describe whole folders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from triptych.cli.common import complain, emit
from triptych.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from triptych.folders import Summary
    from triptych.folders.pipeline import Description
    from triptych.tasks import Answer

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write the results to FILE.jsonl, .csv, .parquet or .html; the same command continues after an interruption.",
    ),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Also the photos of the folders below.")]
SidecarKinds = Annotated[
    list[str] | None, typer.Option("--sidecar", help="Write txt, json or xmp beside each photo; repeat for several.")
]
Existing = Annotated[
    str, typer.Option(help="What to do where a result or sidecar exists: skip, overwrite, append or prepend.")
]
Prefix = Annotated[str, typer.Option(help="Text before each result.")]
Suffix = Annotated[str, typer.Option(help="Text after each result.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first photo that cannot be read.")]

SHOWN_FAILURES = 10


@dataclass(frozen=True)
class FolderOptions:
    """The options above as one value."""

    out: Path | None
    recursive: bool
    sidecar: tuple[str, ...]
    existing: str
    prefix: str
    suffix: str
    strict: bool
    as_json: bool

    @property
    def given(self) -> bool:
        """Whether the person asks for more than texts on the terminal."""
        return self.out is not None or self.recursive or bool(self.sidecar) or self.strict


def describe_folder(
    sources: Sequence[str],
    describe: Callable[[Sequence[Image]], Sequence[Description]],
    settings: Mapping[str, Any],
    options: FolderOptions,
) -> None:
    """Describe all photos of ``sources``, with a progress bar; exits with 2 if some could not be read."""
    from triptych.folders import Journal, Sidecars, count_photos, describe_photos, walk_photos, write_output
    from triptych.folders.outputs import journal_path

    out, as_json = options.out, options.as_json
    sidecars = Sidecars(options.sidecar, options.existing, options.prefix, options.suffix)
    total = count_photos(sources, options.recursive)
    journal = None if out is None else Journal(journal_path(out), settings, restart=options.existing != "skip")
    console = Console(stderr=True)
    with Progress(
        TextColumn("photos"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("photos", total=total, rate="")

        def advance(photos: int) -> None:
            bar.advance(task, photos)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} photos/s" if speed else "")

        summary = describe_photos(
            walk_photos(sources, options.recursive),
            describe,
            journal=journal,
            sidecars=sidecars,
            strict=options.strict,
            result=lambda record: print_record({**record, **settings}, as_json) if out is None or as_json else None,
            progress=advance,
        )
    if journal is not None and out is not None:
        write_output(out, journal.records())
    report(summary, out)


def print_record(record: Mapping[str, Any], as_json: bool) -> None:
    if "error" in record:
        return  # reported at the end
    emit(dict(record), as_json, f"{record['image']}: {record['caption']}")


def report(summary: Summary, out: Path | None) -> None:
    """One line on stderr about the run, and the photos that could not be read."""
    parts = [f"{summary.described} described"]
    parts += [f"{summary.skipped} done before"] * bool(summary.skipped)
    parts += [f"{summary.failed} not readable"] * bool(summary.failed)
    rate = summary.described / summary.seconds if summary.seconds else 0.0
    print(f"{', '.join(parts)}; {rate:.1f} photos/s{f'; {out}' if out else ''}", file=sys.stderr)
    for _, reason in summary.failures[:SHOWN_FAILURES]:
        complain(InputError(reason))
    if summary.failed > SHOWN_FAILURES:
        complain(InputError(f"and {summary.failed - SHOWN_FAILURES} more"))
    if summary.failed:
        raise typer.Exit(InputError.exit_code)


def as_descriptions(answers: Sequence[Answer]) -> list[Description]:
    """Answers as the folder pipeline takes them."""
    from triptych.folders.pipeline import Description

    return [Description(answer.text, {"logprob": round(answer.logprob, 4)}) for answer in answers]
