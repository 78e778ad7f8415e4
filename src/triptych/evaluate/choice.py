"""Two photos, one question: which of them shows it? By matching, and through the language model; whichever photo comes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from triptych.data import open_dataset
from triptych.data.english.pairs import PairQuestion, make_pairs
from triptych.errors import InputError
from triptych.tasks import Answers, Matches, load
from triptych.text.prompt import statement

SIDES = ("left", "right")


def choice_metrics(model: str, data: Path, split: str, limit: int | None, pairs: int, seed: int) -> dict[str, Any]:
    """Accuracy in percent over pairs drawn at random from ``split``, each asked twice, with the photos in both orders.

    ``position``: how often the first photo was chosen; it is the right one half of the time. Without photos, 50% is what can be had.
    """
    photos = [photo for photo in open_dataset(data, split) if photo.captions][:limit]
    if len(photos) < 2:
        raise InputError(f"{data}: pairs need at least two photos with captions in the split {split!r}")
    chooser = load(model)
    questions = make_pairs(photos, pairs, seed)
    both = [q for question in questions for q in (question, swapped(question))]
    matched, told = [], []
    console = Console(stderr=True)
    for question in track(both, "pairs", console=console, disable=not console.is_terminal):
        shown = [photos[question.left].image(), photos[question.right].image()]
        if isinstance(chooser, Matches) and chooser.matches:
            scores = [match.rerank for match in chooser.match(shown, statement(question.question))]
            matched.append(SIDES[scores[1] > scores[0]])
        if isinstance(chooser, Answers) and chooser.answers:
            told.append(chooser.compare(shown[0], shown[1], question.question).text)
    record = {"model": model, "data": data.name, "split": split, "pairs": len(questions), "seed": seed}
    for name, answers in (("matching", matched), ("language model", told)):
        if answers:
            record[name] = accuracy(answers, both)
    return record | {"recipe": chooser.info()["card"]}


def swapped(question: PairQuestion) -> PairQuestion:
    """The same with the photos in the other order."""
    answer = SIDES[question.answer == "left"]
    return PairQuestion(question.question, question.right, question.left, answer)  # type: ignore[arg-type]


def accuracy(answers: Sequence[str], questions: Sequence[PairQuestion]) -> dict[str, float]:
    right = [answer == question.answer for answer, question in zip(answers, questions, strict=True)]

    def share(chosen: Sequence[bool]) -> float:
        return round(100 * sum(chosen) / max(1, len(chosen)), 1)

    return {
        "accuracy": share(right),
        **{
            f"when {side}": share([r for r, q in zip(right, questions, strict=True) if q.answer == side])
            for side in SIDES
        },
        "in both orders": share([a and b for a, b in zip(right[::2], right[1::2], strict=True)]),
        "position: left chosen": share([answer == "left" for answer in answers]),
    }
