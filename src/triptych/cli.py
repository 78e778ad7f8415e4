"""The command line. Heavy modules are imported inside the commands, so that ``triptych --help`` answers at once.

Results go to stdout (``--json``: one object a line), progress and errors to stderr. Exit codes: 0, 1 a failure of our own, 2 bad input.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterable
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.errors import InputError, TriptychError

if TYPE_CHECKING:
    from PIL.Image import Image

    from triptych.page import Entry, Reading
    from triptych.tasks import Answer

app = typer.Typer(
    name="triptych",
    help="Show, Attend and Tell, Flamingo and BLIP-2: caption photos offline and see where the model looked.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
evaluation = typer.Typer(help="Measure a model on a data set.")
training = typer.Typer(help="Train a system on your own photos.")
app.add_typer(evaluation, name="eval")
app.add_typer(training, name="train")

UsageError: type[Any] = typer.BadParameter.__mro__[1]  # click's, which newer versions of typer carry inside

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Photos: paths, folders or URLs.")]
Model = Annotated[str, typer.Option("--model", help="sat, or a checkpoint directory.")]
Beams = Annotated[int | None, typer.Option(help="Beams of the search; 1 is greedy.", show_default="the model's")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per result, nothing else.")]
Data = Annotated[Path, typer.Option("--data", help="Tar shards, a folder with metadata, Karpathy or COCO JSON.")]


def emit(record: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(record, ensure_ascii=False) if as_json else text, flush=True)


def complain(error: BaseException) -> None:
    print(f"triptych: {' '.join(str(error).split())}", file=sys.stderr)


def pictures(sources: Iterable[str]) -> list[str]:
    """The sources with each folder replaced by its photos."""
    from triptych.images import find_images

    return [str(source) for source in find_images(sources)]


@app.command()
def caption(
    images: Images,
    model: Model = "sat",
    beams: Beams = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest caption, in words.", show_default="the model's")
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw where the model looked, into DIR.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a caption for each photo."""
    from triptych.images import load_image
    from triptych.tasks import load

    sources = pictures(images)
    captioner = load(model)
    settings = {k: v for k, v in (("beams", beams), ("max_new_tokens", max_new_tokens)) if v is not None}
    captioner.search(**settings)  # wrong settings are said once, not for every photo
    failed: TriptychError | None = None
    pages: list[Entry] = []
    drawn: set[str] = set()
    if explain is not None:
        make_folder(explain)
    for source in sources:
        started = time.perf_counter()
        try:
            photo = load_image(source)
            answer = captioner.caption(photo, explain=explain is not None, **settings)
        except InputError as error:  # one bad photo does not lose the others
            complain(error)
            failed = error
            continue
        seconds = time.perf_counter() - started
        record = {
            "image": source,
            "model": model,
            "caption": answer.text,
            "logprob": round(answer.logprob, 4),
            "seconds": round(seconds, 3),
        }
        emit(record, as_json, f"{source}: {answer.text}" if len(sources) > 1 else answer.text)
        if explain is not None and answer.evidence is not None:
            pages.append(draw(explain / f"{figure_name(source, drawn)}.png", source, photo, answer, seconds))
    if explain is not None and pages:
        write_page(explain / "index.html", pages, "Where the model looked")
        print(f"maps: {explain / 'index.html'}", file=sys.stderr)
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def shown_name(source: str) -> str:
    """What to call a photo on a page: the file's name; a data URL has none."""
    return "photo" if source.lower().startswith("data:") else Path(source).name[:100] or "photo"


def figure_name(source: str, drawn: set[str]) -> str:
    """A name for the photo's figure that no other photo of this run has; added to ``drawn``."""
    stem = name = Path(shown_name(source)).stem
    for n in count(2):
        if name not in drawn:
            break
        name = f"{stem}-{n}"
    drawn.add(name)
    return name


