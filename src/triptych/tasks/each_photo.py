"""A question about several photos, answered photo by photo: for models that have learnt only which of several photos shows something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from triptych.errors import InputError
from triptych.evidence import join_evidence
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer, TextEnd
from triptych.tasks.asking import Answerer, PictureQuestion, names_of_photos
from triptych.tasks.choices import YES_NO
from triptych.text.prompt import IMAGE
from triptych.text.questions import (
    PicturesShowing,
    about_one_photo,
    asks_to_compare,
    asks_what_is_shared,
    names_one_of_several,
    pictures_showing,
    presence_question,
)
from triptych.text.questions.wording import NUMBER_WORDS


def is_about_each(question: PictureQuestion) -> bool:
    """Whether a question is answered photo by photo: it is about several, has no choices, and does not speak of one of them."""
    several = len(question.images) > 1 and question.choices is None
    return several and IMAGE not in question.text and not names_one_of_several(question.text)


def check_each_photo(question: PictureQuestion, model: str) -> None:
    """Raises InputError: the answer cannot be put together from answers about each photo."""
    if asks_what_is_shared(question.text) or asks_to_compare(question.text):
        raise InputError(f"{model} cannot say what photos have in common or how they differ: ask flamingo")


def answer_each_photo(
    model: Answerer[Any], question: PictureQuestion, explain: bool, settings: Mapping[str, Any]
) -> Answer:
    """The answers about each photo in one text: ``left: dog; right: bird``; or which photos show something, or how many do."""
    if (wanted := pictures_showing(question.text)) is not None and model.detects:
        return photos_that_show(model, wanted, question.images, explain)
    alone = about_one_photo(question.text)
    answers = model.answer_questions([PictureQuestion([image], alone) for image in question.images], explain, settings)
    return join_answers(answers, names_of_photos(len(answers)))


def photos_that_show(
    model: Answerer[Any], wanted: PicturesShowing, images: Sequence[ImageSource], explain: bool
) -> Answer:
    """The names of the photos that show something, or their number."""
    text = presence_question(wanted.thing)
    answers = [model.choose(PictureQuestion([image], text), YES_NO, explain) for image in images]
    names = names_of_photos(len(images))
    showing = [name for name, answer in zip(names, answers, strict=True) if answer.text == "yes"]
    number = NUMBER_WORDS[len(showing)] if len(showing) < len(NUMBER_WORDS) else str(len(showing))
    listed = " and ".join(filter(None, (", ".join(showing[:-1]), *showing[-1:]))) or "none"
    return replace(join_answers(answers, names), text=number if wanted.counted else listed, scores=None)


def join_answers(answers: Sequence[Answer], labels: Sequence[str]) -> Answer:
    """One answer from those about one photo each; its words, log-probabilities and maps are theirs, in order."""
    ends = [answer.end for answer in answers]
    return replace(
        answers[0],
        text="; ".join(f"{label}: {answer.text}" for label, answer in zip(labels, answers, strict=True)),
        logprob=sum(answer.logprob for answer in answers),
        tokens=tuple(token for answer in answers for token in answer.tokens),
        logprobs=tuple(logprob for answer in answers for logprob in answer.logprobs),
        evidence=join_evidence([answer.evidence for answer in answers]),
        alternatives=(),
        finished_alternatives=(),
        end=TextEnd(
            all(end.finished for end in ends),
            sum(end.prompt_tokens for end in ends),
            sum(end.new_tokens for end in ends),
            (tuple(token for end in ends for token in end.tokens[0]),) if all(end.tokens for end in ends) else (),
        ),
    )
