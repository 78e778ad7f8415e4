"""Shared by the commands: common options, printing, writing files."""

from __future__ import annotations

import inspect
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from triptych.errors import InputError, TriptychError
from triptych.io.files import check_writable

if TYPE_CHECKING:
    from triptych.evidence import Evidence
    from triptych.figures.page import PageEntry, Reading
    from triptych.tasks import Answer

OTHER_MODELS = "a checkpoint (ours or published), or OWNER/NAME on the Hugging Face hub"

Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help="Photos: paths, folders or URLs.")]
ModelOption = Annotated[str, typer.Option("--model", help=f"sat, flamingo, blip2, {OTHER_MODELS}.")]
AnsweringModel = Annotated[str, typer.Option("--model", help=f"blip2, flamingo, {OTHER_MODELS}.")]
MatchingModel = Annotated[str, typer.Option("--model", help=f"blip2, {OTHER_MODELS}.")]
CompletingModel = Annotated[str, typer.Option("--model", help=f"flamingo, {OTHER_MODELS}.")]
Beams = Annotated[
    int | None,
    typer.Option(
        help="Beams of the search; 1 is greedy.",
        show_default="with consensus 10 for captions and 4 for answers, else the model's",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        "--dtype",
        help="Number format of the weights. ONNX Runtime: fp32, int8 or int4 (the language model in 4 bits, the rest in 8). "
        "Torch: fp32, bf16, fp16 or int8 (a published model's language model in 8 bits, the rest in bf16).",
        show_default="the fastest that keeps the texts",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Where torch computes: cpu, cuda, cuda:1, mps; auto spreads the model over GPUs, memory and disk; a JSON file says how.",
        show_default="a GPU, else ONNX Runtime on the CPU",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per result, nothing else.")]
Data = Annotated[
    Path, typer.Option("--data", help="Tar shards, a folder with metadata, JSON of Karpathy, COCO or VQA.")
]
Split = Annotated[str, typer.Option(help="Which photos: train, val or test.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N photos.")]


def set_parameters(command: Callable[..., None], parameters: Mapping[str, tuple[Any, Any]]) -> None:
    """Make Typer see ``parameters`` of a command that takes keywords: their annotations and defaults; ``...`` = there is none."""
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=kind,
                default=inspect.Parameter.empty if default is ... else default,
            )
            for name, (kind, default) in parameters.items()
        ]
    )
    command.__annotations__ = {name: kind for name, (kind, _) in parameters.items()}


def without_none(**settings: Any) -> dict[str, Any]:
    """The settings that were given: None = the model's own."""
    return {name: value for name, value in settings.items() if value is not None}


def emit(record: dict[str, Any], as_json: bool, text: str, file: TextIO | None = None) -> None:
    """Print a result: ``record`` as JSON, or ``text``. ``file``: None = stdout."""
    print(json.dumps(record, ensure_ascii=False) if as_json else text, file=file, flush=True)


def escape_controls(name: str) -> str:
    """A file's name on one line, with line breaks and other control characters as a string of Python has them."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in name)


def complain(error: BaseException) -> None:
    """Print a message on stderr, in one line, with the control characters of names escaped."""
    print(f"triptych: {escape_controls(' '.join(str(error).split()))}", file=sys.stderr)


def exit_if_left_out(count: int) -> None:
    """Exit with the code of bad input if photos (or folders) were left out because they cannot be read. Call it last, after the other
    results are written."""
    if count:
        raise typer.Exit(InputError.exit_code)


def has_folder(sources: Iterable[str]) -> bool:
    """Whether one of the sources is a folder. Others may be too long for a path, such as data URLs."""
    return any(map(os.path.isdir, sources))


def pictures(sources: Iterable[str]) -> list[str]:
    """The sources, with each folder replaced by its photos."""
    from triptych.io.folders import find_images

    return [str(source) for source in find_images(sources)]


def evidence_of(answer: Answer) -> Evidence:
    """The evidence of an answer. Raises TriptychError: the model wrote no word."""
    if answer.evidence is None:
        raise TriptychError(f"{answer.model} wrote no word, so there is no map to draw; try another photo or model")
    return answer.evidence


def reading(answer: Answer, seconds: float | None = None) -> Reading:
    """An answer with its maps, for a page."""
    from triptych.figures.page import Reading

    return Reading(answer.model, answer.text, evidence_of(answer), answer.logprob, seconds)


def write_page(path: Path, entries: list[PageEntry], title: str) -> None:
    from triptych.figures.page import html_page
    from triptych.io.files import write_file

    write_file(path, html_page(entries, title).encode())


def check_html(option: str, path: Path | None) -> None:
    """Call it before long work. Raises InputError: the page that ``option`` names is not called so, or cannot be written."""
    if path is None:
        return
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{option} {path}: name a file that ends with .html")
    check_writable(path)


def make_folder(folder: Path) -> None:
    """Make a folder for results. Raises InputError: it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"cannot make the folder {folder}: a file has that name; name another folder") from None
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