def draw(figure: Path, source: str, photo: Image, answer: Answer, seconds: float) -> Entry:
    """Write the photo's figure; returns its section of the page, which keeps the photo at the page's size only."""
    from triptych.explain import draw_words, fit, write_png
    from triptych.page import PHOTO_BOX, Entry

    said = reading(answer, seconds)
    write_png(figure, draw_words(photo, said.evidence))
    return Entry((fit(photo, PHOTO_BOX),), (said,), name=shown_name(source))


def reading(answer: Answer, seconds: float | None = None) -> Reading:
    from triptych.page import Reading

    if answer.evidence is None:
        raise TriptychError(f"{answer.model} wrote no word, so there is no map to draw")
    return Reading(answer.model, answer.text, answer.evidence, answer.logprob, seconds)


def write_page(path: Path, entries: list[Entry], title: str) -> None:
    from triptych.explain import write_file
    from triptych.page import html_page

    write_file(path, html_page(entries, title).encode())


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None


@app.command()
def explain(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A photo: path or URL.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to draw: a .png or .html file.")],
    model: Model = "sat",
    beams: Beams = None,
    as_json: Json = False,
) -> None:
    """Draw where the model looked at each word of its caption."""
    from triptych.explain import draw_words, write_png
    from triptych.images import load_image
    from triptych.page import Entry
    from triptych.tasks import load

    if out.suffix.lower() not in (".png", ".html"):
        raise InputError(f"--out {out}: name a .png or an .html file")
    photo = load_image(image)
    answer = load(model).caption(photo, explain=True, **({} if beams is None else {"beams": beams}))
    said = reading(answer)
    if out.suffix.lower() == ".png":
        write_png(out, draw_words(photo, said.evidence))
    else:
        write_page(out, [Entry((photo,), (said,), name=shown_name(image))], answer.text)
    emit({"image": image, "model": model, "caption": answer.text, "out": str(out)}, as_json, f"{answer.text}\n{out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the report.")] = Path("triptych-demo"),
) -> None:
    """Caption the bundled photos and write a report that shows where the model looked."""
    from triptych.demo import run

    make_folder(out)
    print(f"report: {run(out)}")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="sat, or a checkpoint directory.")] = "sat", as_json: Json = False
) -> None:
    """What a model consists of: parts, parameters, memory, licences, figures."""
    from triptych.assets import parts
    from triptych.tasks import load

    record = load(model).info()
    record["parts"] = {part.name: {"use": part.use, "licence": part.licence, "state": state} for part, state in parts()}
    emit(
        record, as_json, "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in record.items())
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published checkpoint, or one of ours.")],
    target: Annotated[Path, typer.Argument(help="The checkpoint directory to write.")],
    word_map: Annotated[
        Path | None, typer.Option(help="WORDMAP_*.json of a Show, Attend and Tell tutorial checkpoint.")
    ] = None,
    half: Annotated[bool, typer.Option(help="Store 16-bit floats.")] = False,
    as_json: Json = False,
) -> None:
    """Read a checkpoint of another project (or of ours) and write it as a checkpoint directory."""
    from triptych.convert import convert_checkpoint

    report = convert_checkpoint(source, target, word_map, half)
    counts = {"mapped": list(report.mapped), "missing": list(report.missing), "ignored": list(report.ignored)}
    emit(
        {"target": str(target), **counts},
        as_json,
        f"{target}: " + ", ".join(f"{len(v)} {k}" for k, v in counts.items()),
    )


@evaluation.command("caption")
def eval_caption(
    data: Data,
    split: Annotated[str, typer.Option(help="Which photos.")] = "test",
    model: Model = "sat",
    beams: Beams = None,
    length_penalty: Annotated[float | None, typer.Option(show_default="the model's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N photos.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every caption, as JSON lines.")
    ] = None,
    as_json: Json = False,
) -> None:
    """BLEU, METEOR (needs Java), ROUGE-L and CIDEr-D of the model's captions."""
    from triptych.evaluate.run import caption_metrics

    settings = {k: v for k, v in (("beams", beams), ("length_penalty", length_penalty)) if v is not None}
    record = caption_metrics(model, data, split, limit, settings, output)
    emit(record, as_json, "\n".join(f"{k}: {'not computed' if v is None else v}" for k, v in record.items()))


