"""Captions, and where the model looked."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.application import app
from triptych.cli.common import (
    OTHER_MODELS,
    Beams,
    DeviceOption,
    Images,
    Json,
    ModelOption,
    PrecisionOption,
    complain,
    emit,
    escape_controls,
    evidence_of,
    exit_if_left_out,
    has_folder,
    make_folder,
    pictures,
    reading,
    without_none,
    write_page,
)
from triptych.cli.folders import FolderOptions, as_descriptions, describe_folder, with_folder_options
from triptych.errors import InputError
from triptych.io.files import check_writable

if TYPE_CHECKING:
    from PIL.Image import Image

    from triptych.figures.page import PageEntry
    from triptych.folders.pipeline import Describe
    from triptych.tasks import Answer, Blip2Tasks, FlamingoTasks, SatTasks


@app.command()
@with_folder_options()
def caption(
    images: Images,
    model: ModelOption = "sat",
    beams: Beams = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest caption, in words (sat) or tokens.", show_default="the model's")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Flamingo, BLIP-2: the exact text after the photo.", show_default="the model's"),
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw where the model looked, into DIR.")
    ] = None,
    *,
    options: FolderOptions,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Write a caption for each photo, or each photo of a folder. --out and --sidecar keep the captions in files."""
    options = replace(options, as_json=as_json, device=device)
    if explain is not None and options.given:
        raise InputError("--explain draws single photos: leave out --out, --recursive and --sidecar")
    settings = without_none(beams=beams, max_new_tokens=max_new_tokens, prompt=prompt)
    if explain is None and (options.given or has_folder(images)):
        describe_folder(
            images, partial(open_captions, model, precision, device, settings), {"model": model, **settings}, options
        )
    else:
        captioner = open_captioner(model, precision, device, settings)
        caption_each(captioner, pictures(images), settings, explain, as_json)


def open_captioner(
    model: str, precision: str | None, device: str | None, settings: dict[str, Any]
) -> SatTasks | FlamingoTasks | Blip2Tasks:
    """Load the model and check the settings, so that wrong ones are reported once, not for every photo. Raises InputError."""
    from triptych.tasks import SatTasks, load

    captioner = load(model, device=device, precision=precision)
    captioner.search(**{name: value for name, value in settings.items() if name != "prompt"})
    if "prompt" in settings and isinstance(captioner, SatTasks):
        raise InputError(f"{model} reads photos only: leave out --prompt, or choose flamingo or blip2")
    return captioner


def open_captions(model: str, precision: str | None, device: str | None, settings: dict[str, Any]) -> Describe:
    """Load the model; the result captions photos, for ``describe_folder``."""
    captioner = open_captioner(model, precision, device, settings)
    return lambda photos: as_descriptions(captioner.caption(list(photos), **settings), "caption")


def caption_each(
    captioner: SatTasks | FlamingoTasks | Blip2Tasks,
    sources: list[str],
    settings: dict[str, Any],
    explain: Path | None,
    as_json: bool,
) -> None:
    """Caption photos one by one, with figures in the folder ``explain`` if there is one; bad photos are reported and left out."""
    from triptych.io.images import load_image

    left_out = 0
    pages: list[PageEntry] = []
    drawn: set[str] = set()
    if explain is not None:
        make_folder(explain)
    for source in sources:
        started = time.perf_counter()
        try:
            photo = load_image(source)
            answer = captioner.caption(photo, explain=explain is not None, **settings)
        except InputError as error:
            complain(error)
            left_out += 1
            continue
        seconds = time.perf_counter() - started
        record = {"image": source, **answer.to_record("caption"), "seconds": round(seconds, 3)}
        emit(record, as_json, f"{escape_controls(source)}: {answer.text}" if len(sources) > 1 else answer.text)
        if explain is not None and answer.evidence is not None:
            pages.append(draw_figure(explain / f"{figure_name(source, drawn)}.png", source, photo, answer, seconds))
    if explain is not None and pages:
        write_page(explain / "index.html", pages, "Where the model looked")
        print(f"maps: {explain / 'index.html'}", file=sys.stderr)
    exit_if_left_out(left_out)


def shown_name(source: str) -> str:
    """A photo's name on a page: the file's name, or "photo" for a data URL."""
    return "photo" if source.lower().startswith("data:") else Path(source).name[:100] or "photo"


def figure_name(source: str, drawn: set[str]) -> str:
    """A name for the photo's figure that is unique in this run; added to ``drawn``."""
    stem = name = Path(shown_name(source)).stem
    for n in count(2):
        if name not in drawn:
            break
        name = f"{stem}-{n}"
    drawn.add(name)
    return name


def draw_figure(figure: Path, source: str, photo: Image, answer: Answer, seconds: float) -> PageEntry:
    """Write the photo's figure; returns its section of the page, with the photo reduced to the page's size."""
    from triptych.figures.maps import draw_words, fit_within, write_png
    from triptych.figures.page import PHOTO_BOX, PageEntry

    write_png(figure, draw_words(photo, evidence_of(answer)))
    return PageEntry((fit_within(photo, PHOTO_BOX),), (reading(answer, seconds),), name=shown_name(source))


@app.command()
def explain(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A photo: path or URL.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to draw: a .png or .html file.")],
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="Answer this instead of captioning (flamingo, blip2).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"sat, flamingo, blip2, {OTHER_MODELS}.", show_default="sat; blip2 with a question"),
    ] = None,
    beams: Beams = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Draw where the model looked at each word of its caption. With a question: of its answer."""
    from triptych.figures.maps import draw_words, write_png
    from triptych.figures.page import PageEntry
    from triptych.io.images import load_image
    from triptych.tasks import load, load_answerer

    if out.suffix.lower() not in (".png", ".html"):
        raise InputError(f"--out {out}: name a .png or an .html file")
    check_writable(out)
    model = model or ("sat" if question is None else "blip2")
    photo = load_image(image)
    settings = without_none(beams=beams)
    if question is None:
        answer = load(model, device=device, precision=precision).caption(photo, explain=True, **settings)
    else:
        answer = load_answerer(model, device=device, precision=precision).ask(photo, question, explain=True, **settings)
    if out.suffix.lower() == ".png":
        write_png(out, draw_words(photo, evidence_of(answer)))
    else:
        entry = PageEntry((photo,), (reading(answer),), name=shown_name(image), question=question or "")
        write_page(out, [entry], answer.text)
    text = {"caption": answer.text} if question is None else {"question": question, "answer": answer.text}
    emit({"image": image, "model": model, **text, "out": str(out)}, as_json, f"{answer.text}\n{out}")
