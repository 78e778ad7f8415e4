"""Questions about one picture or several, with or without choices: the part of ``ask`` and ``compare`` that systems share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from triptych.engines.interface import Blip2Spec, FlamingoSpec
from triptych.errors import InputError
from triptych.evidence import join_evidence
from triptych.generate import Hypothesis, Search
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer, AnswerRecipe, Method, WrittenToken
from triptych.tasks.choices import (
    GREY,
    YES_NO,
    blind_share,
    check_choices,
    forms_for_scoring,
    in_other_order,
    normalised_logprobs,
)
from triptych.tasks.photos import ArrayMemory, PhotoMemory
from triptych.text.prompt import IMAGE, photo_names
from triptych.text.questions import (
    Claim,
    Presence,
    WhichPicture,
    alternatives_in,
    asks_for_description,
    claim_asked_about,
    is_yes_no,
    named_pictures,
    names_one_of_several,
    one_picture_asked_about,
    pictures_named_by,
    pictures_showing,
    plain_question,
    presence_asked_about,
    which_picture,
)

Photos = ImageSource | Sequence[ImageSource]

LanguageSpec = TypeVar("LanguageSpec", FlamingoSpec, Blip2Spec)

TWO_PHOTOS = ("left", "right")  # the names of two photos
BLIND_SCORE_BYTES = 2**20  # of remembered log-probabilities of choices without photos


@dataclass(frozen=True)
class PictureQuestion:
    """A question about pictures; ``choices``: the possible answers, None = any."""

    images: list[ImageSource]
    text: str
    choices: list[str] | None = None

    def without_photos(self) -> PictureQuestion:
        """The same question with grey pictures."""
        return replace(self, images=[GREY] * len(self.images))

    def in_other_order(self) -> PictureQuestion:
        """The same question with its two pictures, and left and right in its text, swapped."""
        return replace(self, images=self.images[::-1], text=in_other_order(self.text))


class Answerer(Generic[LanguageSpec]):
    """``ask`` and ``compare``, over the methods that a system implements (the last ones of the class)."""

    spec: LanguageSpec
    encode: PhotoMemory

    def __init__(self) -> None:
        self.blind_scores = ArrayMemory(BLIND_SCORE_BYTES)

    @property
    def picks_pictures(self) -> bool:
        """Whether ``choose_picture`` works."""
        return True

    @property
    def detects(self) -> bool:
        """Whether ``detect`` and ``judge`` work; they are better than the language model's yes or no."""
        return True

    @property
    def scores_yes_no(self) -> bool:
        """Whether questions for yes or no are answered by scoring both; published models write their answer."""
        return not self.spec.prompts.published

    def search(self, **settings: Any) -> Search:
        """The model's own search with ``settings`` changed. Raises InputError for an unknown or impossible one."""
        return with_settings(self.spec.search, settings)

    def caption_search(self, **settings: Any) -> Search:
        """The search of captions, with ``settings`` changed: a caption names each thing once (``once=None`` lets it repeat words)."""
        return self.search(**({"once": self.repetitions} | settings))

    @cached_property
    def repetitions(self) -> Callable[[int], frozenset[int]] | None:
        """``Search.once`` of captions."""
        tokenizer = self.spec.tokenizer
        return cache(tokenizer.repetitions) if self.spec.words_once and tokenizer is not None else None

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
        """Answer a question about one picture or several; with ``choices``, the most likely of them. A request to describe the photo is
        answered by its caption.

        Args:
            images: one picture, or a list of the pictures that the question is about. The prompt calls two pictures left and right,
                unless the question has an ``<image>`` for each.
            question: a question, or a list of questions; ``images`` is then a list of the same length, and so is the result.
            choices: the possible answers. ``Answer.scores`` are calibrated by the answers without the pictures (``tasks.choices``). Which
                of the pictures shows something is decided by matching, or by the likelihood of captions.
            explain: also return where the model looked (``Answer.evidence``).
            settings: fields of ``generate.Search``.

        Raises:
            InputError: no picture, an empty question, fewer than two choices or one given twice, a number of ``<image>`` other than that
                of the pictures, a question that is too long, an unreadable picture.
        """
        if isinstance(question, str):
            return self.ask([images], [question], choices, explain=explain, **settings)[0]
        if isinstance(images, str) or len(images) != len(question):
            count = 1 if isinstance(images, str) else len(images)
            raise InputError(f"{len(question)} questions for {count} photos or lists of photos: each needs its own")
        checked = None if choices is None else check_choices(choices)
        questions = [
            PictureQuestion(as_list(of), self.as_read(text), checked) for of, text in zip(images, question, strict=True)
        ]
        for one in questions:
            self.check_question(one)
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
        """Answer a question with one of two photos, by their names in ``choices``: ``left`` and ``right``, or any two others, of which the
        first is for the first photo. Raises as ``ask``."""
        names = check_choices(choices)
        if len(names) != len(TWO_PHOTOS) or any(named_pictures(names, 2)) or which_picture(question) is None:
            return self.ask([left, right], question, choices, explain=explain)
        answer = self.ask([left, right], question, TWO_PHOTOS, explain=explain)
        assert answer.scores is not None
        return as_choice(answer, names, np.array([answer.scores[side] for side in TWO_PHOTOS]), answer.method)

    def as_read(self, question: str) -> str:
        """A question as the model reads it: published models follow instructions, those trained here know plain questions."""
        return question if self.spec.prompts.published else plain_question(question)

    def answer_questions(
        self, questions: Sequence[PictureQuestion], explain: bool, settings: Mapping[str, Any]
    ) -> list[Answer]:
        """The answer to each question; a batch gives the same answers as single questions."""
        answers: dict[int, Answer] = {}
        free: dict[int, PictureQuestion] = {}
        described: dict[int, ImageSource] = {}
        for i, question in enumerate(questions):
            if (one := self.about_one_picture(question)) is not None:
                place, alone = one
                (answer,) = self.answer_questions([alone], explain, settings)
                evidence = [answer.evidence if n == place else None for n in range(len(question.images))]
                answers[i] = replace(answer, evidence=join_evidence(evidence))
                continue
            choices = question.choices
            if choices is None and self.wants_caption(question.images, question.text):
                described[i] = question.images[0]
                continue
            choices = choices or self.answers_to_score(question, settings)
            if choices is None:
                free[i] = question
            else:
                answer = self.choose(replace(question, choices=choices), choices, explain)
                answers[i] = replace(answer, recipe=answer.recipe or self.recipe())
        if described:
            answers |= zip(described, self.describe(list(described.values()), explain, settings), strict=True)
        answers |= zip(free, self.write_answers(list(free.values()), explain, settings), strict=True)
        return [answers[i] for i in range(len(questions))]

    def about_one_picture(self, question: PictureQuestion) -> tuple[int, PictureQuestion] | None:
        """Of several pictures the one that a question names, and the question about it alone; published models read all of them."""
        one = None if self.spec.prompts.published else one_picture_asked_about(question.text, len(question.images))
        if one is None:
            return None
        place, text = one
        return place, replace(question, images=[question.images[place]], text=text)

    def answers_to_score(self, question: PictureQuestion, settings: Mapping[str, Any]) -> list[str] | None:
        """The pictures' names, yes and no, or the answers that a question offers, where it can have no others; None: the answer is written,
        as samples are."""
        if not self.scores_yes_no or settings.get("temperature"):
            return None
        names = names_of_photos(len(question.images))
        if len(names) > 1 and pictures_showing(question.text) is not None:
            return None
        if self.picks_pictures and len(names) > 1 and pictures_named_by(question.text, names, len(names)) is not None:
            return names
        return YES_NO if is_yes_no(question.text) else alternatives_in(question.text)

    def wants_caption(self, images: Sequence[ImageSource], question: str) -> bool:
        """Whether one photo shall be described. Models trained here caption better than they answer this; published ones follow
        instructions."""
        return len(images) == 1 and not self.spec.prompts.published and asks_for_description(question)

    # Choices

    def choose(self, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        """The most likely choice, by ``choose_picture``, ``detect``, ``judge`` or ``choose_answer``, depending on the question."""
        question = replace(question, images=self.encode.open(question.images))
        pictures = len(question.images)
        places, wanted = pictures_named_by(question.text, choices, pictures), which_picture(question.text)
        if places is not None and wanted is not None and self.picks_pictures:
            names = [choices[places.index(n)] for n in range(pictures)]
            return self.choose_picture(wanted, question.images, names, explain)
        if self.detects and sorted(forms_for_scoring(choices)) == sorted(YES_NO):
            presence = presence_asked_about(question.text)
            if presence is not None and not names_one_of_several(presence.where):
                return self.detect_any(presence, question, choices, explain)
            claim = claim_asked_about(question.text)
            if claim is not None and pictures == 1 and not self.spec.prompts.published:
                return self.judge(claim, question, choices, explain)
        return self.choose_answer(question, choices, explain)

    def detect_any(
        self, presence: Presence, question: PictureQuestion, choices: Sequence[str], explain: bool
    ) -> Answer:
        """Whether one of the things is present, or, where the question is whether they are missing, none: by the thing that decides."""
        answers = [self.detect(part, question, choices, explain) for part in presence.parts]
        yes = forms_for_scoring(choices).index("yes")
        scores = [answer.scores[choices[yes]] for answer in answers if answer.scores is not None]
        return answers[int(np.argmin(scores) if presence.missing else np.argmax(scores))]

    def choose_answer(self, question: PictureQuestion, choices: Sequence[str], explain: bool = False) -> Answer:
        """The most likely choice by the language model, calibrated (``blind_share``).

        For a question about two pictures, the mean over both orders."""
        forms = forms_for_scoring(choices)
        scored = self.score_forms(question, forms)
        gains = [total_logprobs(scored) - self.blind_share(question, forms)]
        if len(question.images) == 2 and IMAGE not in question.text:
            swapped, swapped_forms = question.in_other_order(), [in_other_order(form) for form in forms]
            again = total_logprobs(self.score_forms(swapped, swapped_forms))
            gains.append(again - self.blind_share(swapped, swapped_forms))
        scores = normalised_logprobs(self.weigh_choices(question, forms, np.mean(gains, 0)))
        answer = self.answer_of(scored[int(scores.argmax())], question, explain)
        return as_choice(answer, choices, scores)

    def weigh_choices(
        self, question: PictureQuestion, forms: Sequence[str], gains: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The scores of choices ``[C]``, up to a constant: here the language model's ``gains``, calibrated log-probabilities."""
        return gains

    def blind_share(self, question: PictureQuestion, forms: Sequence[str]) -> NDArray[np.float64]:
        """The amount to subtract from the choices' log-probabilities ``[C]``: see ``choices.blind_share``."""
        return blind_share(self.blind_logprobs(question, forms))

    def blind_logprobs(self, question: PictureQuestion, forms: Sequence[str]) -> NDArray[np.float64]:
        """The log-probability of each form as the whole answer about grey pictures, ``[C]``; remembered."""
        key = (question.text, len(question.images), *forms)
        known = self.blind_scores.get(key)
        if known is None:
            known = total_logprobs(self.score_forms(question.without_photos(), forms))
            self.blind_scores.put(key, known)
        return np.asarray(known)

    # Implemented by each system

    def recipe(self) -> AnswerRecipe:
        """The recipe of an answer without a prompt."""
        raise NotImplementedError

    def check_question(self, question: PictureQuestion) -> None:
        """Raises InputError: the model cannot answer this."""
        raise NotImplementedError

    def describe(self, photos: Sequence[ImageSource], explain: bool, settings: Mapping[str, Any]) -> list[Answer]:
        """The captions of photos."""
        raise NotImplementedError

    def write_answers(
        self, questions: Sequence[PictureQuestion], explain: bool, settings: Mapping[str, Any]
    ) -> list[Answer]:
        """Answers without choices."""
        raise NotImplementedError

    def score_forms(self, question: PictureQuestion, forms: Sequence[str]) -> list[Hypothesis]:
        """Each form as the whole answer, with the language model's log-probabilities."""
        raise NotImplementedError

    def answer_of(self, hypothesis: Hypothesis, question: PictureQuestion, explain: bool) -> Answer:
        """A scored choice as an answer; ``explain``: with evidence."""
        raise NotImplementedError

    def choose_picture(
        self, wanted: WhichPicture, images: Sequence[ImageSource], names: Sequence[str], explain: bool
    ) -> Answer:
        """The name of the picture that is ``wanted``; ``Answer.scores`` by the pictures' ``names``."""
        raise NotImplementedError

    def detect(self, presence: Presence, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        """Whether a thing is present in the pictures of ``question``; ``choices``: yes and no as the caller spelt them."""
        raise NotImplementedError

    def judge(self, claim: Claim, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        """Whether a ``claim`` about the picture of ``question`` is true; ``choices`` as in ``detect``."""
        raise NotImplementedError


def names_of_photos(count: int) -> list[str]:
    """What an answer calls each of several photos: ``left`` and ``right``, or ``photo 1``, ``photo 2``, ``photo 3``."""
    return [*TWO_PHOTOS] if count == len(TWO_PHOTOS) else [name.lower() for name in photo_names(count)]


def as_choice(
    answer: Answer, choices: Sequence[str], scores: NDArray[np.float64], method: Method = "language model"
) -> Answer:
    """An answer whose text is the choice with the highest of the ``scores``, log-probabilities."""
    best = int(scores.argmax())
    by_choice = dict(zip(choices, scores.tolist(), strict=True))
    likeliest = tuple(sorted(by_choice.items(), key=lambda item: -item[1]))
    end = answer.end._replace(finished=True, tokens=((WrittenToken(*likeliest[0], likeliest),),))
    return replace(answer, text=choices[best], logprob=float(scores[best]), scores=by_choice, method=method, end=end)


def as_yes_or_no(answer: Answer, choices: Sequence[str], logit: float, method: Method) -> Answer:
    """An answer whose text is yes or no, as the two ``choices`` spell them; ``logit``: of yes."""
    yes_first = forms_for_scoring(choices)[0] == "yes"
    return as_choice(answer, choices, normalised_logprobs([logit, 0.0] if yes_first else [0.0, logit]), method)


def deciding_picture(presence: Presence, logits: Sequence[float]) -> int:
    """Of the pictures in question that which decides, given the logit that each shows the thing: the likeliest, or if all must show it,
    the least likely."""
    return int(np.argmin(logits) if presence.everywhere else np.argmax(logits))


def total_logprobs(hypotheses: Sequence[Hypothesis]) -> NDArray[np.float64]:
    return np.array([h.logprob for h in hypotheses])


def as_list(images: Photos) -> list[ImageSource]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def with_settings(search: Search, settings: Mapping[str, Any]) -> Search:
    """``search`` with some settings changed. Raises InputError: an unknown or impossible one."""
    if unknown := set(settings) - {field.name for field in fields(Search)}:
        raise InputError(f"unknown setting {', '.join(sorted(unknown))}")
    if settings.get("temperature"):
        settings = {"beams": 1} | dict(settings)  # sampling excludes beam search
    longest = settings.get("max_new_tokens")
    if isinstance(longest, int) and longest < search.min_new_tokens:
        settings = {"min_new_tokens": longest} | dict(settings)  # a given limit overrides the model's own least length
    return replace(search, **settings)
