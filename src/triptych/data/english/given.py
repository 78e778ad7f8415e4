"""The questions that a data set brings along, and how far one gets with questions alone."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triptych.data.english.kinds import Question, kind_of_answer
from triptych.data.photos import Photo
from triptych.data.records import list_of, record_of, text_of


def given_questions(photo: Photo) -> list[Question]:
    """The questions that a photo comes with (``extra["vqa"]``), each with its most frequent answer."""
    questions = []
    for item in list_of(photo.extra.get("vqa", []), f"{photo.name}: vqa"):
        record = record_of(item, f"{photo.name}: vqa")
        question = text_of(record.get("question"), f"{photo.name}: vqa.question")
        people = given_answers(record)
        most_frequent = next((answer for answer, _ in Counter(people).most_common(1)), None)
        answer = text_of(record.get("answer") or most_frequent, f"{photo.name}: vqa.answer").lower()
        questions.append(Question(question, answer, kind_of_answer(answer), tuple(people)))
    return questions


def given_answers(record: Mapping[str, Any]) -> list[str]:
    """What each person answered: ``answers``, texts or VQA's ``[{"answer": ...}]``; none where the data set does not say it."""
    answers = record.get("answers")
    items = answers if isinstance(answers, list) else []
    return [str(item.get("answer") if isinstance(item, dict) else item) for item in items]


def question_prior(train: Sequence[Question]) -> Callable[[str], str]:
    """How far one gets without looking: a function that answers a question as ``train`` most often answers it.

    Where ``train`` has never asked just this, it goes by the first three words, then by the first one, and else says "yes".
    """
    counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for question in train:
        for key in _keys(question.question):
            counts[key][question.answer] += 1
    usual = {key: answers.most_common(1)[0][0] for key, answers in counts.items()}
    return lambda question: next((usual[key] for key in _keys(question) if key in usual), "yes")


def _keys(question: str) -> list[tuple[int, str]]:
    """A question's whole, its first three words, its first word."""
    words = question.lower().removesuffix("?").split()
    return [(0, " ".join(words)), (3, " ".join(words[:3])), (1, " ".join(words[:1]))]
