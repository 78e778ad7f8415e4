"""``triptych complete`` and ``chat``: Flamingo's examples in the prompt, and its dialogue."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.application import app
from triptych.cli.common import (
    Beams,
    CompletingModel,
    DeviceOption,
    Json,
    PrecisionOption,
    check_html,
    complain,
    emit,
    reading,
    without_none,
    write_page,
)
from triptych.errors import InputError
from triptych.io.folders import is_picture_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from triptych.tasks import Chat, Shot
    from triptych.tasks.capabilities import Model


MaxNewTokens = Annotated[int | None, typer.Option(help="Longest text, in tokens.", show_default="the model's")]

NEAREST = 4  # examples
ENDS = ("/quit", "/exit")
COMMANDS = ("/image", "/drop", "/undo", "/save", "/load", "/help", *ENDS)
CHAT_HELP = """/image PATH   add a picture to the next question (or type its path alone)
/drop         remove the pictures added since the last question
/undo         take back the last question and answer
/save FILE    save the dialogue as JSON
/load FILE    continue a saved dialogue
/quit         end (so does the end of input)"""


@app.command()
def complete(
    image: Annotated[str, typer.Option("--image", "-i", help="The picture to do it with.")],
    shots: Annotated[
        list[str] | None,
        typer.Option("--shot", "-s", metavar="IMAGE=TEXT", help="An example; repeat for each. =TEXT has no picture."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="How the text begins, such as: This is")] = "",
    choices: Annotated[
        list[str] | None, typer.Option(help="A possible text; repeat for each. The most likely is chosen.")
    ] = None,
    similar: Annotated[
        int | None, typer.Option(min=1, help="Use only the N examples that look most like the picture (RICES).")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Examples: photos with a text file beside each, or a data set with captions."),
    ] = None,
    nearest: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many of --examples: those that look most like the picture (RICES).", show_default="4"
        ),
    ] = None,
    model: CompletingModel = "flamingo",
    beams: Beams = None,
    max_new_tokens: MaxNewTokens = None,
    explain: Annotated[
        Path | None, typer.Option("--explain", metavar="FILE.html", help="Also show where the model looked.")
    ] = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Do with a picture what the examples show. It may be named, captioned, or asked about."""
    from triptych.figures.page import PageEntry
    from triptych.io.images import load_image
    from triptych.tasks import load_completer

    check_html("--explain", explain)
    if examples is None and not (shots or prompt or choices):
        raise InputError("nothing says what to do with the picture: give --shot, --examples or --prompt")
    check_example_options(shots or (), similar, examples, nearest)
    given = [read_shot(shot) for shot in shots or ()]
    photo = load_image(image)
    in_memory: list[Shot] = [(None if source is None else load_image(source), text) for source, text in given]
    completer = load_completer(model, precision, device)
    if examples is not None:
        in_memory = nearest_examples(completer, examples, photo, nearest or NEAREST)
    elif similar is not None:
        in_memory = completer.most_similar(photo, in_memory, similar)
    settings = without_none(beams=beams, max_new_tokens=max_new_tokens)
    answer = completer.complete(photo, in_memory, prompt, choices, explain=explain is not None, **settings)
    emit({"image": image, **answer.to_record()}, as_json, answer.text)
    if explain is not None:
        pictures_in_order = (*(load_image(picture) for picture, _ in in_memory if picture is not None), photo)
        write_page(
            explain, [PageEntry(pictures_in_order, (reading(answer),), question=prompt)], "Where the model looked"
        )


def check_example_options(
    shots: Sequence[str], similar: int | None, examples: Path | None, nearest: int | None
) -> None:
    """Raises InputError: the options for examples exclude each other, or pick from examples that are not given."""
    if examples is not None and (shots or similar is not None):
        raise InputError("give examples with --shot or with --examples, not with both")
    if similar is not None and not shots:
        raise InputError("--similar picks from the examples of --shot: give some")
    if examples is None and nearest is not None:
        raise InputError("--nearest picks from --examples: name a folder, or use --similar with --shot")


def nearest_examples(model: Model, examples: Path, photo: Image, count: int) -> list[Shot]:
    """The examples most similar to ``photo``, other than the photo itself."""
    from rich.console import Console
    from rich.progress import Progress

    from triptych.data.examples import read_examples
    from triptych.io.images import content_hash, load_image
    from triptych.tasks.examples import ExampleIndex

    pairs = read_examples(examples)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("examples", total=len(pairs))
        index = ExampleIndex(model, pairs, lambda pictures: bar.advance(task, pictures))
    nearest = index.nearest(photo, min(count + 1, len(pairs)))
    own = content_hash(photo)
    others = [
        (picture, text) for picture, text in nearest if picture is None or content_hash(load_image(picture)) != own
    ]
    return others[-count:]


def read_shot(shot: str) -> tuple[str | None, str]:
    """``a.jpg=a chinchilla`` -> the picture and its text; a path may contain an equals sign.

    Raises InputError: there is no equals sign, or no text.
    """
    places = [i for i, letter in enumerate(shot) if letter == "="]
    if not places:
        raise InputError(f"--shot {shot!r}: write IMAGE=TEXT, such as --shot a.jpg='a chinchilla'")
    url = shot.startswith(("http://", "https://", "data:", "file:"))
    files = [i for i in places if os.path.isfile(shot[:i])]  # noqa: PTH113  (Path.is_file raises for long names)
    cut = places[-1] if url else files[0] if files else places[0]
    text = shot[cut + 1 :].strip()
    if not text:
        raise InputError(f"--shot {shot!r} has no text: say what its picture shows")
    return shot[:cut] or None, text


