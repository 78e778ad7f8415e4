"""``triptych index`` and ``find``: a library of photos, and searching it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.application import app
from triptych.cli.common import (
    DeviceOption,
    Json,
    MatchingModel,
    PrecisionOption,
    check_html,
    complain,
    emit,
    escape_controls,
    exit_if_left_out,
)
from triptych.errors import InputError, TriptychError

if TYPE_CHECKING:
    from triptych.library import Library, SheetPhoto

SHEET_AT_LEAST = 0.3  # the default of --at-least with --sheet


@app.command()
def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos; those below it count too.")],
    library: Annotated[Path, typer.Option("--library", metavar="PATH", help="The library's folder; made if missing.")],
    model: MatchingModel = "blip2",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Bring a photo library up to date with a folder. Only new photos are read by the model."""
    from triptych.library import as_matcher, index_photos, scan
    from triptych.library.table import check_location
    from triptych.tasks import load

    check_location(library)
    listing = scan(directory, complain)
    report = index_photos(
        listing, library, as_matcher(load(model, device=device, precision=precision), model), complain
    )
    record = vars(report) | {"seconds": round(report.seconds, 3)}
    kinds = ", ".join(f"{record[kind]} {kind}" for kind in ("added", "changed", "moved", "removed", "skipped"))
    emit(record, as_json, f"{library}: {report.photos} photos ({kinds})")
    exit_if_left_out(report.skipped + len(listing.closed))


@app.command()
def find(
    library: Annotated[Path, typer.Option("--library", metavar="PATH", help="A library that `triptych index` made.")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What the photo shows, such as 'a dog in the snow'.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="IMAGE", help="Instead of a text: photos that show the same as this one."),
    ] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Instead of a text: groups of copies, near duplicates and bursts.")
    ] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many photos.")] = 20,
    at_least: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Only photos that people would describe so with probability P.",
            show_default=f"{SHEET_AT_LEAST} with --sheet",
        ),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="How many photos are opened and ranked by matching.", show_default="k")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write a page of the photos.")] = None,
    model: Annotated[str, typer.Option(help="The model that made the library.")] = "blip2",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Search a photo library by a text or a photo, or for duplicates. The best photos come first."""
    from triptych.library import SheetPhoto, as_matcher, open_library, similar_photos
    from triptych.library import find as find_photos
    from triptych.tasks import load

    if (text is not None) + (like is not None) + duplicates != 1:
        raise InputError("say what to find: a text, or --like IMAGE, or --duplicates, and one of them only")
    if at_least is not None and text is None:
        raise InputError("--at-least is a probability that a text fits: give a text, not --like or --duplicates")
    check_html("--sheet", sheet)
    opened = open_library(library)
    if duplicates:
        find_groups(opened, sheet, as_json)
        return
    matcher = as_matcher(load(model, device=device, precision=precision), model)
    photos: list[SheetPhoto] = []
    notice = LibraryNotice()
    if text is not None:
        least = (SHEET_AT_LEAST if sheet is not None else 0.0) if at_least is None else at_least
        for one in find_photos(opened, matcher, text, k, candidates, at_least=least, notice=notice):
            emit(vars(one), as_json, f"{one.score:.3f}  {escape_controls(one.path)}")
            photos.append(SheetPhoto(one.path, one.rank, f"{one.score:.3f} ({one.probability:.0%})"))
        if not photos:
            complain(InputError(f"no photo reaches a probability of {least}; --at-least 0 lists the best all the same"))
    else:
        for similar in similar_photos(opened, matcher, like or "", k, notice=notice):
            emit(vars(similar), as_json, f"{similar.similarity:.3f}  {escape_controls(similar.path)}")
            photos.append(SheetPhoto(similar.path, similar.rank, f"{similar.similarity:.3f}"))
    write_sheet(sheet, text or f"Photos like {Path(like or '').name}", photos, notice)
    exit_if_left_out(notice.left_out)


def find_groups(library: Library, sheet: Path | None, as_json: bool) -> None:
    """Print each group of duplicates; nothing is deleted."""
    from rich.console import Console
    from rich.progress import Progress

    from triptych.library import SheetPhoto, find_duplicates

    notice = LibraryNotice()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("photos", total=len(library.paths))
        groups = find_duplicates(library, notice, lambda photos: bar.advance(task, photos))
    photos: list[SheetPhoto] = []
    for number, group in enumerate(groups, 1):
        lines = "\n".join(f"  {escape_controls(path)}" for path in group.paths)
        emit(vars(group), as_json, f"{group.kind}: {len(group.paths)} photos\n{lines}")
        photos += [SheetPhoto(path, number, group.kind) for path in group.paths]
    if not groups:
        complain(InputError(f"no duplicates among {len(library.paths)} photos"))
    write_sheet(sheet, "Duplicates", photos, notice)
    exit_if_left_out(notice.left_out)


class LibraryNotice:
    """Prints what a search notices; ``left_out``: how often it left out photos that cannot be read."""

    left_out = 0

    def __call__(self, error: TriptychError) -> None:
        from triptych.library import UnreadablePhotosError

        complain(error)
        self.left_out += isinstance(error, UnreadablePhotosError)


def write_sheet(sheet: Path | None, title: str, photos: list[SheetPhoto], notice: LibraryNotice) -> None:
    from triptych.io.files import write_file
    from triptych.library import sheet_page

    if sheet is not None:
        write_file(sheet, sheet_page(title, photos, notice))
        print(f"photos: {sheet}", file=sys.stderr)
