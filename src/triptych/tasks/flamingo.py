"""Flamingo in use: captions, questions, and whatever examples in the prompt show how to do; dialogue is in ``chat``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any, overload

import numpy as np
import torch
from msgspec import to_builtins
from numpy.typing import NDArray
from torch import Tensor

from triptych.errors import InputError
from triptych.generate import Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource, content_hash, load_image
from triptych.models import FlamingoModel
from triptych.systems.flamingo import Flamingo, flamingo_prompt
from triptych.tasks.answer import Answer
from triptych.tasks.chat import ANSWER_TOKENS, MAX_TOKENS, Chat
from triptych.tasks.chat import MAX_PICTURES as CHAT_PICTURES
from triptych.tasks.flamingo_evidence import answer_maps
from triptych.tasks.photos import PhotoMemory
from triptych.tasks.prefix import Begun, PrefixMemory, Row, alike
from triptych.tasks.writing import (
    Answerer,
    Asked,
    Photos,
    Spans,
    as_list,
    changed,
    check_choices,
    pieces_of,
    score_choices,
    to_answer,
)
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
    split_at_images,
    statement,
)
from triptych.text.tokenizer import TextTokenizer

BATCH = 16  # prompts decoded together
MAX_PICTURES = 128  # of one prompt
REMEMBERED = 512  # pictures whose visual tokens are kept

Shot = tuple[ImageSource | None, str]  # an example: a picture, or none, and its text


def compared(question: str, images: Sequence[ImageSource]) -> bool:
    """Whether a question is about several pictures and does not say itself where they stand."""
    return len(images) > 1 and IMAGE not in question


class FlamingoTasks(Answerer):
    """A Flamingo in use. A picture is encoded once for as long as it is remembered (by content); a prompt that begins as the one before
    is read only from where they part."""

    def __init__(self, flamingo: FlamingoModel, name: str, device: torch.device) -> None:
        self.name, self.flamingo, self.device = name, flamingo, device
        self.model: Flamingo = flamingo.model.to(device)
        encoder: Any = self.model.vision_encoder.to(memory_format=torch.channels_last)
        self.encode = PhotoMemory(self.model.encode, encoder.image_size, encoder.mean, encoder.std, device)
        self.prefix = PrefixMemory(self.model, flamingo.end_id)
        self.resampled: dict[tuple[str, int], Tensor] = {}  # by content and place: [R, D]

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.flamingo.tokenizer

    def search(self, **settings: Any) -> Search:
        """The model's own way of writing, with ``settings`` changed. Raises InputError for an unknown or impossible one."""
        return changed(self.flamingo.search, settings)

    # Translating

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
        told = (f"{CAPTION if image is not None else 'Caption:'} {shot_text(text)}{END}" for image, text in shots)
        examples, shown = "".join(told), [load_image(image) for image, _ in shots if image is not None]
        prompts = [(examples + CAPTION, [*shown, image]) for image in images]
        return self.write(prompts, self.search(**settings), explain, as_sentence=True)

    # Referencing

    def answers(self, asked: Asked) -> list[Answer]:
        for shown in asked.images:
            self.check_count(len(shown))
        about = list(zip(asked.questions, asked.images, strict=True))
        if asked.choices is not None:
            return [self.chosen(question, shown, asked.choices, asked.explain) for question, shown in about]
        search = self.search(**({"max_new_tokens": ANSWER_TOKENS} | dict(asked.settings)))
        plain = [(question_prompt(q, len(shown)), shown) for q, shown in about if not compared(q, shown)]
        written = iter(self.write(plain, search, asked.explain))
        return [
            self.by_captions(q, shown, asked.explain, asked.settings) if compared(q, shown) else next(written)
            for q, shown in about
        ]

    def by_captions(
        self, question: str, images: Sequence[ImageSource], explain: bool, settings: Mapping[str, Any]
    ) -> Answer:
        """A free answer about several pictures: they are captioned first, and it draws on what was said of each."""
        search = self.search(**({"max_new_tokens": ANSWER_TOKENS * len(images)} | dict(settings)))
        with self.told(question, images) as (row, begun):
            (found,) = generate(begun, None, search)
        return self.answer(found, row, images if explain else None)

    @contextmanager
    def told(self, question: str, images: Sequence[ImageSource]) -> Iterator[tuple[Row, Begun]]:
        """Pictures with their captions (each written as if it were alone, or the first would tell what the others show) and then a
        question, read. From there on the text looks at no picture: it would see the last one alone, and say of all what it sees in that."""
        ids = self.tokenizer.encode(question_after_pictures(question))
        captions = self.write([(CAPTION, [image]) for image in images], self.search())
        row = self.row(captions_by_picture([caption.text for caption in captions]), images)
        self.check_length(len(row.input_ids) + len(ids))
        with self.prefix.begun(row) as begun:
            hidden = self.model(torch.tensor([ids], device=self.device), state=begun.state, blind_from=0)
            logits = self.model.lm.logits(hidden[:, -1:])[:, 0]
            whole = row._replace(input_ids=row.input_ids + ids, blind_from=len(row.input_ids))
            yield whole, Begun(self.model, logits, begun.state)

    def chosen(self, question: str, images: Sequence[ImageSource], choices: Sequence[str], explain: bool) -> Answer:
        """The likeliest choice; of a question that asks which of the photos shows something, by ``which``."""
        prompt = question_prompt(question, len(images))
        places = pictures_named_by(question, choices, len(images))
        if places is None:
            return self.choose(prompt, images, choices, explain)
        return self.which(statement(question), images, [choices[places.index(n)] for n in range(len(images))], explain)

    @torch.inference_mode()
    def which(self, text: str, images: Sequence[ImageSource], names: Sequence[str], explain: bool) -> Answer:
        """The photo whose caption would sooner begin with ``text``, by its log-probability (``Answer.scores``, by ``names``).

        The paper, too, classifies by the likelihood of texts (section 3.4). A small language model is much better at saying what a photo
        shows than at answering "left" or "right".
        """
        self.check_length(self.length(f"{CAPTION} {text}", 1))
        rows = [self.row(CAPTION, [image]) for image in images]
        found = []
        for row in rows:
            with self.prefix.begun(row) as begun:
                found.append(self.scored(begun, [text], whole=False)[1][0])
        best = max(range(len(found)), key=lambda n: found[n].logprob)

        def maps(ids: Sequence[int], spans: Spans) -> NDArray[np.float32]:
            seen = zip(rows, images, strict=True)
            shown = [answer_maps(self.model, row.input_ids, self.features([image]), ids, spans) for row, image in seen]
            return np.concatenate(shown, 1)

        answer = to_answer(self.name, self.tokenizer, [found[best]], maps if explain else None)
        return replace(answer, text=names[best], scores={n: h.logprob for n, h in zip(names, found, strict=True)})

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
        text = few_shot([(shot is not None, said) for shot, said in shots], prompt)
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
        return self.write([(text, images)], self.search(**settings), explain)[0]

    @torch.inference_mode()
    def most_similar(self, image: ImageSource, shots: Sequence[Shot], count: int) -> list[Shot]:
        """The ``count`` examples whose pictures are most like ``image`` by the cosine of their mean features, the most similar last
        (Flamingo's RICES, after Yang et al. 2022)."""
        pictured = [shot for shot in shots if shot[0] is not None]
        if not 1 <= count <= len(pictured):
            raise InputError(f"{count} similar examples of {len(pictured)} with pictures: choose 1 to {len(pictured)}")

        def direction(source: Any) -> Tensor:
            return torch.nn.functional.normalize(self.encode(source).mean(1)[0], dim=0)

        query = direction(image)
        likeness = [float(query @ direction(source)) for source, _ in pictured]
        order = sorted(range(len(pictured)), key=likeness.__getitem__)
        return [pictured[i] for i in order[-count:]]

    def stream(self, images: Photos, question: str | None = None, **settings: Any) -> Iterator[str]:
        """A caption, or the answer to a question, piece by piece as it is written (greedy, or sampled with a ``temperature``)."""
        shown = as_list(images)
        if question is None:
            return self.streamed(CAPTION, shown, self.search(**({"beams": 1} | settings)))
        several = compared(question, shown)
        room = ANSWER_TOKENS * (len(shown) if several else 1)
        search = self.search(**({"beams": 1, "max_new_tokens": room} | settings))
        if several:
            return self.streamed_answer(question, shown, search)
        return self.streamed(question_prompt(question, len(shown)), shown, search)

    @torch.inference_mode()
    def streamed(self, text: str, images: Sequence[ImageSource], search: Search) -> Iterator[str]:
        """What follows a prompt, piece by piece."""
        with self.prefix.begun(self.row(text, images)) as begun:
            yield from pieces_of(self.tokenizer, stream(begun, None, search))

    @torch.inference_mode()
    def streamed_answer(self, question: str, images: Sequence[ImageSource], search: Search) -> Iterator[str]:
        """The answer to a question about several pictures, piece by piece."""
        with self.told(question, images) as (_, begun):
            yield from pieces_of(self.tokenizer, stream(begun, None, search))

    def chat(self) -> Chat:
        """A dialogue over any number of pictures."""
        tokens, pictures = self.model.lm.config.max_positions, self.model.config.max_pictures or CHAT_PICTURES
        return Chat(self, min(MAX_TOKENS, tokens), min(CHAT_PICTURES, pictures))

    # The way from pictures and text to the language model and back

    def check_count(self, pictures: int) -> None:
        if not 1 <= pictures <= MAX_PICTURES:
            raise InputError(f"a prompt with {pictures} pictures: give 1 to {MAX_PICTURES}")

    def check_length(self, tokens: int) -> None:
        limit = self.model.lm.config.max_positions
        if tokens >= limit:
            raise InputError(f"the prompt has {tokens} tokens: the language model reads {limit} at most")

    @torch.inference_mode()
    def row(self, text: str, images: Sequence[ImageSource]) -> Row:
        """A text with its placeholders as ids, its pictures as visual tokens.

        Raises:
            InputError: pictures and placeholders do not match in number, a picture cannot be read, or the prompt is too long.
        """
        ids = self.ids(text, len(images))
        self.check_length(len(ids))
        photos = [load_image(image) for image in images]
        hashes = [content_hash(photo) for photo in photos]
        waiting = iter(hashes)
        signature = tuple(next(waiting) if i == self.model.config.image_id else i for i in ids)
        return Row(ids, signature, self.visual_tokens(photos, hashes))

    def ids(self, text: str, pictures: int) -> list[int]:
        """Ids of a text, ``image_id`` where a picture stands, ``end_id`` behind an example."""
        self.check_count(pictures)
        ids = self.tokenizer.encode("", begin=True)
        for i, between in enumerate(split_at_images(text, pictures)):
            ids += [self.model.config.image_id] * (i > 0)
            for n, piece in enumerate(between.split(END)):
                ids += [self.flamingo.end_id] * (n > 0) + self.tokenizer.encode(piece)
        return ids

    def length(self, text: str, pictures: int) -> int:
        """Tokens of a text with so many pictures."""
        return len(self.ids(text, pictures))

    def features(self, images: Sequence[ImageSource]) -> Tensor:
        """``[N, L, Dv]``."""
        return torch.cat([self.encode(image) for image in images])

    def visual_tokens(self, photos: Sequence[ImageSource], hashes: Sequence[str]) -> Tensor:
        """``[N, R, D]``, resampled once for as long as they are remembered. A picture's place counts where places have embeddings."""
        places = self.model.config.max_pictures is not None
        keys = [(key, number if places else 1) for number, key in enumerate(hashes, 1)]
        known = self.resampled
        kept = {key: known[key] for key in keys if key in known}
        new = {key: photo for key, photo in zip(keys, photos, strict=True) if key not in kept}
        if new:
            numbers = torch.tensor([number for _, number in new], device=self.device)
            kept |= zip(new, self.model.resampler(self.features(list(new.values())), numbers), strict=True)
        latest = list((known | kept).items())[-max(REMEMBERED, len(kept)) :]
        self.resampled = dict(latest)  # a new one: other threads may be reading the old one
        return torch.stack([kept[key] for key in keys])

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[tuple[str, Sequence[ImageSource]]],
        search: Search,
        explain: bool = False,
        as_sentence: bool = False,
    ) -> list[Answer]:
        """What follows each prompt."""
        answers = []
        for first in range(0, len(prompts), BATCH):
            part = prompts[first : first + BATCH]
            rows = [self.row(*prompt) for prompt in part]
            for row, (_, images), found in zip(rows, part, self.generate(rows, search), strict=True):
                answers.append(self.answer(found, row, images if explain else None, as_sentence))
        return answers

    def generate(self, rows: Sequence[Row], search: Search) -> list[list[Hypothesis]]:
        if len(rows) == 1:
            with self.prefix.begun(rows[0]) as begun:
                return generate(begun, None, search)
        shared = min(alike(rows[0].signature, row.signature) for row in rows)
        shared = min(shared, *(len(row.input_ids) - 1 for row in rows))
        first = rows[0].until(shared)
        with (
            self.prefix.begun(first) if shared else nullcontext() as begun
        ):  # examples that all rows begin with are read once
            state = (
                begun.state.reorder(torch.zeros(1, len(rows), dtype=torch.long, device=self.device)) if begun else None
            )
            pictures = len(first.visual_tokens)
            prompt = flamingo_prompt(
                [row.input_ids[shared:] for row in rows],
                torch.cat([row.visual_tokens[pictures:] for row in rows]),
                [len(row.visual_tokens) - pictures for row in rows],
                self.flamingo.end_id,
            )
            return generate(self.model, prompt._replace(state=state), search)

    def answer(
        self,
        hypotheses: Sequence[Hypothesis],
        row: Row,
        images: Sequence[ImageSource] | None = None,
        as_sentence: bool = False,
    ) -> Answer:
        """``images``: of the prompt, to show where the model looked in them; None = no evidence."""

        def maps(ids: Sequence[int], spans: Spans) -> NDArray[np.float32]:
            return answer_maps(self.model, row.input_ids, self.features(images or ()), ids, spans, row.blind_from)

        return to_answer(self.name, self.tokenizer, hypotheses, maps if images else None, as_sentence)

    @torch.inference_mode()
    def choose(self, text: str, images: Sequence[ImageSource], choices: Sequence[str], explain: bool) -> Answer:
        """The choice that the language model finds the likeliest to follow; the prompt is read once for all."""
        row = self.row(text, images)
        with self.prefix.begun(row) as begun:
            best, found = self.scored(begun, choices)
        answer = self.answer([found[best]], row, images if explain else None)
        return replace(answer, text=choices[best], scores={c: h.logprob for c, h in zip(choices, found, strict=True)})

    def scored(self, begun: Begun, texts: Sequence[str], whole: bool = True) -> tuple[int, list[Hypothesis]]:
        """What may follow a prompt that has been read: see ``score_choices``."""
        state = begun.state.reorder(torch.zeros(1, len(texts), dtype=torch.long, device=self.device))
        lm = self.model.lm
        return score_choices(
            self.tokenizer,
            self.flamingo.end_id,
            texts,
            begun.logits,
            lambda ids: lm.logits(self.model(ids, state=state)),
            whole,
        )

    def info(self) -> dict[str, Any]:
        """Parts, parameters, gates, memory, licence and figures."""
        model, config = self.model, self.flamingo.config
        count = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
        frozen = count["vision_encoder"] + count["lm"]
        gates = [(round(attn, 3), round(ffw, 3)) for attn, ffw in model.gates()]
        return {
            "model": self.name,
            "system": "Flamingo",
            "encoder": config.encoder.name,
            "language_model": config.lm and config.lm.name,
            "grid": list(model.vision_encoder.grid),
            "image_size": config.encoder.image_size,
            "latents": model.config.latents,
            "gates": {f"before block {(i + 1) * model.config.every}": pair for i, pair in enumerate(gates)},
            "parameters": count,
            "parameters_trained": sum(count.values()) - frozen,
            "parameters_frozen": frozen,
            "memory_mb": round(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20, 1),
            "config": asdict(model.config),
            "search": to_builtins(config.search),
            "card": config.card.to_dict(),
        }
