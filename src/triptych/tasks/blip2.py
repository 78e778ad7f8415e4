"""BLIP-2 in use: captions, questions over one or several photos; how well photos and texts match is in ``matching``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

from triptych.engines.interface import Array, Blip2Engine, Piece, TextPieces
from triptych.errors import InputError
from triptych.evidence import Evidence, Floats
from triptych.generate import Guidance, Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer, AnswerRecipe
from triptych.tasks.asking import (
    Answerer,
    Photos,
    PictureQuestion,
)
from triptych.tasks.blip2_decisions import Blip2Decisions
from triptych.tasks.choices import choice_ids, to_hypotheses
from triptych.tasks.each_photo import answer_each_photo, check_each_photo, is_about_each
from triptych.tasks.matching import Blip2Matching
from triptych.tasks.photos import DECODED_TOGETHER, over_photos
from triptych.tasks.reranking import BeamChoice, default_beams, with_all_beams
from triptych.tasks.words import (
    Pieces,
    Spans,
    Spelling,
    decode_pieces,
    in_one_piece,
    join_word_pieces,
    sentence,
    sum_over_words,
    text_end,
    to_answer,
)
from triptych.text.prompt import CAPTION_INSTRUCTION, IMAGE, qformer_texts, question_prompt, split_at_images
from triptych.text.questions import is_yes_no
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import itg_search

MAX_PHOTOS = 16  # of one question
WRITERS = ("lm", "qformer")  # of captions
ANSWERS = {"max_new_tokens": 20}  # settings of the search for answers


class PhotoPrompt(NamedTuple):
    """A prompt before it is read. ``text``: with ``<image>`` where each photo stands. ``question``: what the Q-Former reads; None: the
    instruction of captions."""

    text: str
    images: Sequence[ImageSource]
    question: str | None = None


class InterleavedPrompt(NamedTuple):
    """A prompt as the language model reads it: ids and soft prompts in order. ``cells``: where each photo's queries looked."""

    pieces: list[Piece]
    cells: list[Array]
    prompt: PhotoPrompt

    @property
    def length(self) -> int:
        """Tokens, each photo as many as its soft prompt has vectors."""
        return sum(map(len, self.pieces))


