"""Flamingo in use: captions, questions, and whatever examples in the prompt show how to do; dialogue is in ``chat``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, overload

from triptych.engines.interface import FlamingoEngine, FlamingoSpec
from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.generate import MAX_NEW_TOKENS, Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource, load_image
from triptych.tasks.answer import Answer, AnswerRecipe
from triptych.tasks.asking import Answerer, Photos, PictureQuestion, as_list, total_logprobs
from triptych.tasks.capabilities import QuestionShot, Shot
from triptych.tasks.caption_likelihood import CaptionLikelihood
from triptych.tasks.chat import ANSWER_TOKENS, MAX_TOKENS, Chat
from triptych.tasks.chat import MAX_PICTURES as CHAT_PICTURES
from triptych.tasks.choices import check_choices, choice_ids, normalised_logprobs, to_hypotheses
from triptych.tasks.each_photo import answer_each_photo
from triptych.tasks.examples import ExampleIndex, as_opener
from triptych.tasks.flamingo_prompts import FlamingoPrompts
from triptych.tasks.photos import DECODED_TOGETHER
from triptych.tasks.prefix import PrefixState, PromptRow
from triptych.tasks.prototypes import PROTOTYPE_WEIGHT, examples_of, prototype_cosines
from triptych.tasks.reranking import BeamChoice, Reranking, default_beams, with_all_beams
from triptych.tasks.words import Pieces, decode_pieces, in_one_piece
from triptych.text.prompt import (
    IMAGE,
    caption_example,
    captions_by_picture,
    few_shot,
    question_after_pictures,
    question_example,
    question_prompt,
)
from triptych.text.questions import (
    Claim,
    Presence,
    WhichPicture,
    about_one_photo,
    asks_for_description,
    asks_what_is_shared,
    pictures_showing,
)

BEAMS_OF_SHARED = 5  # captions of each picture in which a shared thing is looked for


def is_about_several(question: PictureQuestion) -> bool:
    """Whether a question is about several pictures and does not say itself where they stand."""
    return len(question.images) > 1 and IMAGE not in question.text


class FlamingoTasks(Answerer[FlamingoSpec], Reranking):
    """A Flamingo in use."""

    answers = True

    def __init__(self, engine: FlamingoEngine[Any], name: str) -> None:
        super().__init__()
        self.engine, self.name, self.spec = engine, name, engine.spec
        self.prompts = FlamingoPrompts(engine, name)
        self.encode = self.prompts.encode
        self.likelihood = CaptionLikelihood(self.prompts)

    @property
    def explains(self) -> bool:
        """Whether ``explain`` can be asked for: on some engines that needs torch."""
        return self.engine.explains

    def recipe(self) -> AnswerRecipe:
        return AnswerRecipe(self.engine.photos.pixels)

    # Captions

    @overload
    def caption(
        self,
        images: Sequence[ImageSource],
        *,
        shots: Sequence[Shot] = ...,
        explain: bool = ...,
        prompt: str | None = ...,
        rerank: bool = ...,
        **settings: Any,
    ) -> list[Answer]: ...
    @overload
    def caption(
        self,
        images: ImageSource,
        *,
        shots: Sequence[Shot] = ...,
        explain: bool = ...,
        prompt: str | None = ...,
        rerank: bool = ...,
        **settings: Any,
    ) -> Answer: ...
    def caption(
        self,
        images: Photos,
        *,
        shots: Sequence[Shot] = (),
        explain: bool = False,
        prompt: str | None = None,
        rerank: bool = True,
        **settings: Any,
    ) -> Answer | list[Answer]:
        """Caption one photo, or a list of photos (each answered as if it were alone).

        Args:
            shots: examples, pictures with their captions, in order.
            explain: also return where the model looked at each word (``Answer.evidence``), in the examples' pictures too.
            prompt: the text behind the picture, word for word; None = the model's own.
            rerank: choose among the beams by consensus, too (``tasks.reranking``), where the checkpoint has it; not behind examples or a
                ``prompt``, which ask for other captions.
            settings: fields of ``generate.Search``.

        Raises:
            InputError: a picture cannot be read, the examples are too many or too long, or a setting is out of bounds.
        """
        if not isinstance(images, list | tuple):
            alone: list[ImageSource] = [images]  # type: ignore[list-item]
            return self.caption(alone, shots=shots, explain=explain, prompt=prompt, rerank=rerank, **settings)[0]
        prompts = self.spec.prompts
        examples = "".join(caption_example(text, image is not None, prompts) for image, text in shots)
        pictures = [load_image(image) for image, _ in shots if image is not None]
        texts = [(examples + self.caption_prompt(prompt), [*pictures, image]) for image in images]
        choice = self.caption_choice(settings) if rerank and prompt is None and not shots else None
        search = self.caption_search(**default_beams(choice) | settings)
        return self.write(texts, search, explain, as_sentence=prompt is None, choice=choice)

    def caption_prompt(self, prompt: str | None = None) -> str:
        """What is read before a caption; ``prompt``: other words behind the picture than the model's own."""
        return self.spec.prompts.caption if prompt is None else f"{IMAGE}{prompt}"

    def question_text(self, question: PictureQuestion) -> str:
        """The prompt of a question. Raises InputError: it is empty."""
        return question_prompt(question.text, len(question.images), self.spec.prompts)

    # Questions

    def check_question(self, question: PictureQuestion) -> None:
        self.prompts.check_count(len(question.images))
        self.question_text(question)

    def describe(self, photos: Sequence[ImageSource], explain: bool, settings: Mapping[str, Any]) -> list[Answer]:
        return self.caption(photos, explain=explain, **settings)

    def write_answers(
        self, questions: Sequence[PictureQuestion], explain: bool, settings: Mapping[str, Any]
    ) -> list[Answer]:
        answers: dict[int, Answer] = {}
        single: dict[int, tuple[str, list[ImageSource]]] = {}
        for i, question in enumerate(questions):
            if self.answers_each_picture(question):
                answers[i] = answer_each_photo(self, question, explain, settings)
            elif is_about_several(question):
                answers[i] = self.answer_by_captions(question, explain, settings)
            else:
                single[i] = self.question_text(question), question.images
        for choice, chosen in self.by_choice({i: questions[i] for i in single}, settings):
            search = self.search(**self.answer_settings() | default_beams(choice) | dict(settings))
            written = self.write([single[i] for i in chosen], search, explain, choice=choice)
            answers |= zip(chosen, written, strict=True)
        return [answers[i] for i in range(len(questions))]

    def answers_each_picture(self, question: PictureQuestion) -> bool:
        """Whether each of several pictures shall be described, or those that show something counted; published models follow
        instructions."""
        if not is_about_several(question) or self.spec.prompts.published:
            return False
        return asks_for_description(about_one_photo(question.text)) or pictures_showing(question.text) is not None

    def answer_settings(self, pictures: int = 1) -> dict[str, Any]:
        """The settings of the search for an answer that differ from the model's own; ``pictures``: those that it is about."""
        settings = {"max_new_tokens": ANSWER_TOKENS} | dict(self.spec.answers)
        return settings | {"max_new_tokens": min(MAX_NEW_TOKENS, settings["max_new_tokens"] * pictures)}

    def answer_by_captions(self, question: PictureQuestion, explain: bool, settings: Mapping[str, Any]) -> Answer:
        """A free answer about several pictures: they are captioned first, and the answer draws on their captions.

        Of a question what the pictures share, the answer is checked against them: see ``CaptionLikelihood.shared``."""
        search = self.search(**self.answer_settings(len(question.images)) | dict(settings))
        with self.read_captions(question) as (row, prefix):
            (hypotheses,) = generate(prefix, None, search, prompts=[row.input_ids])
        answer = self.prompts.answer(hypotheses, row, question.images if explain else None, method="captions")
        answer = replace(
            answer, recipe=self.prompts.recipe(question_after_pictures(question.text, self.spec.prompts), search)
        )
        if asks_what_is_shared(question.text):
            several = self.caption(question.images, beams=BEAMS_OF_SHARED, n_best=BEAMS_OF_SHARED)
            captions = [text for caption in several for text in (caption.text, *(t for t, _ in caption.alternatives))]
            return self.likelihood.shared(answer.text, captions, question.images, explain) or answer
        return answer

    def read_captions(self, question: PictureQuestion) -> AbstractContextManager[tuple[PromptRow, PrefixState]]:
        """Pictures with their captions (each written as if it were alone, so that no caption repeats another picture's) and then the
        question, read."""
        ids = self.spec.tokenizer.encode(question_after_pictures(question.text, self.spec.prompts))
        alone, choice = [(self.caption_prompt(), [image]) for image in question.images], self.caption_choice({})
        captions = self.write(alone, self.caption_search(**default_beams(choice)), choice=choice)
        row = self.prompts.row(
            captions_by_picture([caption.text for caption in captions], self.spec.prompts), question.images
        )
        return self.prompts.read_blind(row, ids)

    def score_forms(self, question: PictureQuestion, forms: Sequence[str]) -> list[Hypothesis]:
        return self.score_behind(self.prompts.row(self.question_text(question), question.images), forms)

    def answer_of(self, hypothesis: Hypothesis, question: PictureQuestion, explain: bool) -> Answer:
        text = self.question_text(question)
        row = self.prompts.row(text, question.images)
        answer = self.prompts.answer([hypothesis], row, question.images if explain else None)
        return replace(answer, recipe=self.prompts.recipe(text))

    def choose_picture(
        self, wanted: WhichPicture, images: Sequence[ImageSource], names: Sequence[str], explain: bool
    ) -> Answer:
        return self.likelihood.choose(wanted, images, names, explain)

    def detect(self, presence: Presence, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        expected = self.presence_logits(question.images, [presence.thing])[:, 0].tolist()
        return self.likelihood.detect(presence, question.images, expected, choices, explain)

    def judge(self, claim: Claim, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        presence = float(self.presence_logits(question.images, [claim.predicate])[0, 0])
        return self.likelihood.judge(claim, question.images[0], presence, choices, explain)

    def score_behind(self, row: PromptRow, choices: Sequence[str]) -> list[Hypothesis]:
        """Each choice as all that follows a prompt, which is read once for all."""
        ids = choice_ids(self.spec.tokenizer, choices, self.spec.end_id, self.spec.prompts.gap)
        with self.prompts.prefix.read_prompt(row) as prefix:
            return to_hypotheses(ids, self.engine.score(prefix.logits, prefix.state, ids))

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
        prototypes: bool = True,
        **settings: Any,
    ) -> Answer:
        """Do with ``image`` what the examples show.

        Args:
            shots: pictures with their texts, in order; a text without a picture (None) is an example, too.
            prompt: the beginning of the text for ``image``, as the examples' texts begin.
            choices: texts of which the likeliest is taken (classification); nothing else is written then.
            similar: use only so many examples, those whose pictures look most like ``image``, the most similar last (RICES).
            prototypes: see ``interleaved``.

        Raises:
            InputError: an example without a text, a picture that cannot be read, too many pictures or tokens.
        """
        if similar is not None:
            shots = self.most_similar(image, shots, similar)
        text = few_shot([(shot is not None, words) for shot, words in shots], prompt, self.spec.prompts.gap)
        pictures = [*(s for s, _ in shots if s is not None), image]
        return self.interleaved(pictures, text, choices, explain, prototypes=prototypes, **settings)

    def ask_with_examples(
        self, images: Sequence[ImageSource], questions: Sequence[str], examples: Sequence[QuestionShot], **settings: Any
    ) -> list[Answer]:
        """Answer a question about each picture, after the same examples of questions with answers (Flamingo section 3.4).

        Args:
            images, questions: one question about each picture.
            examples: pictures with a question and its answer, in order; without a picture (None) it is an example, too.
            settings: fields of ``generate.Search``.

        Raises:
            InputError: a question or an answer is empty, a picture cannot be read, too many pictures or tokens.
        """
        prompts = self.spec.prompts
        before = "".join(question_example(text, answer, image is not None, prompts) for image, text, answer in examples)
        pictures = [load_image(image) for image, _, _ in examples if image is not None]
        search = self.search(**self.answer_settings() | settings)
        texts = [
            (before + question_prompt(text, 1, prompts), [*pictures, image])
            for image, text in zip(images, questions, strict=True)
        ]
        return self.prompts.write(texts, search)

    def interleaved(
        self,
        images: Sequence[ImageSource],
        text: str,
        choices: Sequence[str] | None = None,
        explain: bool = False,
        *,
        prototypes: bool = True,
        **settings: Any,
    ) -> Answer:
        """What follows any text with ``<image>`` where each picture stands and ``<|endofchunk|>`` behind each example.

        ``prototypes``: where the examples show every choice, also count how much the last picture resembles those of each
        (``tasks.prototypes``), if the checkpoint has a consensus; False = the language model alone, as in the paper.
        """
        if choices is None:
            return self.prompts.write([(text, images)], self.search(**settings), explain)[0]
        names, row = check_choices(choices), self.prompts.row(text, images)
        scored = self.score_behind(row, names)
        totals, cosines = total_logprobs(scored), self.prototype_cosines(text, images, names) if prototypes else None
        if cosines is not None:
            totals = normalised_logprobs(totals + PROTOTYPE_WEIGHT * cosines)
        best = int(totals.argmax())
        answer = self.prompts.answer([scored[best]], row, images if explain else None)
        return replace(
            answer,
            text=names[best],
            scores=dict(zip(names, totals.tolist(), strict=True)),
            method="language model" if cosines is None else "prototypes",
            recipe=self.prompts.recipe(text),
        )

    def prototype_cosines(self, text: str, images: Sequence[ImageSource], choices: Sequence[str]) -> Floats | None:
        """How much the last picture of a prompt resembles those of each choice, ``[C]``; None where that says nothing."""
        pictures_of = examples_of(text, choices)
        if pictures_of is None or self.consensus is None:
            return None
        return prototype_cosines(self.consensus.expected(self.pooled(images)), pictures_of)

    def most_similar(self, image: ImageSource, shots: Sequence[Shot], count: int) -> list[Shot]:
        """The ``count`` examples whose pictures are most like ``image`` by the cosine of their mean features, the most similar last
        (Flamingo's RICES, after Yang et al. 2022)."""
        pictured = [shot for shot in shots if shot[0] is not None]
        if not 1 <= count <= len(pictured):
            raise InputError(f"{count} similar examples of {len(pictured)} with pictures: choose 1 to {len(pictured)}")
        examples = [(as_opener(source), text) for source, text in pictured if source is not None]
        return ExampleIndex(self, examples).nearest(image, count)

    # Streaming and dialogue

    def stream(self, images: Photos, question: str | None = None, **settings: Any) -> Pieces:
        """A caption, or the answer to a question, piece by piece as it is written (greedy, or sampled with a ``temperature``)."""
        pictures, question = as_list(images), None if question is None else self.as_read(question)
        if question is None or self.wants_caption(pictures, question):
            search = self.caption_search(**({"beams": 1} | settings))
            guidance = self.guidance(self.pooled(pictures)) if self.reranks(settings) else None
            return self.prompts.streamed(self.caption_prompt(), pictures, search, guidance)
        picture_question = PictureQuestion(pictures, question)
        if (one := self.about_one_picture(picture_question)) is not None:
            _, alone = one
            return self.stream(alone.images, alone.text, **settings)
        if self.answers_to_score(picture_question, settings) or self.reranks_answer(picture_question, settings):
            return in_one_piece(self.ask(pictures, question, **settings))
        several = is_about_several(picture_question)
        if self.answers_each_picture(picture_question):
            return in_one_piece(self.ask(pictures, question, **settings))
        search = self.search(**self.answer_settings(len(pictures) if several else 1) | {"beams": 1} | settings)
        if several:
            return self.stream_by_captions(picture_question, search)
        return self.prompts.streamed(self.question_text(picture_question), pictures, search)

    def stream_by_captions(self, question: PictureQuestion, search: Search) -> Pieces:
        """The answer to a question about several pictures, piece by piece."""
        with self.read_captions(question) as (row, prefix):
            tokens = stream(prefix, None, search, prompt=row.input_ids)
            return (yield from decode_pieces(self.spec.tokenizer, tokens, len(row.input_ids)))

    def chat(self) -> Chat:
        """A dialogue over any number of pictures."""
        tokens, pictures = self.spec.max_tokens, self.spec.max_pictures or CHAT_PICTURES
        return Chat(self, min(MAX_TOKENS, tokens), min(CHAT_PICTURES, pictures), self.spec.prompts)

    def length(self, text: str, pictures: int) -> int:
        """Tokens of a text with so many pictures."""
        return self.prompts.length(text, pictures)

    def streamed(self, text: str, images: Sequence[ImageSource], search: Search) -> Pieces:
        """What follows a prompt, piece by piece."""
        return self.prompts.streamed(text, images, search)

    def write(
        self,
        prompts: Sequence[tuple[str, Sequence[ImageSource]]],
        search: Search,
        explain: bool = False,
        as_sentence: bool = False,
        choice: BeamChoice | None = None,
    ) -> list[Answer]:
        """What follows each prompt. ``choice``: how the consensus takes part, for prompts with one picture; None = not at all."""
        if choice is None:
            return self.prompts.write(prompts, search, explain, as_sentence)
        answers: list[Answer] = []
        for first in range(0, len(prompts), DECODED_TOGETHER):
            part = [(text, self.encode.open(pictures)) for text, pictures in prompts[first : first + DECODED_TOGETHER]]
            rows, pooled = self.prompts.rows(part), self.pooled([picture for _, (picture,) in part])
            beams = self.prompts.generate(rows, with_all_beams(search), self.guidance(pooled, choice))
            best = self.reranked(beams, pooled, self.spec.tokenizer.decode, search.n_best, choice)
            written = self.prompts.answers(best, rows, part, search, explain, as_sentence)
            answers += map(self.with_expected_words, written, pooled)
        return answers

    def word_token(self, word: str) -> int | None:
        return self.spec.tokenizer.word_token(word)

    def pooled(self, images: Sequence[ImageSource]) -> Floats:
        """The mean of each picture's image features over the grid: ``[B, D]``."""
        return self.engine.pooled(self.encode(images))

    def info(self) -> dict[str, Any]:
        """Parts, parameters, gates, memory, licence and figures."""
        return {"model": self.name, **self.engine.info()}
