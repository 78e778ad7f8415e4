"""The options and steps of ``caption``, ``ask`` and ``tag`` for whole folders."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from triptych.cli.common import check_html, complain, emit, escape_controls, exit_if_left_out, set_parameters
from triptych.errors import InputError
from triptych.io.files import check_writable
from triptych.io.locks import only_process

if TYPE_CHECKING:
    from triptych.folders import Journal, Sidecars, Summary
    from triptych.folders.journal import Record
    from triptych.folders.pipeline import Describe, Description, Runner
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
WriteMetadata = Annotated[
    bool,
    typer.Option(
        "--write-metadata",
        help="Also write the result into each photo (XMP, EXIF, IPTC if it is there), with model and date.",
    ),
]
KeepOriginal = Annotated[bool, typer.Option(help="With --write-metadata: keep each photo as FILE.original.")]
AltText = Annotated[
    Path | None,
    typer.Option(
        "--alt-text",
        metavar="FILE.html",
        help="Also write a page of the photos with their alternative texts; uncertain ones are marked.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Only part I of N, so that N machines share a folder; give each its own --out."
    ),
]
Watch = Annotated[
    bool, typer.Option("--watch", help="Continue with photos that arrive in the folder later; Ctrl-C ends.")
]
RunnerOption = Annotated[
    str,
    typer.Option(
        "--runner",
        "--engine",
        help="What describes the photos of a folder: local (this process) or ray (workers on a Ray cluster).",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first photo that cannot be read.")]

SHOWN_FAILURES = 10


@dataclass(frozen=True)
class FolderOptions:
    """The options above, in the order of ``--help``, and what else a run depends on."""

    out: Out = None
    recursive: Recursive = False
    sidecar: SidecarKinds = None
    existing: Existing = "skip"
    prefix: Prefix = ""
    suffix: Suffix = ""
    write_metadata: WriteMetadata = False
    keep_original: KeepOriginal = True
    alt_text: AltText = None
    watch: Watch = False
    shard: ShardOption = None
    runner: RunnerOption = "local"
    strict: Strict = False
    as_json: bool = False
    device: str | None = None
    keywords: bool = False  # write keywords into photos, not descriptions

    def __post_init__(self) -> None:
        if self.runner not in ("local", "ray"):
            raise InputError(f"--runner is {self.runner!r}: choose local or ray")
        if self.runner == "ray" and self.watch:
            raise InputError("--watch follows a folder from this machine alone: leave out --runner ray")
        if self.existing != "skip" and not self.writes_files:
            raise InputError("--existing is for --out, --sidecar and --write-metadata: add one of them")
        if not self.keep_original and not self.write_metadata:
            raise InputError("--no-keep-original is for --write-metadata: add that, or leave this out")
        check_html("--alt-text", self.alt_text)
        if self.journal is not None and self.out is not None:
            check_writable(self.out)

    @property
    def given(self) -> bool:
        """Whether any of the options is used, other than to print texts on the terminal."""
        on_cluster = self.runner == "ray"
        changes_texts = bool(self.prefix or self.suffix)
        chooses_photos = self.recursive or self.strict or self.watch or self.shard is not None
        return self.writes_files or chooses_photos or changes_texts or on_cluster

    @property
    def writes_files(self) -> bool:
        """Whether results are written to files, or into the photos."""
        return bool(self.outputs or self.sidecar or self.write_metadata)

    @property
    def outputs(self) -> list[Path]:
        """The files for all results."""
        return [path for path in (self.out, self.alt_text) if path is not None]

    @property
    def journal(self) -> Path | None:
        """Where the journal of the first of the outputs is; None = there is no output."""
        from triptych.folders.outputs import journal_path

        return journal_path(self.outputs[0]) if self.outputs else None


def with_folder_options(*absent: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For commands: their parameter ``options`` becomes the options of ``FolderOptions``, except the ``absent`` ones."""
    hints = get_type_hints(FolderOptions, include_extras=True)
    present = [item for item in fields(FolderOptions) if get_origin(hints[item.name]) is Annotated]
    own: dict[str, tuple[Any, Any]] = {
        item.name: (hints[item.name], item.default) for item in present if item.name not in absent
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            options = FolderOptions(**{name: given.pop(name) for name in own})
            command(options=options, **given)

        kinds, parameters = get_type_hints(command, include_extras=True), dict[str, tuple[Any, Any]]()
        for name, parameter in inspect.signature(command).parameters.items():
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            parameters |= own if name == "options" else {name: (kinds[name], default)}
        set_parameters(run, parameters)
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def describe_folder(
    sources: Sequence[str],
    open_describe: Callable[[], Describe],
    settings: Mapping[str, Any],
    options: FolderOptions,
) -> None:
    """Describe all photos of ``sources``, with a progress bar, and with ``watch`` those that arrive later; exits with 2 if some could not
    be read.

    ``open_describe``: loads the model, here or in each worker of a cluster. ``settings``: recorded with each result.
    """
    out = options.journal
    busy = f"{out}: another run is writing to it; wait until it ends, or name another --out"
    with nullcontext() if out is None else only_process(out, busy):
        run_on_folder(sources, open_describe, settings, options)


def run_on_folder(
    sources: Sequence[str], open_describe: Callable[[], Describe], settings: Mapping[str, Any], options: FolderOptions
) -> None:
    """``describe_folder``, as the only run that writes to the journal."""
    from triptych.folders import (
        Arrivals,
        Summary,
        WatchedPhotos,
        count_photos,
        describe_photos,
        parse_shard,
        walk_photos,
    )

    shard = parse_shard(options.shard or "1/1")
    arrivals = Arrivals(sources, options.recursive) if options.watch else None
    sidecars = open_sidecars(settings, options)
    total = count_photos(sources, options.recursive, shard) if arrivals is None else None
    runner = open_runner(open_describe, options)
    journal = open_journal(sources, settings, options)
    prints = options.as_json or options.watch or journal is None
    stdout = sys.stdout
    summary, watched = Summary(), WatchedPhotos()

    def handle(record: Record) -> None:
        if prints:
            print_record({**record, **settings}, options.as_json, stdout)
        if arrivals is not None:
            watched.add(record)

    run = partial(
        describe_photos,
        runner=runner,
        journal=journal,
        sidecars=sidecars,
        strict=options.strict,
        result=handle,
        summary=summary,
    )
    with suppress(KeyboardInterrupt) if options.watch else nullcontext():
        with progress_bar(total) as advance, redirect_stdout(sys.stderr if options.runner == "ray" else stdout):
            run(filter(shard.has, walk_photos(sources, options.recursive)), progress=advance)
        if arrivals is not None:
            write_outputs(journal, options)
            print(f"watching {', '.join(sources)}; Ctrl-C ends", file=sys.stderr)
            skipped = summary.skipped
            for names in arrivals:
                run(watched.due(filter(shard.has, names)))
                summary.skipped = skipped  # the first arrivals are the photos of the first pass again
    write_outputs(journal, options, watched.mended)
    if journal is not None:
        journal.finish()
    report(summary.without(watched.mended), options.outputs)


def open_runner(open_describe: Callable[[], Describe], options: FolderOptions) -> Runner:
    """The runner: this process, which loads the model now, or workers on a cluster."""
    if options.runner == "ray":
        from triptych.folders.cluster import OnRay

        return OnRay(open_describe, gpus=int((options.device or "").startswith("cuda")))
    from triptych.folders import on_this_machine

    return on_this_machine(open_describe())


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr if that is a terminal; yields a function that advances it by a number of photos."""
    console = Console(stderr=True)
    columns = (
        TextColumn("photos"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("photos", total=total, rate="")

        def advance(photos: int) -> None:
            bar.advance(task, photos)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} photos/s" if speed else "")

        yield advance


def open_sidecars(settings: Mapping[str, Any], options: FolderOptions) -> Sidecars:
    from triptych.folders import PhotoMetadata, Sidecars

    metadata = None
    if options.write_metadata:
        metadata = PhotoMetadata(settings["model"], options.keywords, options.keep_original)
    return Sidecars(tuple(options.sidecar or ()), options.existing, options.prefix, options.suffix, metadata)


def open_journal(sources: Sequence[str], settings: Mapping[str, Any], options: FolderOptions) -> Journal | None:
    """The journal; None = there is no output. Unless existing results are skipped, the run replaces them."""
    from triptych.folders import Journal

    if options.journal is None:
        return None
    if options.existing == "skip":
        return Journal(options.journal, settings)
    names = ("existing", "prefix", "suffix", "recursive", "shard", "sidecar", "write_metadata", "keywords")
    run = {"sources": list(sources), **settings, **{name: getattr(options, name) for name in names}}
    return Journal(options.journal, settings, replacing=run)


def write_outputs(journal: Journal | None, options: FolderOptions, mended: Collection[str] = ()) -> None:
    """Write the outputs. ``mended``: photos that could be read later, whose failures are left out."""
    from triptych.folders import write_output

    def records(journal: Journal) -> Iterator[dict[str, Any]]:
        return (record for record in journal.records() if "error" not in record or record["image"] not in mended)

    if journal is not None:
        for path in options.outputs:
            write_output(path, partial(records, journal))


def print_record(record: Mapping[str, Any], as_json: bool, file: TextIO) -> None:
    from triptych.folders.journal import is_described, result_text

    if is_described(record):  # failures are reported at the end
        emit(dict(record), as_json, f"{escape_controls(record['image'])}: {result_text(record)}", file)


def report(summary: Summary, outputs: Sequence[Path]) -> None:
    """One line on stderr about the run, and the photos that failed."""
    parts = [f"{summary.described} described"]
    parts += [f"{summary.skipped} done before"] * bool(summary.skipped)
    parts += [f"{summary.failed} failed"] * bool(summary.failed)
    rate = [f"{summary.described / summary.seconds:.1f} photos/s"] if summary.described and summary.seconds else []
    print("; ".join([", ".join(parts), *rate, *map(str, outputs)]), file=sys.stderr)
    for _, reason in summary.failures[:SHOWN_FAILURES]:
        complain(InputError(reason))
    if summary.failed > SHOWN_FAILURES:
        complain(InputError(f"and {summary.failed - SHOWN_FAILURES} more"))
    exit_if_left_out(summary.failed)


def as_descriptions(answers: Sequence[Answer], field: str) -> list[Description]:
    """Answers in the form of the folder pipeline. ``field``: of the results, ``caption`` or ``answer``."""
    from triptych.folders.pipeline import Description

    return [Description(answer.text, {"logprob": round(answer.logprob, 4)}, field=field) for answer in answers]
