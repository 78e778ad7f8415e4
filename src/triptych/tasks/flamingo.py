"""Flamingo in use: captions, questions, and whatever examples in the prompt show how to do; dialogue is in ``chat``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, overload

import numpy as np

from triptych.engines.interface import FlamingoEngine
from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.generate import Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource, load_image
from triptych.tasks.answer import Answer
from triptych.tasks.asking import Answerer, Photos, PictureQuestion, as_list, with_settings
from triptych.tasks.capabilities import Shot
from triptych.tasks.chat import ANSWER_TOKENS, MAX_TOKENS, Chat
from triptych.tasks.chat import MAX_PICTURES as CHAT_PICTURES
from triptych.tasks.choices import check_choices, choice_ids, likeliest, to_hypotheses
from triptych.tasks.flamingo_prompts import FlamingoPrompts
from triptych.tasks.prefix import PrefixState, PromptRow
from triptych.tasks.words import Spans, decode_pieces, mean_over_words, to_answer
from triptych.text.prompt import (
    CAPTION,
    END,
    IMAGE,
    captions_by_picture,
    few_shot,
    pictures_named_by,
    question_after_pictures,
    question_prompt,
    shot_text,
    statement,
)


def is_about_several(question: PictureQuestion) -> bool:
    """Whether a question is about several pictures and does not say itself where they stand."""
    return len(question.images) > 1 and IMAGE not in question.text


class FlamingoTasks(Answerer):
    """A Flamingo in use."""

    answers = True

    def __init__(self, engine: FlamingoEngine[Any], name: str) -> None:
        self.engine, self.name, self.spec = engine, name, engine.spec
        self.prompts = FlamingoPrompts(engine, name)

    def search(self, **settings: Any) -> Search:
        """The model's own search with ``settings`` changed. Raises InputError for an unknown or impossible one."""
        return with_settings(self.spec.search, settings)

    # Captions

    @overload
    def caption(
        self, images: Sequence[ImageSource], *, shots: Sequence[Shot] = ..., explain: bool = ..., **settings: Any
    ) -> list[Answer]: ...
    @overload
    def caption(
        self, images: ImageSource, *, shots: Sequence[Shot] = ..., explain: bool = ..., **settings: Any
    ) -> Answer: ...
    def caption(
        self, images: Photos, *, shots: Sequence[Shot] = (), explain: bool = False, **settings: Any
    ) -> Answer | list[Answer]:
        """Caption one photo, or a list of photos (each answered as if it were alone).

        Args:
            shots: examples, pictures with their captions, in order.
            explain: also return where the model looked at each word (``Answer.evidence``), in the examples' pictures too.
            settings: fields of ``generate.Search``.

        Raises:
            InputError: a picture cannot be read, the examples are too many or too long, or a setting is out of bounds.
        """
        if not isinstance(images, list | tuple):
            return self.caption([images], shots=shots, explain=explain, **settings)[0]  # type: ignore[list-item]
        examples = "".join(
            f"{CAPTION if image is not None else 'Caption:'} {shot_text(text)}{END}" for image, text in shots
        )
        pictures = [load_image(image) for image, _ in shots if image is not None]
        prompts = [(examples + CAPTION, [*pictures, image]) for image in images]
        return self.prompts.write(prompts, self.search(**settings), explain, as_sentence=True)

    # Questions

    def answer_questions(
        self, questions: Sequence[PictureQuestion], explain: bool, settings: Mapping[str, Any]
    ) -> list[Answer]:
        for question in questions:
            self.prompts.check_count(len(question.images))
        answers: dict[int, Answer] = {}
        single: dict[int, tuple[str, list[ImageSource]]] = {}
        for i, question in enumerate(questions):
            if question.choices is not None:
                answers[i] = self.choose_answer(question, question.choices, explain)
            elif is_about_several(question):
                answers[i] = self.answer_by_captions(question, explain, settings)
            else:
                single[i] = question_prompt(question.text, len(question.images)), question.images
        search = self.search(**({"max_new_tokens": ANSWER_TOKENS} | dict(settings)))
        answers |= zip(single, self.prompts.write(list(single.values()), search, explain), strict=True)
        return [answers[i] for i in range(len(questions))]

    def answer_by_captions(self, question: PictureQuestion, explain: bool, settings: Mapping[str, Any]) -> Answer:
        """A free answer about several pictures: they are captioned first, and the answer draws on their captions."""
        search = self.search(**({"max_new_tokens": ANSWER_TOKENS * len(question.images)} | dict(settings)))
        with self.read_captions(question) as (row, prefix):
            (hypotheses,) = generate(prefix, None, search)
        return self.prompts.answer(hypotheses, row, question.images if explain else None, method="captions")

    def read_captions(self, question: PictureQuestion) -> AbstractContextManager[tuple[PromptRow, PrefixState]]:
        """Pictures with their captions (each written as if it were alone, so that no caption repeats another picture's) and then the
        question, read."""
        ids = self.spec.tokenizer.encode(question_after_pictures(question.text))
        captions = self.prompts.write([(CAPTION, [image]) for image in question.images], self.search())
        row = self.prompts.row(captions_by_picture([caption.text for caption in captions]), question.images)
        return self.prompts.read_blind(row, ids)

    def choose_answer(self, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        """The likeliest choice; of a question that asks which of the photos shows something, by ``choose_picture``."""
        images = question.images
        prompt = question_prompt(question.text, len(images))
        places = pictures_named_by(question.text, choices, len(images))
        if places is None:
            return self.choose(prompt, images, choices, explain)
        names = [choices[places.index(n)] for n in range(len(images))]
        return self.choose_picture(statement(question.text), images, names, explain)

    def choose_picture(self, text: str, images: Sequence[ImageSource], names: Sequence[str], explain: bool) -> Answer:
        """The photo whose caption would sooner begin with ``text``, by its log-probability (``Answer.scores``, by ``names``).

        The paper, too, classifies by the likelihood of texts (section 3.4). A small language model is much better at saying what a photo
        shows than at answering "left" or "right".
        """
        self.prompts.check_length(self.prompts.length(f"{CAPTION} {text}", 1))
        rows = self.prompts.rows([(CAPTION, [image]) for image in images])
        ids = self.spec.tokenizer.encode(f" {text}")
        scored = []
        for row in rows:
            with self.prompts.prefix.read_prompt(row) as prefix:
                scored.append(
                    Hypothesis(tuple(ids), tuple(self.engine.score(prefix.logits, prefix.state, [ids])[0]), False)
                )
        best = likeliest(scored)

        def maps(ids: Sequence[int], spans: Spans) -> Floats:
            features = self.prompts.encode(images)
            each = [self.engine.maps(row.input_ids, [x], ids) for row, x in zip(rows, features, strict=True)]
            return mean_over_words(np.concatenate(each, 1), spans)

        answer = to_answer(self.name, self.spec.tokenizer, [scored[best]], maps if explain else None)
        scores = {name: h.logprob for name, h in zip(names, scored, strict=True)}
        return replace(answer, text=names[best], scores=scores, method="caption likelihood")

    def choose(self, text: str, images: Sequence[ImageSource], choices: Sequence[str], explain: bool) -> Answer:
        """The choice that the language model finds the likeliest to follow; the prompt is read once for all."""
        row = self.prompts.row(text, images)
        ids = choice_ids(self.spec.tokenizer, choices, self.spec.end_id)
        with self.prompts.prefix.read_prompt(row) as prefix:
            scored = to_hypotheses(ids, self.engine.score(prefix.logits, prefix.state, ids))
        best = likeliest(scored)
        answer = self.prompts.answer([scored[best]], row, images if explain else None)
        scores = {choice: h.logprob for choice, h in zip(choices, scored, strict=True)}
        return replace(answer, text=choices[best], scores=scores)

    # Examples in the prompt

    def complete(
        self,
        image: ImageSource,
        shots: Sequence[Shot] = (),
        prompt: str = "",
        choices: Sequence[str] | None = None,
        *,
        similar: int | None = None,
        explain: bool = False,
        **settings: Any,
    ) -> Answer:
        """Do with ``image`` what the examples show.

        Args:
            shots: pictures with their texts, in order; a text without a picture (None) is an example, too.
            prompt: the beginning of the text for ``image``, as the examples' texts begin.
            choices: texts of which the likeliest is taken (classification); nothing else is written then.
            similar: use only so many examples, those whose pictures look most like ``image``, the most similar last (RICES).

        Raises:
            InputError: an example without a text, a picture that cannot be read, too many pictures or tokens.
        """
        if similar is not None:
            shots = self.most_similar(image, shots, similar)
        text = few_shot([(shot is not None, words) for shot, words in shots], prompt)
        return self.interleaved([*(s for s, _ in shots if s is not None), image], text, choices, explain, **settings)

    def interleaved(
        self,
        images: Sequence[ImageSource],
        text: str,
        choices: Sequence[str] | None = None,
        explain: bool = False,
        **settings: Any,
    ) -> Answer:
        """What follows any text with ``<image>`` where each picture stands and ``<|endofchunk|>`` behind each example."""
        if choices is not None:
            return self.choose(text, images, check_choices(choices), explain)
        return self.prompts.write([(text, images)], self.search(**settings), explain)[0]

    def most_similar(self, image: ImageSource, shots: Sequence[Shot], count: int) -> list[Shot]:
        """The ``count`` examples whose pictures are most like ``image`` by the cosine of their mean features, the most similar last
        (Flamingo's RICES, after Yang et al. 2022)."""
        pictured = [shot for shot in shots if shot[0] is not None]
        if not 1 <= count <= len(pictured):
            raise InputError(f"{count} similar examples of {len(pictured)} with pictures: choose 1 to {len(pictured)}")
        pictures = [source for source, _ in pictured if source is not None]
        pooled = self.engine.pooled(self.prompts.encode([image, *pictures]))
        query, *others = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        order = np.argsort(np.stack(others) @ query, kind="stable")
        return [pictured[i] for i in order[-count:]]

    # Streaming and dialogue

    def stream(self, images: Photos, question: str | None = None, **settings: Any) -> Iterator[str]:
        """A caption, or the answer to a question, piece by piece as it is written (greedy, or sampled with a ``temperature``)."""
        pictures = as_list(images)
        if question is None:
            return self.prompts.streamed(CAPTION, pictures, self.search(**({"beams": 1} | settings)))
        asked = PictureQuestion(pictures, question)
        tokens = ANSWER_TOKENS * (len(pictures) if is_about_several(asked) else 1)
        search = self.search(**({"beams": 1, "max_new_tokens": tokens} | settings))
        if is_about_several(asked):
            return self.stream_by_captions(asked, search)
        return self.prompts.streamed(question_prompt(question, len(pictures)), pictures, search)

    def stream_by_captions(self, question: PictureQuestion, search: Search) -> Iterator[str]:
        """The answer to a question about several pictures, piece by piece."""
        with self.read_captions(question) as (_, prefix):
            yield from decode_pieces(self.spec.tokenizer, stream(prefix, None, search))

    def chat(self) -> Chat:
        """A dialogue over any number of pictures."""
        tokens, pictures = self.spec.max_tokens, self.spec.max_pictures or CHAT_PICTURES
        return Chat(self, min(MAX_TOKENS, tokens), min(CHAT_PICTURES, pictures))

    def length(self, text: str, pictures: int) -> int:
        """Tokens of a text with so many pictures."""
        return self.prompts.length(text, pictures)

    def streamed(self, text: str, images: Sequence[ImageSource], search: Search) -> Iterator[str]:
        """What follows a prompt, piece by piece."""
        return self.prompts.streamed(text, images, search)

    def write(
        self, prompts: Sequence[tuple[str, Sequence[ImageSource]]], search: Search, explain: bool = False
    ) -> list[Answer]:
        """What follows each prompt."""
        return self.prompts.write(prompts, search, explain)

    def info(self) -> dict[str, Any]:
        """Parts, parameters, gates, memory, licence and figures."""
        return {"model": self.name, **self.engine.info()}
