"""``triptych eval``: measure a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.application import Application, app
from triptych.cli.common import (
    AnsweringModel,
    Beams,
    CompletingModel,
    Data,
    Json,
    Limit,
    MatchingModel,
    ModelOption,
    Split,
    complain,
    emit,
    exit_if_left_out,
    without_none,
)
from triptych.cli.tables import record_text
from triptych.errors import InputError
from triptych.extras import importing
from triptych.io.files import check_writable

if TYPE_CHECKING:
    from triptych.data import Photo

evaluation = Application(help="Measure a model on a data set.")
app.add_typer(evaluation, name="eval")

DrawSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random draw.")]
StrictEvaluation = Annotated[
    bool, typer.Option("--strict", help="Stop at the first damaged photo instead of leaving it out.")
]
Floor = Annotated[
    bool,
    typer.Option(
        "--floor",
        help="Also the figures of a baseline: a closed form over pooled features, fitted to the training split.",
    ),
]
Lines = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Also write every text, as JSON lines.")]


@evaluation.command("caption")
def eval_caption(
    data: Data,
    split: Split = "test",
    model: ModelOption = "sat",
    beams: Beams = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Length penalty of the search.", show_default="the model's")
    ] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Shortest caption.", show_default="the model's")] = None,
    writer: Annotated[
        str | None, typer.Option(help="BLIP-2: lm or qformer (grounded generation).", show_default="the model's")
    ] = None,
    rerank: Annotated[
        bool, typer.Option(help="Let consensus guide the search and choose among the beams, if the model has it.")
    ] = True,
    shots: Annotated[int, typer.Option(min=0, max=64, help="Flamingo: captioned training photos in the prompt.")] = 0,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="With --shots: those most like each photo (RICES), not the same for all.")
    ] = False,
    limit: Limit = None,
    output: Lines = None,
    floor: Floor = False,
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """Captions: BLEU, METEOR (needs Java), ROUGE-L, CIDEr-D."""
    from time import perf_counter

    from triptych.evaluate.captioning import caption_metrics
    from triptych.tasks import Blip2Tasks, load
    from triptych.tasks.reranking import Reranking

    if output is not None:
        check_writable(output)
    photos = read_photos(data, split, limit, strict, lambda photo: bool(photo.captions))
    train = training_photos(data, split, strict) if floor else ReadablePhotos()
    sentence_vectors = import_sentence_vectors() if floor else None
    captioner = load(model)
    settings = without_none(beams=beams, length_penalty=length_penalty, min_new_tokens=min_new_tokens, writer=writer)
    settings |= {} if rerank else {"rerank": False}
    if writer is not None and not isinstance(captioner, Blip2Tasks):
        raise InputError(f"{model} has one way to write captions: --writer is for blip2")
    check_shots(captioner, model, split, shots, nearest)
    started = perf_counter()
    texts = write_captions(captioner, photos, data, shots, nearest, settings)
    seconds = perf_counter() - started
    choice = None
    by_qformer = isinstance(captioner, Blip2Tasks) and captioner.choose_writer(writer, None) == "qformer"
    if rerank and not shots and not by_qformer and isinstance(captioner, Reranking):
        choice = captioner.caption_choice(settings)
    of_choice = {} if choice is None else {"beams": choice.beams, "length_penalty": choice.length_penalty}
    references = {photo.id: photo.captions for photo in photos}
    write_lines(output, ({"id": i, "caption": text, "references": references[i]} for i, text in texts.items()))
    record = {
        **caption_metrics(texts, photos),
        "seconds": round(seconds, 1),
        "shots": shots,
        "nearest": nearest,
        "consensus": choice is not None,
        "search": captioner.info()["search"] | of_choice | settings,
    }
    if sentence_vectors is not None:
        from triptych.evaluate.floor import caption_floor

        record["floor"] = caption_metrics(caption_floor(captioner, sentence_vectors, train, photos), photos)
        photos.left_out += train.left_out
    show_evaluation(captioner, data, split, photos, record, as_json)


def check_shots(captioner: Any, model: str, split: str, shots: int, nearest: bool) -> None:
    """Raises InputError: --shots or --nearest do not fit the model or the split."""
    from triptych.tasks import Completes

    if nearest and not shots:
        raise InputError("--nearest picks the examples of --shots: say how many")
    if shots and not isinstance(captioner, Completes):
        raise InputError(f"{model} takes no examples in its prompt: --shots is for flamingo")
    if shots and split == "train":
        raise InputError("--shots takes its examples from the training split: measure on another one")


def write_captions(
    captioner: Any, photos: list[Photo], data: Path, shots: int, nearest: bool, settings: dict[str, Any]
) -> dict[str, str]:
    """The model's caption of each photo, by the photo's id, after ``shots`` training photos in the prompt."""
    from triptych.data import open_dataset
    from triptych.evaluate.captioning import caption_examples, captions_by_id, captions_by_nearest, example_index

    if nearest:
        index = example_index(captioner, open_dataset(data, "train"))
        return captions_by_nearest(captioner, photos, index, shots, settings)
    examples = {"shots": caption_examples(open_dataset(data, "train"), shots)} if shots else {}
    return captions_by_id(captioner, photos, settings | examples)


@evaluation.command("hallucination")
def eval_hallucination(
    data: Data,
    split: Split = "test",
    model: ModelOption = "sat",
    limit: Limit = None,
    output: Lines = None,
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """Things that captions name but photos do not show (CHAIR). Judged by people's captions and boxes."""
    from triptych.evaluate.captioning import captions_by_id
    from triptych.evaluate.hallucination import hallucination_metrics
    from triptych.tasks import load

    if output is not None:
        check_writable(output)
    photos = read_photos(data, split, limit, strict, lambda photo: bool(photo.captions or photo.extra.get("objects")))
    captioner = load(model)
    texts = captions_by_id(captioner, photos, {})
    write_lines(output, ({"id": i, "caption": text} for i, text in texts.items()))
    show_evaluation(captioner, data, split, photos, hallucination_metrics(texts, photos), as_json)


