"""A library of a person's photos."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.common import Json, PrecisionOption, app, complain, emit


@app.command()
def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos; those below it count too.")],
    library: Annotated[Path, typer.Option("--library", metavar="PATH", help="The library's folder; made if missing.")],
    model: Annotated[str, typer.Option(help="blip2, or a checkpoint directory.")] = "blip2",
    precision: PrecisionOption = None,
    as_json: Json = False,
) -> None:
    """Bring a photo library up to date with a folder; only what is new is read by the model."""
    from triptych.library import as_matcher, index_photos, scan
    from triptych.library.table import check_location
    from triptych.tasks import load

    check_location(library)
    listing = scan(directory, complain)
    report = index_photos(listing, library, as_matcher(load(model, precision=precision), model), complain)
    record = vars(report) | {"seconds": round(report.seconds, 3)}
    kinds = ", ".join(f"{record[kind]} {kind}" for kind in ("added", "changed", "moved", "removed", "skipped"))
    emit(record, as_json, f"{library}: {report.photos} photos ({kinds})")


@app.command()
def find(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the photo shows, such as 'a dog in the snow'.")],
    library: Annotated[Path, typer.Option("--library", metavar="PATH", help="A library that `triptych index` made.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many photos.")] = 20,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="How many are ranked by looking again.", show_default="2 k, at least 32")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write an HTML page of the photos.")] = None,
    model: Annotated[str, typer.Option(help="The model that made the library.")] = "blip2",
    precision: PrecisionOption = None,
    as_json: Json = False,
) -> None:
    """Find the photos of a library that a text describes, the best first."""
    from triptych.io.files import write_file
    from triptych.library import as_matcher, open_library, sheet_page
    from triptych.library import find as find_photos
    from triptych.tasks import load

    opened = open_library(library)
    hits = find_photos(
        opened, as_matcher(load(model, precision=precision), model), text, k, candidates, notice=complain
    )
    for one in hits:
        emit(vars(one), as_json, f"{one.score:.3f}  {one.path}")
    if sheet is not None:
        write_file(sheet, sheet_page(text, hits).encode())
        print(f"photos: {sheet}", file=sys.stderr)
