"""Questions about one photo: accuracy, beside that of blind baselines."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from triptych.data import Photo
from triptych.data.english.given import given_questions, question_prior
from triptych.data.english.kinds import Question
from triptych.data.english.questions import make_questions
from triptych.errors import InputError
from triptych.evaluate.calibration import expected_calibration_error, sureness
from triptych.evaluate.progress import batches
from triptych.io.images import ImageSource
from triptych.metrics.vqa import vqa_accuracy
from triptych.tasks import Answer, Answers, Completes
from triptych.tasks.capabilities import QuestionShot
from triptych.tasks.choices import GREY

ASKED_TOGETHER = 16

PhotoQuestion = tuple[Photo, Question]


class VqaAnswers(NamedTuple):
    """Questions, the model's answers, and its answers with a plain grey photo."""

    questions: list[PhotoQuestion]
    answers: list[Answer]
    blind: list[Answer]

    def records(self) -> list[dict[str, Any]]:
        """A record of each question, for JSON lines."""
        return [
            {"id": photo.id} | vars(question) | {"said": answer.text, "without photo": blind.text}
            for (photo, question), answer, blind in zip(*self, strict=True)
        ]


def answer_questions(
    model: Answers, photos: Sequence[Photo], per_photo: int, seed: int, settings: Mapping[str, Any] = {}
) -> VqaAnswers:
    """The model's answers to questions about ``photos``: the data set's own, else made of the captions by rule (``data.english``).

    Args:
        settings: arguments of ``Answers.ask``; with ``examples``, of ``Completes.ask_with_examples``.

    Raises:
        InputError: there are no questions.
    """
    questions = vqa_questions(photos, seed, per_photo)
    if not questions:
        raise InputError("no question can be made of the captions of these photos: use data with questions")
    answers, blind = list[Answer](), list[Answer]()
    for part in batches(questions, ASKED_TOGETHER, "questions"):
        texts = [question.question for _, question in part]
        answers += written_answers(model, [photo.image() for photo, _ in part], texts, settings)
        blind += written_answers(model, [GREY] * len(texts), texts, settings)
    return VqaAnswers(questions, answers, blind)


def written_answers(
    model: Answers, images: Sequence[ImageSource], questions: Sequence[str], settings: Mapping[str, Any]
) -> list[Answer]:
    """The answer to a question about each picture. ``settings``: see ``answer_questions``."""
    if "examples" in settings and isinstance(model, Completes):
        return model.ask_with_examples(images, questions, **settings)
    answers: list[Answer] = model.ask(images, questions, **settings)
    return answers


def vqa_metrics(answers: VqaAnswers, train: Sequence[Photo], per_photo: int, seed: int) -> dict[str, Any]:
    """Accuracy in percent (VQA's, ``metrics.vqa``) by kind of question, and the model's calibration error.

    Of the model, and of two blind baselines: the model with a plain grey photo, and the most common answer to the question in ``train``.
    """
    prior = question_prior([question for _, question in vqa_questions(train, seed, per_photo)])
    texts = [answer.text for answer in answers.answers]
    return {
        "questions": len(answers.questions),
        "model accuracy": by_kind(texts, answers.questions),
        "without photo": by_kind([answer.text for answer in answers.blind], answers.questions),
        "commonest answer": by_kind([prior(question.question) for _, question in answers.questions], answers.questions),
        "calibration error": calibration_by_kind(answers.answers, answers.questions),
    }


def question_examples(train: Sequence[Photo], count: int, per_photo: int, seed: int) -> list[QuestionShot]:
    """Questions about training photos, each with its most frequent answer, as examples for a prompt; drawn at random.

    Raises:
        InputError: there are fewer than ``count``.
    """
    questions = vqa_questions(train, seed, per_photo)
    if count > len(questions):
        raise InputError(f"{count} examples, but only {len(questions)} questions about training photos: ask for fewer")
    drawn = random.Random(seed).sample(questions, count)
    return [(photo.image(), question.question, question.answer) for photo, question in drawn]


def vqa_questions(photos: Sequence[Photo], seed: int, per_photo: int) -> list[PhotoQuestion]:
    """The questions of each photo, in order: those of the data set, or if it has none, made of the captions."""
    if given := [(photo, question) for photo in photos for question in given_questions(photo)]:
        return given
    captioned = [photo for photo in photos if photo.captions]
    made = make_questions(captioned, seed, per_photo)
    return [(photo, question) for photo, questions in zip(captioned, made, strict=True) for question in questions]


def by_kind(answers: Sequence[str], questions: Sequence[PhotoQuestion]) -> dict[str, float]:
    """Accuracy in percent, for all questions and each kind."""
    marks: dict[str, list[float]] = defaultdict(list)
    for answer, (_, question) in zip(answers, questions, strict=True):
        for kind in ("all", question.kind):
            marks[kind].append(vqa_accuracy(answer, question.answers or (question.answer,)))
    return {kind: round(100 * sum(each) / len(each), 1) for kind, each in marks.items()}


def calibration_by_kind(answers: Sequence[Answer], questions: Sequence[PhotoQuestion]) -> dict[str, float]:
    """The expected calibration error in percent, for all questions and each kind."""
    sure, marks = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for answer, (_, question) in zip(answers, questions, strict=True):
        for kind in ("all", question.kind):
            sure[kind].append(sureness(answer))
            marks[kind].append(vqa_accuracy(answer.text, question.answers or (question.answer,)))
    return {kind: expected_calibration_error(sure[kind], marks[kind]) for kind in sure}
