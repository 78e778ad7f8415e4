"""Questions about photos, and how well photos and texts match."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.application import app
from triptych.cli.common import (
    AnsweringModel,
    Beams,
    DeviceOption,
    Json,
    MatchingModel,
    PrecisionOption,
    check_html,
    complain,
    emit,
    escape_controls,
    has_folder,
    reading,
    without_none,
    write_page,
)
from triptych.cli.folders import FolderOptions, as_descriptions, describe_folder, with_folder_options
from triptych.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image

    from triptych.folders.pipeline import Describe, Description
    from triptych.tasks import Answer, Answers

QuestionOption = Annotated[
    str, typer.Option("--question", "-q", help="The question; <image> in it marks the place of a photo.")
]
Figure = Annotated[
    Path | None, typer.Option("--explain", metavar="FILE.html", help="Also show where the model looked.")
]


@app.command()
@with_folder_options("prefix", "suffix")
def ask(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="The photos of the question, in order.")],
    question: QuestionOption,
    choices: Annotated[list[str] | None, typer.Option(help="A possible answer; repeat for each.")] = None,
    model: AnsweringModel = "blip2",
    beams: Beams = None,
    explain: Figure = None,
    *,
    options: FolderOptions,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Answer a question about one photo or several. With choices, say which is the most likely.

    With a folder, or with --out or --sidecar, the question is asked about each photo.
    """
    from triptych.tasks import load_answerer

    check_html("--explain", explain)
    options, settings = replace(options, as_json=as_json, device=device), without_none(beams=beams)
    if not options.given and not has_folder(images):
        answerer = load_answerer(model, precision, device)
        answer = partial(answerer.ask, question=question, choices=choices, **settings)
        print_answer(answerer, images, question, answer, explain, as_json)
        return
    if explain is not None:
        raise InputError("--explain draws one question: leave out folders, --out, --recursive and --sidecar")
    recorded = {"model": model, "question": question} | ({"choices": choices} if choices else {}) | settings
    opener = partial(open_answers, model, precision, device, question, choices, settings)
    describe_folder(images, opener, recorded, options)


def open_answers(
    model: str,
    precision: str | None,
    device: str | None,
    question: str,
    choices: list[str] | None,
    settings: dict[str, Any],
) -> Describe:
    """Load the model; the result answers one question about each photo, for ``describe_folder``."""
    from triptych.tasks import load_answerer

    answerer = load_answerer(model, precision, device)
    report_unknown(answerer, question)

    def describe(photos: Sequence[Image]) -> Sequence[Description]:
        answers = answerer.ask([[photo] for photo in photos], [question] * len(photos), choices, **settings)
        return as_descriptions(answers, "answer")

    return describe


@app.command()
def compare(
    left: Annotated[str, typer.Argument(metavar="IMAGE", help="The first photo, the left one.")],
    right: Annotated[str, typer.Argument(metavar="IMAGE", help="The second photo, the right one.")],
    question: QuestionOption,
    choices: Annotated[list[str] | None, typer.Option(help="The possible answers.", show_default="left, right")] = None,
    model: AnsweringModel = "blip2",
    explain: Figure = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Say which of two photos is the answer to a question. Such as: which photo shows a dog?"""
    from triptych.tasks import load_answerer
    from triptych.tasks.asking import TWO_PHOTOS

    check_html("--explain", explain)
    answerer = load_answerer(model, precision, device)

    def answer(photos: Sequence[Image], *, explain: bool) -> Answer:
        return answerer.compare(photos[0], photos[1], question, choices or TWO_PHOTOS, explain=explain)

    print_answer(answerer, [left, right], question, answer, explain, as_json)


def print_answer(
    answerer: Answers,
    images: list[str],
    question: str,
    answer_about: Callable[..., Answer],
    explain: Path | None,
    as_json: bool,
) -> None:
    """Print the answer to one question about ``images``, and write a page of where the model looked if ``explain`` names one.

    ``answer_about(photos, explain=...)``: the answer.
    """
    from triptych.figures.page import PageEntry
    from triptych.io.images import load_image

    photos = [load_image(image) for image in images]
    report_unknown(answerer, question)
    answer = answer_about(photos, explain=explain is not None)
    emit({"images": images, "question": question, **answer.to_record("answer")}, as_json, answer.text)
    if explain is not None:
        write_page(explain, [PageEntry(tuple(photos), (reading(answer),), question=question)], "Where the model looked")


def report_unknown(answerer: Answers, question: str) -> None:
    """Say on stderr if a model that was trained here knows no word of the question."""
    from triptych.tasks import Blip2Tasks

    if isinstance(answerer, Blip2Tasks) and not answerer.spec.prompts.published and answerer.unknown_texts([question]):
        complain(InputError(f"the model knows no word of {question!r}: its answer is a guess; use other words"))


@app.command()
def match(
    images: Annotated[list[str], typer.Option("--image", "-i", help="A photo; repeat for each.")],
    texts: Annotated[list[str], typer.Option("--text", "-t", help="A text; repeat for each.")],
    model: MatchingModel = "blip2",
    explain: Figure = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Score how well each photo fits each text.

    cosine: by contrast, -1 to 1. match: the probability that they belong together. rerank: what a search sorts by.
    """
    from triptych.figures.page import PageEntry, Reading
    from triptych.io.images import load_image
    from triptych.tasks import load_matcher

    check_html("--explain", explain)
    matcher = load_matcher(model, precision, device)
    photos = [load_image(image) for image in images]
    matches = matcher.match(photos, texts, explain=explain is not None)
    for text in matcher.unknown_texts(texts):
        complain(InputError(f"the model knows no word of {text!r}: its scores are random; use other words"))
    for pair in matches:
        image, text = images[pair.image], texts[pair.text]
        scores = f"cosine {pair.itc_cosine:.3f}  match {pair.itm_prob:.3f}  rerank {pair.rerank:.3f}"
        line = f"{escape_controls(image)}\t{escape_controls(text)}\t{scores}"
        emit({"image": image, "text": text, "model": model, **pair.to_dict()}, as_json, line)
    if explain is not None:
        entries = [
            PageEntry((photos[m.image],), (Reading(model, texts[m.text], m.evidence),), name=Path(images[m.image]).name)
            for m in matches
            if m.evidence is not None
        ]
        write_page(explain, entries, "What each word was matched with")