@evaluation.command("judgments")
def eval_judgments(data: Data, as_json: Json = False) -> None:
    """How each caption metric agrees with people: Kendall's tau on Flickr8k's expert judgments."""
    from triptych.evaluate.run import judgment_taus

    record = judgment_taus(data)
    emit(record, as_json, "\n".join(f"{k}: {'not computed' if v is None else v}" for k, v in record.items()))


@evaluation.command("attention")
def eval_attention(
    data: Data,
    split: Annotated[str | None, typer.Option(help="Which photos.", show_default="all")] = None,
    model: Model = "sat",
    as_json: Json = False,
) -> None:
    """How much of a word's attention falls into the boxes of what it names (data with COCO's boxes)."""
    from triptych.evaluate.attention import attention_in_boxes

    record = attention_in_boxes(model, data, split)
    emit(record, as_json, "\n".join(f"{k}: {v}" for k, v in record.items()))


@training.command("sat")
def train_sat(
    data: Data,
    run: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's folder; the same command goes on after an interruption.")
    ],
    objective: Annotated[
        str, typer.Option(help="xe (cross-entropy) or scst (self-critical, reward CIDEr-D and BLEU; needs --init).")
    ] = "xe",
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A checkpoint to go on from; its encoder and sizes are kept.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="efficientnet-lite2, vgg19 or resnet101.")] = "efficientnet-lite2",
    encoder_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="torchvision's .pth of vgg19 or resnet101.")
    ] = None,
    cut: Annotated[
        int | None, typer.Option(help="Train the encoder's layers after this one too.", show_default="none")
    ] = None,
    attention: Annotated[str, typer.Option(help="soft or hard.")] = "soft",
    variant: Annotated[str, typer.Option(help="paper or tutorial.")] = "paper",
    gate: Annotated[str | None, typer.Option(help="scalar or vector.", show_default="the variant's")] = None,
    hidden_dim: Annotated[int, typer.Option(min=8)] = 512,
    embed_dim: Annotated[int, typer.Option(min=8)] = 512,
    attention_dim: Annotated[int, typer.Option(min=8)] = 256,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos per step; each brings five captions.")] = 64,
    accumulation: Annotated[int, typer.Option(min=1, help="Parts that a batch is split into, to save memory.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    tail_rate: Annotated[
        float, typer.Option(min=0, help="Learning rate of the encoder's trained layers, relative.")
    ] = 0.05,
    patience: Annotated[int, typer.Option(min=1, help="Validations without a better one before stopping.")] = 4,
    validation_photos: Annotated[int, typer.Option(min=1)] = 500,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    as_json: Json = False,
) -> None:
    """Train Show, Attend and Tell; RUN/best is the checkpoint with the best CIDEr-D of generated validation captions."""
    try:
        from triptych.train.start import sat_run
    except ModuleNotFoundError as error:
        raise TriptychError(f"training needs {error.name}: pip install 'triptych[train]'") from None

    make_folder(run)
    record = sat_run(
        data=data,
        run=run,
        objective=objective,
        init=init,
        encoder=encoder,
        encoder_weights=encoder_weights,
        cut=cut,
        attention=attention,
        variant=variant,
        gate=gate,
        hidden_dim=hidden_dim,
        embed_dim=embed_dim,
        attention_dim=attention_dim,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        tail_rate=tail_rate,
        patience=patience,
        validation_photos=validation_photos,
        precision=precision,
        seed=seed,
    )
    if record is not None:  # None in the processes beside the main one
        emit(record, as_json, f"{run / 'best'}: {json.dumps(record)}")


def main() -> None:
    """The entry point: runs a command and turns every failure into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that the terminal's encoding does not
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except UsageError as error:
        complain(Exception(error.format_message()))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except TriptychError as error:
        complain(error)
        code = error.exit_code
    except Exception as error:
        if os.environ.get("TRIPTYCH_DEBUG"):
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        what = "the disk is full" if full else f"failed: {type(error).__name__}: {error} (TRIPTYCH_DEBUG=1 shows where)"
        complain(Exception(what))
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
