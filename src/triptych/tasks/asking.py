"""How models are asked: questions about one picture or several, with or without choices; and settings of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

from triptych.errors import InputError
from triptych.generate import Search
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer
from triptych.tasks.choices import check_choices

Photos = ImageSource | Sequence[ImageSource]


@dataclass(frozen=True)
class PictureQuestion:
    """A question about pictures; ``choices``: the possible answers, None = any."""

    images: list[ImageSource]
    text: str
    choices: list[str] | None = None


class Answerer:
    """``ask`` and ``compare``, for systems that implement ``answer_questions``."""

    @overload
    def ask(
        self,
        images: Photos,
        question: str,
        choices: Sequence[str] | None = ...,
        *,
        explain: bool = ...,
        **settings: Any,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        images: Sequence[Photos],
        question: Sequence[str],
        choices: Sequence[str] | None = ...,
        *,
        explain: bool = ...,
        **settings: Any,
    ) -> list[Answer]: ...
    def ask(
        self,
        images: Any,
        question: str | Sequence[str],
        choices: Sequence[str] | None = None,
        *,
        explain: bool = False,
        **settings: Any,
    ) -> Answer | list[Answer]:
        """Answer a question about one picture or several; with ``choices``, which of them is the likeliest answer.

        Args:
            images: one picture, or a list of the pictures that the question is about. Two are called left and right in the prompt.
                ``<image>`` in the question says where they stand instead.
            question: with a list of questions, ``images`` is a list of the same length, and so is the answer (each as if it were alone).
            choices: scored by the log-probability of each as the whole answer (``Answer.scores``); nothing else is answered.

        Raises:
            InputError: no picture, an empty question, fewer than two choices or one given twice, placeholders that do not match the
                pictures, a question that is too long, an unreadable picture.
        """
        if isinstance(question, str):
            return self.ask([images], [question], choices, explain=explain, **settings)[0]
        if len(images) != len(question):
            raise InputError(
                f"{len(question)} questions for {len(images)} photos or lists of photos: each needs its own"
            )
        checked = None if choices is None else check_choices(choices)
        questions = [PictureQuestion(as_list(of), text, checked) for of, text in zip(images, question, strict=True)]
        return self.answer_questions(questions, explain, settings)

    def compare(
        self,
        left: ImageSource,
        right: ImageSource,
        question: str,
        choices: Sequence[str] = ("left", "right"),
        *,
        explain: bool = False,
    ) -> Answer:
        """Which of two photos: ``ask`` with both, and choices that name them."""
        return self.ask([left, right], question, choices, explain=explain)

    def answer_questions(
        self, questions: Sequence[PictureQuestion], explain: bool, settings: Mapping[str, Any]
    ) -> list[Answer]:
        """The answer to each, as if it were alone. All have the same choices, or none."""
        raise NotImplementedError


def as_list(images: Photos) -> list[ImageSource]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def with_settings(search: Search, settings: Mapping[str, Any]) -> Search:
    """``search`` with ``settings`` changed. Raises InputError for an unknown or impossible one."""
    if unknown := set(settings) - {field.name for field in fields(Search)}:
        raise InputError(f"unknown setting {', '.join(sorted(unknown))}")
    if settings.get("temperature"):
        settings = {"beams": 1} | dict(settings)  # sampling does not search
    return replace(search, **settings)