class Blip2Tasks(Blip2Decisions):
    """A BLIP-2 model in use. A photo is encoded once for as long as it is remembered (by content)."""

    def __init__(self, engine: Blip2Engine[Any], name: str) -> None:
        Answerer.__init__(self)
        Blip2Matching.__init__(self, engine, name)

    @property
    def tokenizer(self) -> TextTokenizer:
        """Of the language model. Raises InputError: there is none."""
        if self.spec.tokenizer is None:
            raise InputError(f"{self.name} has no language model: it matches and captions, but cannot answer questions")
        return self.spec.tokenizer

    # Captions

    @overload
    def caption(
        self,
        images: Sequence[ImageSource],
        *,
        explain: bool = ...,
        writer: str | None = ...,
        prompt: str | None = ...,
        rerank: bool = ...,
        **settings: Any,
    ) -> list[Answer]: ...
    @overload
    def caption(
        self,
        images: ImageSource,
        *,
        explain: bool = ...,
        writer: str | None = ...,
        prompt: str | None = ...,
        rerank: bool = ...,
        **settings: Any,
    ) -> Answer: ...
    def caption(
        self,
        images: Photos,
        *,
        explain: bool = False,
        writer: str | None = None,
        prompt: str | None = None,
        rerank: bool = True,
        **settings: Any,
    ) -> Answer | list[Answer]:
        """Caption one photo, or a list of photos (each answered as if it were alone).

        Args:
            images: a path, URL, data URL, bytes, PIL image or array; or a list of them.
            explain: also return where the model looked at each word (``Answer.evidence``).
            writer: ``lm``, the language model behind the soft prompt; ``qformer``, the Q-Former itself (ITG); None = the model's own.
            prompt: the text behind the photo, word for word, which a Q-Former that takes whole prompts (InstructBLIP's) reads as well;
                None = the model's own.
            rerank: choose among the beams of the language model by consensus, too (``tasks.reranking``), where the checkpoint has it; not
                behind a ``prompt``.
            settings: fields of ``generate.Search``: beams, max_new_tokens, length_penalty, n_best, temperature, top_k, top_p, seed.

        Raises:
            InputError: a photo cannot be read, or a setting is out of bounds.
        """
        if not isinstance(images, list | tuple):
            alone: list[ImageSource] = [images]  # type: ignore[list-item]
            return self.caption(alone, explain=explain, writer=writer, prompt=prompt, rerank=rerank, **settings)[0]
        if self.choose_writer(writer, prompt) == "qformer":
            return self.grounded_captions(images, explain, **settings)
        text = self.spec.prompts.caption if prompt is None else f"{IMAGE}{prompt}"
        choice = self.caption_choice(settings) if rerank and prompt is None else None
        search = self.caption_search(**default_beams(choice) | settings)
        prompts = [PhotoPrompt(text, [image]) for image in images]
        return self.write(prompts, search, explain, as_sentence=prompt is None, choice=choice)

    def choose_writer(self, writer: str | None, prompt: str | None) -> str:
        """Who writes a caption, ``lm`` or ``qformer``. Raises InputError: there is no such writer, or it takes no prompt."""
        if writer not in (None, *WRITERS):
            raise InputError(f"unknown writer {writer!r}: choose {' or '.join(WRITERS)}")
        if prompt is not None and writer == "qformer":
            raise InputError("the Q-Former writes without a prompt: choose the writer lm, or leave out the prompt")
        if prompt is not None:
            return "lm"
        return writer or (self.spec.writer if self.answers else "qformer")

    def grounded_captions(self, images: Sequence[ImageSource], explain: bool, **settings: Any) -> list[Answer]:
        """Captions by the Q-Former itself, as the first stage learns to write them (ITG)."""
        if not self.spec.writes:
            raise InputError(f"{self.name} cannot write captions: it has no language model, and no head to do without")
        search = itg_search(self.spec.words, self.search(**settings))
        answers = []
        for first in range(0, len(images), DECODED_TOGETHER):
            part = images[first : first + DECODED_TOGETHER]
            features = self.encode(part)
            written = generate(self.engine.writer, features, search)
            for hypotheses, photo, image in zip(written, features, part, strict=True):
                answer = self.grounded_answer(hypotheses, photo, image if explain else None)
                answers.append(replace(answer, recipe=self.recipe(search=search)))
        return answers

    def grounded_answer(self, hypotheses: Sequence[Hypothesis], features: Array, image: ImageSource | None) -> Answer:
        """``image``: the photo, to show where the Q-Former looked in it; None = no evidence."""
        vocabulary, (best, *others) = self.spec.words, hypotheses
        spelling = Spelling(vocabulary.decode, {vocabulary.sep: vocabulary.words[vocabulary.sep]})
        texts = [sentence(vocabulary.decode(h.ids)) for h in hypotheses]
        words, spans = join_word_pieces([vocabulary.words[piece] for piece in best.ids])
        if words[-1:] == (".",):
            words, spans = words[:-1], spans[:-1]
        logprobs = tuple(sum(best.logprobs[a:b]) for a, b in spans)
        evidence = None
        if image is not None and words:
            maps = sum_over_words(self.engine.writer_maps(features, best.ids), spans)[:, None]
            evidence = Evidence(words, over_photos(maps, [image], self.engine.photos.pixels), logprobs)
        return Answer(
            text=texts[0],
            model=self.name,
            logprob=best.logprob,
            tokens=words,
            logprobs=logprobs,
            evidence=evidence,
            alternatives=tuple(zip(texts[1:], (h.logprob for h in others), strict=True)),
            method="q-former",
            end=text_end(hypotheses, spelling),
            finished_alternatives=tuple(h.finished for h in others),
        )

    def stream(self, image: ImageSource, question: str | None = None, **settings: Any) -> Pieces:
        """A caption, or the answer to a question, piece by piece as it is written (greedy, or sampled with a ``temperature``)."""
        question = None if question is None else self.as_read(question)
        if question is not None and self.wants_caption([image], question):
            question = None
        if question is None and self.choose_writer(None, None) == "qformer":
            return (yield from in_one_piece(self.caption(image, **settings)))
        if question is not None:
            picture_question = PictureQuestion([image], question)
            if self.answers_to_score(picture_question, settings) or self.reranks_answer(picture_question, settings):
                return (yield from in_one_piece(self.ask(image, question, **settings)))
        prompts = self.spec.prompts
        text = prompts.caption if question is None else question_prompt(question, 1, prompts)
        (row,) = self.read([PhotoPrompt(text, [image], question)])
        guidance = None
        if question is None:
            search = self.caption_search(**({"beams": 1} | settings))
            guidance = self.guidance(self.pooled([image])) if self.reranks(settings) else None
        else:
            search = self.search(**(ANSWERS | dict(self.spec.answers) | {"beams": 1} | settings))
        tokens = stream(self.engine, [row.pieces], search, guidance, self.prompt_tokens(row))
        return (yield from decode_pieces(self.tokenizer, tokens, row.length))

    # Questions

    def check_question(self, question: PictureQuestion) -> None:
        if self.answers_each_photo(question) and not is_yes_no(question.text):
            check_each_photo(question, self.name)
        self.prompt_ids(self.question_prompt(question))

    def answers_each_photo(self, question: PictureQuestion) -> bool:
        """Whether the photos of a question are read one by one; published models read any number together."""
        return not self.spec.prompts.published and is_about_each(question)

    def describe(self, photos: Sequence[ImageSource], explain: bool, settings: Mapping[str, Any]) -> list[Answer]:
        return self.caption(photos, explain=explain, **settings)

    def write_answers(
        self, questions: Sequence[PictureQuestion], explain: bool, settings: Mapping[str, Any]
    ) -> list[Answer]:
        each = [i for i, question in enumerate(questions) if self.answers_each_photo(question)]
        answers = {i: answer_each_photo(self, questions[i], explain, settings) for i in each}
        together = {i: question for i, question in enumerate(questions) if i not in answers}
        for choice, chosen in self.by_choice(together, settings):
            defaults = ANSWERS | dict(self.spec.answers) | default_beams(choice)
            prompts = [self.question_prompt(questions[i]) for i in chosen]
            written = self.write(prompts, self.search(**defaults | dict(settings)), explain, choice=choice)
            answers |= zip(chosen, written, strict=True)
        return [answers[i] for i in range(len(questions))]

    def question_prompt(self, question: PictureQuestion) -> PhotoPrompt:
        photos = len(question.images)
        if not 1 <= photos <= MAX_PHOTOS:
            raise InputError(f"a question about {photos} photos: give 1 to {MAX_PHOTOS}")
        text = question_prompt(question.text, photos, self.spec.prompts)
        return PhotoPrompt(text, question.images, question.text)

    def score_forms(self, question: PictureQuestion, forms: Sequence[str]) -> list[Hypothesis]:
        (row,) = self.read([self.question_prompt(question)])
        logits, state = self.engine.prefill([row.pieces])
        ids = choice_ids(self.tokenizer, forms, min(self.tokenizer.eos_ids))
        return to_hypotheses(ids, self.engine.score(logits, state, ids))

    def answer_of(self, hypothesis: Hypothesis, question: PictureQuestion, explain: bool) -> Answer:
        prompt = self.question_prompt(question)
        if explain:
            (row,) = self.read([prompt], explain)
            answer = self.answer([hypothesis], row, explain)
        else:
            answer = to_answer(self.name, self.tokenizer, [hypothesis])
        return replace(answer, recipe=self.recipe(prompt.text))

    def word_token(self, word: str) -> int | None:
        return self.tokenizer.word_token(word)

    # From photos and text to the language model and back

    def write(
        self,
        prompts: Sequence[PhotoPrompt],
        search: Search,
        explain: bool,
        as_sentence: bool = False,
        choice: BeamChoice | None = None,
    ) -> list[Answer]:
        """What follows each prompt. ``choice``: how the consensus takes part, for prompts with one photo; None = not at all."""
        answers: list[Answer] = []
        for first in range(0, len(prompts), DECODED_TOGETHER):
            part = prompts[first : first + DECODED_TOGETHER]
            if choice is None:
                rows = self.read(part, explain)
                answers += self.to_answers(rows, self.written(rows, search), search, explain, as_sentence)
                continue
            rows = self.read([prompt._replace(images=self.encode.open(prompt.images)) for prompt in part], explain)
            pooled = self.pooled([row.prompt.images[0] for row in rows])
            beams = self.written(rows, with_all_beams(search), self.guidance(pooled, choice))
            best = self.reranked(beams, pooled, self.tokenizer.decode, search.n_best, choice)
            written = self.to_answers(rows, best, search, explain, as_sentence)
            answers += map(self.with_expected_words, written, pooled)
        return answers

    def written(
        self, rows: Sequence[InterleavedPrompt], search: Search, guidance: Guidance | None = None
    ) -> list[list[Hypothesis]]:
        prompts = [self.prompt_tokens(row) for row in rows]
        return generate(self.engine, [row.pieces for row in rows], search, guidance=guidance, prompts=prompts)

    def prompt_tokens(self, row: InterleavedPrompt) -> list[int]:
        """What a decoder has read before its text: the ids of the prompt, each vector of a photo as the tokenizer's ``<image>`` (left out
        where it has none); of a T5 its first token."""
        if self.spec.start_id is not None:
            return [self.spec.start_id]
        image = self.tokenizer.specials.get(IMAGE)
        marks = [] if image is None else [image]
        return [i for piece in row.pieces for i in (piece if isinstance(piece, list) else marks * len(piece))]

    def to_answers(
        self,
        rows: Sequence[InterleavedPrompt],
        written: Sequence[Sequence[Hypothesis]],
        search: Search,
        explain: bool,
        as_sentence: bool,
    ) -> list[Answer]:
        return [
            replace(self.answer(h, row, explain, as_sentence), recipe=self.recipe(row.prompt.text, search))
            for h, row in zip(written, rows, strict=True)
        ]

    def read(self, prompts: Sequence[PhotoPrompt], explain: bool = False) -> list[InterleavedPrompt]:
        """Read the photos of all prompts together, with the questions if the Q-Former reads them.

        Raises:
            InputError: photos and placeholders do not match in number, a photo cannot be read, or a prompt is too long.
        """
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        features = self.encode([image for prompt in prompts for image in prompt.images])
        read = iter(self.engine.read(features, self.instructions(prompts), explain))
        rows = []
        for prompt, (before, *others) in zip(prompts, ids, strict=True):
            photos = [next(read) for _ in others]
            row: list[Piece] = [before]
            for photo, piece in zip(photos, others, strict=True):
                row += [photo.vectors, piece]
            rows.append(InterleavedPrompt(row, [photo.cells for photo in photos if photo.cells is not None], prompt))
        return rows

    def prompt_ids(self, prompt: PhotoPrompt) -> list[list[int]]:
        """The ids before, between and after the photos. Raises InputError: with the soft prompts they are too many."""
        tokenizer, photos = self.tokenizer, len(prompt.images)
        texts = split_at_images(prompt.text, photos)
        begins = next((i for i, text in enumerate(texts) if text), photos) if self.spec.prompts.published else None
        ids = [tokenizer.encode(text, begin=i == begins) for i, text in enumerate(texts)]
        length = sum(map(len, ids)) + photos * self.spec.queries
        if length >= self.spec.max_tokens:
            raise InputError(f"the prompt has {length} tokens: the language model reads {self.spec.max_tokens} at most")
        return ids

    def instructions(self, prompts: Sequence[PhotoPrompt]) -> TextPieces | None:
        """What the Q-Former reads with each photo; None if it reads nothing."""
        if not self.spec.instructed:
            return None
        texts: list[str] = []
        for prompt in prompts:
            photos = len(prompt.images)
            if self.spec.prompts.whole:
                texts += qformer_texts(prompt.text, 1) * photos
            else:
                texts += qformer_texts(prompt.question or CAPTION_INSTRUCTION, photos)
        return self.word_pieces(texts)

    def answer(
        self, hypotheses: Sequence[Hypothesis], row: InterleavedPrompt, explain: bool, as_sentence: bool = False
    ) -> Answer:
        def maps(ids: Sequence[int], spans: Spans) -> Floats:
            over_squares = sum_over_words(self.engine.maps(row.pieces, row.cells, ids), spans)
            return over_photos(over_squares, row.prompt.images, self.engine.photos.pixels)

        evidence = maps if explain else None
        return to_answer(self.name, self.tokenizer, hypotheses, evidence, as_sentence, prompt_tokens=row.length)

    def recipe(self, prompt: str | None = None, search: Search | None = None) -> AnswerRecipe:
        return AnswerRecipe(self.engine.photos.pixels, prompt, search)

    def info(self) -> dict[str, Any]:
        """Parts, parameters, memory, licence and figures."""
        return {"model": self.name, **self.engine.info()}
