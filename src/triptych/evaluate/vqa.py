"""Questions about one photo: how many answers are right, beside what can be had without looking."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from triptych.data import Photo, open_dataset
from triptych.data.english.given import given_answers, given_questions, question_prior
from triptych.data.english.kinds import Question
from triptych.data.english.questions import make_questions
from triptych.errors import InputError
from triptych.io.files import write_file
from triptych.metrics.vqa import vqa_accuracy
from triptych.tasks import Answers, load_answerer

BATCH = 16  # questions asked together
BLANK = Image.new("RGB", (32, 32), (127, 127, 127))


def vqa_metrics(
    model: str, data: Path, split: str, limit: int | None, per_photo: int, seed: int, output: Path | None = None
) -> dict[str, Any]:
    """Accuracy in percent, by kind of question: of the model, of the same model before a plain grey photo, and of the
    commonest answer to the question in the training split (both blind).

    The questions are those of the data set where it has any (scored as VQA does: ``metrics/vqa.py``), else
    they are made of its captions by rule (``data/questions.py``).
    """
    photos = [p for p in open_dataset(data, split) if p.captions or p.extra.get("vqa")][:limit]
    chooser = load_answerer(model)
    asked = questions_of(photos, seed, per_photo)
    if not asked:
        raise InputError(f"{data}: no question can be made of the captions of the split {split!r}")
    train = [p for p in open_dataset(data) if p.split == "train"]
    prior = question_prior([question for _, question in questions_of(train, seed, per_photo)])
    answers, blind = [], []
    console = Console(stderr=True)
    for first in track(range(0, len(asked), BATCH), "questions", console=console, disable=not console.is_terminal):
        part = asked[first : first + BATCH]
        texts = [question.question for _, question in part]
        answers += [answer.text for answer in chooser.ask([photo.image() for photo, _ in part], texts, beams=1)]
        blind += without_photo(chooser, texts)
    if output is not None:
        lines = [
            json.dumps({"id": photo.id} | vars(question) | {"said": answer, "without photo": unseen})
            for (photo, question), answer, unseen in zip(asked, answers, blind, strict=True)
        ]
        write_file(output, ("\n".join(lines) + "\n").encode())
    return {
        "model": model,
        "data": data.name,
        "split": split,
        "photos": len(photos),
        "questions": len(asked),
        "model accuracy": by_kind(answers, asked),
        "without photo": by_kind(blind, asked),
        "commonest answer": by_kind([prior(question.question) for _, question in asked], asked),
        "recipe": chooser.info()["card"],
    }


def without_photo(chooser: Answers, questions: Sequence[str]) -> list[str]:
    """What the model answers before a plain grey photo: what it has learnt about questions, without sight."""
    return [answer.text for answer in chooser.ask([BLANK] * len(questions), questions, beams=1)]


def questions_of(photos: Sequence[Photo], seed: int, per_photo: int) -> list[tuple[Photo, Question]]:
    """The data set's own questions where it has any, else those made of its captions."""
    stated = [(photo, question) for photo in photos for question in given_questions(photo)]
    if stated:
        return stated
    captioned = [photo for photo in photos if photo.captions]
    made = make_questions(captioned, seed, per_photo)
    return [(photo, question) for photo, questions in zip(captioned, made, strict=True) for question in questions]


def by_kind(answers: Sequence[str], asked: Sequence[tuple[Photo, Question]]) -> dict[str, float]:
    """Marks in percent, of all and of each kind."""
    marks: dict[str, list[float]] = defaultdict(list)
    for answer, (photo, question) in zip(answers, asked, strict=True):
        mark = marked(answer, question, people(photo, question))
        marks["all"].append(mark)
        marks[question.kind].append(mark)
    return {kind: round(100 * sum(found) / len(found), 1) for kind, found in marks.items()}


def people(photo: Photo, question: Question) -> list[str]:
    """What people answered, where the data set says it."""
    stated: Iterable[Any] = photo.extra.get("vqa") or ()
    same = [entry for entry in stated if entry.get("question") == question.question]
    return given_answers(same[0]) if same else []


def marked(answer: str, question: Question, given: Sequence[str]) -> float:
    """1 for a right answer; where several people answered, what VQA gives."""
    return vqa_accuracy(answer, given or [question.answer])
