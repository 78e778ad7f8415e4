"""Flamingo's prompts: from text and pictures to token ids and visual tokens, through the model, and back to answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from triptych.engines.interface import Array, FlamingoEngine, FlamingoInputs
from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.generate import Guidance, Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource, content_hash, load_image
from triptych.tasks.answer import Answer, AnswerRecipe, Method
from triptych.tasks.photos import DECODED_TOGETHER, ENCODED_TOGETHER, ArrayMemory, PhotoMemory, over_photos
from triptych.tasks.prefix import PrefixMemory, PrefixState, PromptRow, common_prefix_length
from triptych.tasks.words import Pieces, Spans, decode_pieces, mean_over_words, to_answer
from triptych.text.prompt import END, split_at_images

MAX_PROMPT_PICTURES = 128  # of one prompt
VISUAL_TOKEN_BYTES = 64 * 2**20  # of remembered visual tokens

PictureText = tuple[str, Sequence[ImageSource]]  # a text with an <image> for each of its pictures


class FlamingoPrompts:
    """Reads prompts with an engine. The visual tokens of pictures are remembered by content; a prompt that begins like an earlier one is
    read only from the first difference on."""

    def __init__(self, engine: FlamingoEngine[Any], name: str) -> None:
        self.engine, self.name, self.spec = engine, name, engine.spec
        self.encode = PhotoMemory(engine)
        self.prefix = PrefixMemory(engine)
        self.resampled = ArrayMemory(VISUAL_TOKEN_BYTES)

    # From text and pictures to rows

    def check_count(self, pictures: int) -> None:
        if not 1 <= pictures <= MAX_PROMPT_PICTURES:
            raise InputError(f"a prompt with {pictures} pictures: give 1 to {MAX_PROMPT_PICTURES}")

    def check_length(self, tokens: int) -> None:
        limit = self.spec.max_tokens
        if tokens >= limit:
            raise InputError(f"the prompt has {tokens} tokens: the language model reads {limit} at most")

    def ids(self, text: str, pictures: int) -> list[int]:
        """Ids of a text, with ``image_id`` for each ``<image>`` and ``end_id`` for each ``<|endofchunk|>``."""
        self.check_count(pictures)
        tokenizer = self.spec.tokenizer
        ids = tokenizer.encode("", begin=True)
        for i, between in enumerate(split_at_images(text, pictures)):
            ids += self.picture_ids(ids) if i else []
            for n, piece in enumerate(between.split(END)):
                ids += [self.spec.end_id] * (n > 0) + tokenizer.encode(piece)
        return ids

    def picture_ids(self, before: Sequence[int]) -> list[int]:
        """``image_id``, between the tokens around pictures if the model has them. ``before``: the ids that it follows."""
        around = self.spec.tokenizer.specials.get(self.spec.prompts.around)
        if around is None:
            return [self.spec.image_id]
        return [*([] if before[-1:] == [around] else [around]), self.spec.image_id, around]

    def length(self, text: str, pictures: int) -> int:
        """The number of tokens of a text with this number of pictures."""
        return len(self.ids(text, pictures))

    def rows(self, prompts: Sequence[PictureText]) -> list[PromptRow]:
        """Prompts as ids and visual tokens; their new pictures are encoded together.

        Raises:
            InputError: the numbers of pictures and ``<image>`` differ, a picture cannot be read, or a prompt is too long.
        """
        ids = [self.ids(text, len(images)) for text, images in prompts]
        for row in ids:
            self.check_length(len(row))
        pictures = iter(self.visual_tokens([images for _, images in prompts]))
        rows = []
        for row, (_, images) in zip(ids, prompts, strict=True):
            own = [next(pictures) for _ in images]
            hashes = iter([content for content, _ in own])
            signature = tuple(next(hashes) if i == self.spec.image_id else i for i in row)
            rows.append(PromptRow(row, signature, [tokens for _, tokens in own]))
        return rows

    def row(self, text: str, images: Sequence[ImageSource]) -> PromptRow:
        return self.rows([(text, images)])[0]

    def visual_tokens(self, prompts: Sequence[Sequence[ImageSource]]) -> list[tuple[str, Array]]:
        """The hash of the content and the visual tokens ``[R, D]`` of all pictures in order. They depend on a picture's number in its
        prompt if the model has picture embeddings."""
        unnumbered = self.spec.max_pictures is None
        images = [image for pictures in prompts for image in pictures]
        numbers = [1 if unnumbered else n for pictures in prompts for n in range(1, len(pictures) + 1)]
        keys: list[tuple[str, int]] = []
        known: dict[tuple[str, int], Array] = {}
        new: dict[tuple[str, int], Array] = {}  # image features
        for first in range(0, len(images), ENCODED_TOGETHER):  # not all photos in memory at once
            part = slice(first, first + ENCODED_TOGETHER)
            photos = [load_image(image, self.engine.photos.pixels.decode_side) for image in images[part]]
            here = [(content_hash(photo), number) for photo, number in zip(photos, numbers[part], strict=True)]
            keys += here
            remembered = [(key, self.resampled.get(key)) for key in here]
            known |= {key: tokens for key, tokens in remembered if tokens is not None}
            unknown = {key: photo for key, photo in zip(here, photos, strict=True) if key not in known | new}
            new |= zip(unknown, self.encode(list(unknown.values())), strict=True)
        if new:
            resampled = self.engine.read(list(new.values()), [number for _, number in new])
            for key, array in zip(new, resampled, strict=True):
                known[key] = array
                self.resampled.put(key, array)
        return [(key[0], known[key]) for key in keys]

    # Through the model

    def write(
        self,
        prompts: Sequence[PictureText],
        search: Search,
        explain: bool = False,
        as_sentence: bool = False,
    ) -> list[Answer]:
        """Continue each prompt."""
        answers: list[Answer] = []
        for first in range(0, len(prompts), DECODED_TOGETHER):
            part = prompts[first : first + DECODED_TOGETHER]
            rows = self.rows(part)
            answers += self.answers(self.generate(rows, search), rows, part, search, explain, as_sentence)
        return answers

    def generate(
        self, rows: Sequence[PromptRow], search: Search, guidance: Guidance | None = None
    ) -> list[list[Hypothesis]]:
        """Continue each row. A beginning that all rows share is read once."""
        if len(rows) == 1:
            with self.prefix.read_prompt(rows[0]) as prefix:
                return generate(prefix, None, search, guidance=guidance, prompts=[rows[0].input_ids])
        shared = min(common_prefix_length(rows[0].signature, row.signature) for row in rows)
        shared = min(shared, *(len(row.input_ids) - 1 for row in rows))
        first = rows[0].until(shared)
        pictures = len(first.visual_tokens)
        with self.prefix.read_prompt(first) if shared else nullcontext() as prefix:
            state = prefix.state.fork([0] * len(rows)) if prefix else None
            ids = [row.input_ids[shared:] for row in rows]
            inputs = FlamingoInputs(ids, [row.visual_tokens[pictures:] for row in rows], state)
            whole = [row.input_ids for row in rows]
            return generate(self.engine, inputs, search, guidance=guidance, prompts=whole)

    def streamed(
        self, text: str, images: Sequence[ImageSource], search: Search, guidance: Guidance | None = None
    ) -> Pieces:
        """Continue a prompt, piece by piece."""
        row = self.row(text, images)
        with self.prefix.read_prompt(row) as prefix:
            tokens = stream(prefix, None, search, guidance, row.input_ids)
            return (yield from decode_pieces(self.spec.tokenizer, tokens, len(row.input_ids)))

    @contextmanager
    def read_blind(self, row: PromptRow, ids: list[int]) -> Iterator[tuple[PromptRow, PrefixState]]:
        """Read a prompt, then ``ids`` that attend to no picture, because they would attend to the last one alone."""
        self.check_length(len(row.input_ids) + len(ids))
        with self.prefix.read_prompt(row) as prefix:
            logits, state = self.engine.prefill(FlamingoInputs([ids], [[]], prefix.state, blind=True))
            whole = row._replace(input_ids=row.input_ids + ids, blind_from=len(row.input_ids))
            yield whole, PrefixState(self.engine, logits, state)

    # Back to answers

    def recipe(self, text: str, search: Search | None = None) -> AnswerRecipe:
        return AnswerRecipe(self.engine.photos.pixels, text, search)

    def answers(
        self,
        written: Sequence[Sequence[Hypothesis]],
        rows: Sequence[PromptRow],
        prompts: Sequence[PictureText],
        search: Search,
        explain: bool,
        as_sentence: bool,
    ) -> list[Answer]:
        """What was ``written`` behind each prompt, the best text first, as answers."""
        answers = []
        for hypotheses, row, (text, images) in zip(written, rows, prompts, strict=True):
            answer = self.answer(hypotheses, row, images if explain else None, as_sentence)
            answers.append(replace(answer, recipe=self.recipe(text, search)))
        return answers

    def answer(
        self,
        hypotheses: Sequence[Hypothesis],
        row: PromptRow,
        images: Sequence[ImageSource] | None = None,
        as_sentence: bool = False,
        method: Method = "language model",
    ) -> Answer:
        """The texts that follow a row as an answer. ``images``: the pictures of the prompt, for the evidence; None = no evidence."""

        def maps(ids: Sequence[int], spans: Spans) -> Floats:
            features = self.encode(images or ())
            by_word = mean_over_words(self.engine.maps(row.input_ids, features, ids, row.blind_from), spans)
            return over_photos(by_word, images or (), self.engine.photos.pixels)

        evidence, length = maps if images else None, len(row.input_ids)
        return to_answer(self.name, self.spec.tokenizer, hypotheses, evidence, as_sentence, method, length)