@evaluation.command("retrieval")
def eval_retrieval(
    data: Data,
    split: Split = "test",
    model: MatchingModel = "blip2",
    candidates: Annotated[
        int, typer.Option(min=1, help="How many of the most similar are ranked again by matching.")
    ] = 6,
    limit: Limit = None,
    floor: Floor = False,
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """Recall of photos for texts and texts for photos. By contrast, and after re-ranking by matching."""
    from triptych.evaluate.retrieval import retrieval_metrics
    from triptych.tasks import load_matcher

    photos = read_photos(data, split, limit, strict, lambda photo: bool(photo.captions))
    train = training_photos(data, split, strict) if floor else ReadablePhotos()
    sentence_vectors = import_sentence_vectors() if floor else None
    matcher = load_matcher(model)
    record = retrieval_metrics(matcher, photos, candidates)
    if sentence_vectors is not None:
        from triptych.evaluate.floor import retrieval_floor

        record["floor"] = retrieval_floor(matcher, sentence_vectors, train, photos)
        photos.left_out += train.left_out
    show_evaluation(matcher, data, split, photos, record, as_json)


@evaluation.command("choice")
def eval_choice(
    data: Data,
    split: Split = "test",
    model: AnsweringModel = "blip2",
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs; each is asked in both orders.")] = 250,
    seed: DrawSeed = 0,
    limit: Limit = None,
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """Questions with choices. "Which photo shows ...?", by matching and by the language model; one photo, choices in mixed wording."""
    from triptych.evaluate.choice import choice_metrics
    from triptych.tasks import Answers, Matches, load

    photos = read_photos(data, split, limit, strict, lambda photo: bool(photo.captions or photo.extra.get("objects")))
    chooser = load(model)
    if not isinstance(chooser, Answers | Matches):
        raise InputError(f"{model} writes captions only: for choices take flamingo or blip2")
    show_evaluation(chooser, data, split, photos, choice_metrics(chooser, photos, pairs, seed), as_json)


@evaluation.command("vqa")
def eval_vqa(
    data: Data,
    split: Split = "test",
    model: AnsweringModel = "blip2",
    beams: Beams = None,
    shots: Annotated[
        int, typer.Option(min=0, max=64, help="Flamingo: questions about training photos, with answers, in the prompt.")
    ] = 0,
    per_photo: Annotated[int, typer.Option(min=1, help="Questions made of a photo's captions.")] = 4,
    seed: DrawSeed = 0,
    limit: Limit = None,
    output: Lines = None,
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """Questions about one photo. Accuracy, beside blind baselines."""
    from triptych.data import open_dataset
    from triptych.evaluate.vqa import answer_questions, question_examples, vqa_metrics
    from triptych.tasks import load_answerer

    if output is not None:
        check_writable(output)
    photos = read_photos(data, split, limit, strict, lambda photo: bool(photo.captions or photo.extra.get("vqa")))
    train = [photo for photo in open_dataset(data) if photo.split == "train"]
    answerer = load_answerer(model)
    check_shots(answerer, model, split, shots, nearest=False)
    examples = {"examples": question_examples(train, shots, per_photo, seed)} if shots else {}
    answers = answer_questions(answerer, photos, per_photo, seed, without_none(beams=beams) | examples)
    write_lines(output, answers.records())
    metrics = ({"shots": shots} if shots else {}) | vqa_metrics(answers, train, per_photo, seed)
    show_evaluation(answerer, data, split, photos, metrics, as_json)


@evaluation.command("fewshot")
def eval_fewshot(
    data: Data,
    split: Split = "test",
    model: CompletingModel = "flamingo",
    shots: Annotated[
        list[int] | None,
        typer.Option(min=1, max=16, help="Examples of each name; repeat for several.", show_default="1, 3, 5"),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest",
            help="Draw four times as many examples and keep those most like the picture (RICES).",
        ),
    ] = False,
    prototypes: Annotated[
        bool,
        typer.Option(help="Count how much the picture resembles each name's examples, or the language model alone."),
    ] = True,
    episodes: Annotated[int, typer.Option(min=1, help="How many prompts of each kind.")] = 200,
    seed: DrawSeed = 0,
    limit: Limit = None,
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """New names for two kinds of pictures, from a few examples. Kinds that were not in training; chance is 50%."""
    from triptych.evaluate.fewshot import fewshot_metrics
    from triptych.tasks import load_completer

    photos = read_photos(data, split, limit, strict, lambda photo: bool(photo.captions))
    completer = load_completer(model)
    record = fewshot_metrics(completer, photos, split, shots or [1, 3, 5], episodes, seed, nearest, prototypes)
    show_evaluation(completer, data, split, photos, record, as_json)


@evaluation.command("tags")
def eval_tags(
    data: Data,
    split: Split = "test",
    model: MatchingModel = "blip2",
    at_least: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="P", help="Only words that people would use with at least this probability."
        ),
    ] = 0.3,
    limit: Limit = None,
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """Keywords: precision, recall and calibration. The nouns that the model would name, beside those that captions name."""
    from triptych.evaluate.naming import naming_metrics
    from triptych.tasks import load_matcher

    photos = read_photos(data, split, limit, strict, lambda photo: bool(photo.captions))
    matcher = load_matcher(model)
    show_evaluation(matcher, data, split, photos, naming_metrics(matcher, photos, at_least), as_json)


@evaluation.command("judgments")
def eval_judgments(data: Data, as_json: Json = False) -> None:
    """How each caption metric agrees with people. Kendall's tau on Flickr8k's expert judgments."""
    from triptych.evaluate.judgments import judgment_taus

    show(judgment_taus(data), as_json)


@evaluation.command("attention")
def eval_attention(
    data: Data,
    split: Annotated[str | None, typer.Option(help="Which photos: train, val or test.", show_default="all")] = None,
    model: ModelOption = "sat",
    strict: StrictEvaluation = False,
    as_json: Json = False,
) -> None:
    """Attention within the boxes of what a word names. For data with COCO's boxes."""
    from triptych.evaluate.attention import attention_in_boxes
    from triptych.tasks import load

    photos = read_photos(data, split, None, strict, lambda photo: bool(photo.extra.get("objects")))
    captioner = load(model)
    record = {"model": model, "data": data.name, **attention_in_boxes(captioner, photos)}
    show(record, as_json)
    exit_if_left_out(photos.left_out)


class ReadablePhotos(list["Photo"]):
    """The photos of a data set that can be read; ``left_out``: how many cannot."""

    left_out = 0


def read_photos(
    data: Path, split: str | None, limit: int | None, strict: bool, wanted: Callable[[Photo], bool]
) -> ReadablePhotos:
    """The first ``limit`` photos of a split that are ``wanted``, without damaged ones, which are reported on stderr.

    Raises:
        InputError: there are none, or with ``strict`` one is damaged.
    """
    from triptych.data import open_dataset
    from triptych.data.reading import PhotoReader

    photos = [photo for photo in open_dataset(data, split) if wanted(photo)][:limit]
    if not photos:
        where = "no photo" if split is None else f"no photo of the split {split!r}"
        raise InputError(f"{data}: {where} has the captions, questions or boxes that are needed")
    reader = PhotoReader(strict, lambda line: complain(Exception(line)))
    readable = ReadablePhotos(reader.readable(photos))
    readable.left_out = len(reader.damaged)
    if summary := reader.summary():
        complain(Exception(summary))
    return readable


def training_photos(data: Path, split: str, strict: bool) -> ReadablePhotos:
    """The captioned photos of the training split, for --floor. Raises InputError: there are none, or ``split`` is that split."""
    if split == "train":
        raise InputError("--floor is fitted to the training split: measure on another one")
    return read_photos(data, "train", None, strict, lambda photo: bool(photo.captions))


def show_evaluation(
    model: Any, data: Path, split: str | None, photos: ReadablePhotos, metrics: Mapping[str, Any], as_json: bool
) -> None:
    """Print an evaluation: the model, the data and the metrics; as JSON also the model's card. Exits with 2 if photos were left out."""
    record = {"model": model.name, "data": data.name, "split": split, "photos": len(photos)} | dict(metrics)
    show(record | ({"recipe": model.info()["card"]} if as_json else {}), as_json)
    exit_if_left_out(photos.left_out)


def show(record: dict[str, Any], as_json: bool) -> None:
    """Print a record as JSON, or as text in which figures without a value are marked."""
    emit(record, as_json, record_text({name: "not computed" if x is None else x for name, x in record.items()}))


def import_sentence_vectors() -> Callable[..., Any]:
    """The sentence vectors of --floor. Call it before long work. Raises MissingExtraError: torch is not installed."""
    with importing("torch", "--floor"):
        from triptych.models.sentences import sentence_vectors

    return sentence_vectors


def write_lines(output: Path | None, records: Iterable[dict[str, Any]]) -> None:
    from triptych.io.files import json_bytes, write_file

    if output is not None:
        write_file(output, b"".join(json_bytes(record) + b"\n" for record in records))