@app.command()
def chat(
    images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE", help="Pictures to begin with.")] = None,
    model: CompletingModel = "flamingo",
    max_new_tokens: MaxNewTokens = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Talk about pictures; /help lists what else can be typed."""
    from triptych.tasks import load_completer

    dialogue = load_completer(model, precision, device).chat()
    settings = without_none(max_new_tokens=max_new_tokens)
    for image in images or ():
        dialogue.add(image)
    terminal = sys.stdin.isatty()
    failed: InputError | None = None
    if terminal:
        print("Ask about your pictures. /image PATH adds one, /help lists the rest.", file=sys.stderr)
    for line in lines(terminal):
        try:
            if paths := typed_paths(line) if is_path(line) else []:
                add_pictures(dialogue, paths)
            elif names_picture(line):
                raise InputError(f"{line}: no such picture")
            elif line.partition(" ")[0] in ENDS:
                break
            elif line.startswith("/"):
                command(dialogue, line)
            elif line:
                answer(dialogue, line, settings, as_json)
        except InputError as error:  # a mistake does not end the dialogue
            complain(error)
            failed = error
    if failed is not None and not terminal:
        raise typer.Exit(failed.exit_code)


def lines(terminal: bool) -> Iterator[str]:
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that bytes of another encoding fail only their line
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()


def add_pictures(dialogue: Chat, paths: Sequence[str]) -> None:
    for path in paths:
        dialogue.add(path)
    waiting = len(dialogue.waiting)
    print(f"{waiting} pictures wait for a question" if waiting > 1 else "added", file=sys.stderr)


def is_path(line: str) -> bool:
    """Whether a line may name pictures, because it is neither a command nor a question."""
    return bool(line) and (line.split()[0] not in COMMANDS) and not line.endswith("?")


def names_picture(line: str) -> bool:
    """Whether a line is one word, or a text in quotes, that ends as the names of pictures do."""
    name = as_path(line)
    return is_picture_name(os.path.basename(name)) and (line[0] in "'\"" or not re.search(r"(?<!\\)\s", line))  # noqa: PTH119


def typed_paths(text: str) -> list[str]:
    """The files in a text that was typed or dragged into the terminal: one or several, in quotes, with backslashes, or starting with ``~``;
    or one address (``https:``, ``file:``, ``data:``). Empty if one of them is not a file."""
    if as_path(text).lower().startswith(("http://", "https://", "file:", "data:")) and " " not in text:
        return [as_path(text)]
    for whole in (text, as_path(text)):
        if os.path.isfile(whole):  # noqa: PTH113  (Path.is_file raises for long names)
            return [whole]
    try:
        parts = [os.path.expanduser(part) for part in shlex.split(text)]  # noqa: PTH111
    except ValueError:  # a quote that is not closed
        return []
    return parts if all(map(os.path.isfile, parts)) else []


def as_path(text: str) -> str:
    """A path as a shell would read it: without quotes and backslashes, with ``~`` as the home folder."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    plain = text[1:-1] if quoted else text if os.name == "nt" else re.sub(r"\\(.)", r"\1", text)
    return os.path.expanduser(plain)  # noqa: PTH111


def command(dialogue: Chat, line: str) -> None:
    """Run a command that begins with /. Raises InputError: unknown command."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/image", "/save", "/load") and not rest:
        raise InputError(f"{name} needs a file: {name} PATH")
    match name:
        case "/image":
            add_pictures(dialogue, typed_paths(rest) or [as_path(rest)])
            return
        case "/drop":
            dialogue.drop()
            reply = "the waiting pictures are removed"
        case "/undo":
            reply = f"taken back: {dialogue.undo().question}"
        case "/save":
            dialogue.save(Path(as_path(rest)))
            reply = f"saved: {as_path(rest)}"
        case "/load":
            dialogue.load(Path(as_path(rest)))
            reply = f"{len(dialogue.turns)} turns"
        case "/help":
            reply = CHAT_HELP
        case _ if "/" in name[1:]:
            raise InputError(f"{line}: no such picture")
        case _:
            raise InputError(f"{name} is not a command: /help lists them")
    print(reply, file=sys.stderr)


def answer(dialogue: Chat, question: str, settings: dict[str, Any], as_json: bool) -> None:
    """Ask a question, and print the answer as it is written."""
    first, pieces = dialogue.first, []
    try:
        for piece in dialogue.stream(question, **settings):
            pieces.append(piece)
            if not as_json:
                print(piece if pieces[1:] else piece.lstrip(), end="", flush=True)
    finally:
        if pieces and not as_json:
            print(flush=True)
    if as_json:
        print(json.dumps({"question": question, "answer": "".join(pieces).strip()}, ensure_ascii=False), flush=True)
    if dialogue.first > first:
        forgotten = dialogue.first - first
        print(f"(the dialogue has become too long: the oldest {forgotten} turns are forgotten)", file=sys.stderr)
