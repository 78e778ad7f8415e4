"""BLIP-2 in use: captions, questions over one or several photos, and how well photos and texts match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from msgspec import to_builtins
from numpy.typing import NDArray
from torch import Tensor

from triptych.checkpoints.format import sha256_of
from triptych.errors import InputError
from triptych.evidence import Evidence
from triptych.generate import Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource
from triptych.models import Blip2Model, itg_search
from triptych.nn.decoder import Decoder, Prompt
from triptych.nn.qformer import ImageKeysValues, QFormerOutput
from triptych.systems.blip2 import Blip2, GroundedText
from triptych.tasks.answer import Answer, Match
from triptych.tasks.blip2_evidence import answer_maps, grounded_maps, joined, match_maps
from triptych.tasks.photos import PhotoMemory
from triptych.tasks.writing import (
    Answerer,
    Asked,
    Photos,
    Spans,
    as_list,
    changed,
    pieces_of,
    score_choices,
    sentence,
    to_answer,
)
from triptych.text.prompt import CAPTION_INSTRUCTION, qformer_texts, question_prompt, split_at_images
from triptych.text.tokenizer import TextTokenizer

BATCH = 16  # photos decoded together
PAIRS = 256  # photos with texts that are matched together
MAX_PHOTOS = 16  # of one question
WRITERS = ("lm", "qformer")


class Blip2Tasks(Answerer):
    """A BLIP-2 model in use. A photo is encoded once for as long as it is remembered (by content)."""

    def __init__(self, blip2: Blip2Model, name: str, device: torch.device) -> None:
        self.name, self.blip2, self.device = name, blip2, device
        self.model: Blip2 = blip2.model.to(device)
        encoder: Any = self.model.vision_encoder.to(memory_format=torch.channels_last)
        self.encode = PhotoMemory(self.model.encode, encoder.image_size, encoder.mean, encoder.std, device)

    # Translating

    @overload
    def caption(
        self, images: Sequence[ImageSource], *, explain: bool = ..., writer: str | None = ..., **settings: Any
    ) -> list[Answer]: ...
    @overload
    def caption(
        self, images: ImageSource, *, explain: bool = ..., writer: str | None = ..., **settings: Any
    ) -> Answer: ...
    @torch.inference_mode()
    def caption(
        self, images: Photos, *, explain: bool = False, writer: str | None = None, **settings: Any
    ) -> Answer | list[Answer]:
        """Caption one photo, or a list of photos (each answered as if it were alone).

        Args:
            images: a path, URL, data URL, bytes, PIL image or array; or a list of them.
            explain: also return where the model looked at each word (``Answer.evidence``).
            writer: ``lm``, the language model behind the soft prompt; ``qformer``, the Q-Former itself (ITG); None = the model's own.
            settings: fields of ``generate.Search``: beams, max_new_tokens, length_penalty, n_best, temperature, top_k, top_p, seed.

        Raises:
            InputError: a photo cannot be read, or a setting is out of bounds.
        """
        if not isinstance(images, list | tuple):
            return self.caption([images], explain=explain, writer=writer, **settings)[0]  # type: ignore[list-item]
        if writer not in (None, *WRITERS):
            raise InputError(f"unknown writer {writer!r}: choose {' or '.join(WRITERS)}")
        if (writer or self.model.config.writer) == "qformer" or (writer is None and self.model.lm is None):
            return self.grounded_captions(images, explain, **settings)
        search = self.search(**settings)
        answers: list[Answer] = []
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            rows = [self.read(self.blip2.prompts.caption, [image], explain=explain) for image in part]
            found = generate(self.lm, self.prompts(rows), search)
            answers += [self.answer(h, row, explain, sentence=True) for h, row in zip(found, rows, strict=True)]
        return answers

    def grounded_captions(self, images: Sequence[ImageSource], explain: bool, **settings: Any) -> list[Answer]:
        """Captions by the Q-Former itself, as the first stage learns to write them (ITG)."""
        if self.model.heads is None or not self.model.config.writes:
            raise InputError(f"{self.name} cannot write captions: it has no language model, and no head to do without")
        words, search = self.blip2.words, itg_search(self.blip2.words, self.search(**settings))
        answers = []
        for first in range(0, len(images), BATCH):
            image = self.image_keys_values(images[first : first + BATCH])
            for i, (best, *others) in enumerate(generate(GroundedText(self.model, words.dec), image, search)):
                texts = [sentence(words.decode(h.ids)) for h in (best, *others)]
                told, spans = joined([words.words[piece] for piece in best.ids])
                if told[-1:] == (".",):
                    told, spans = told[:-1], spans[:-1]
                logprobs = tuple(sum(best.logprobs[a:b]) for a, b in spans)
                evidence = None
                if explain and told:
                    one = image.select(slice(i, i + 1))
                    evidence = Evidence(told, grounded_maps(self.model, one, (words.dec, *best.ids), spans), logprobs)
                alternatives = tuple(zip(texts[1:], (h.logprob for h in others), strict=True))
                answers.append(Answer(texts[0], self.name, best.logprob, told, logprobs, evidence, alternatives))
        return answers

    def stream(self, image: ImageSource, question: str | None = None, **settings: Any) -> Iterator[str]:
        """A caption, or the answer to a question, piece by piece as it is written (greedy, or sampled with a ``temperature``)."""
        prompts = self.blip2.prompts
        prompt = prompts.caption if question is None else question_prompt(question, 1, prompts)
        with torch.inference_mode():
            inputs = self.prompts([self.read(prompt, [image], question)])
        yield from pieces_of(self.tokenizer, stream(self.lm, inputs, self.search(**({"beams": 1} | settings))))

    # Referencing

    def answers(self, asked: Asked) -> list[Answer]:
        search = self.search(**({"max_new_tokens": 20} | dict(asked.settings)))
        answers: list[Answer] = []
        about = list(zip(asked.images, asked.questions, strict=True))
        for first in range(0, len(about), BATCH):
            rows = [self.asked(shown, text, asked.explain) for shown, text in about[first : first + BATCH]]
            if asked.choices is not None:
                answers += [self.choose(row, asked.choices, asked.explain) for row in rows]
                continue
            found = generate(self.lm, self.prompts(rows), search)
            answers += [self.answer(h, row, asked.explain) for h, row in zip(found, rows, strict=True)]
        return answers

    def asked(self, photos: list[ImageSource], question: str, explain: bool = False) -> Row:
        """One question with its photos, read."""
        if not 1 <= len(photos) <= MAX_PHOTOS:
            raise InputError(f"a question about {len(photos)} photos: give 1 to {MAX_PHOTOS}")
        return self.read(question_prompt(question, len(photos), self.blip2.prompts), photos, question, explain)

    # Matching

    @torch.inference_mode()
    def match(self, images: Photos, texts: str | Sequence[str], *, explain: bool = False) -> list[Match]:
        """How well every photo fits every text, photo by photo.

        A photo's keys and values are computed once for all texts. ``explain``: where each word was looked for.

        Raises:
            InputError: no photo, an empty text, a text too long for the Q-Former, an unreadable photo; a model that cannot match.
        """
        self.check_matches()
        photos = as_list(images)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not photos or not texts:
            raise InputError("matching needs at least one photo and one text")
        input_ids, text_mask = self.word_pieces(texts)
        text_features = self.model.text_features(input_ids, text_mask)
        matches = []
        for i, photo in enumerate(photos):
            image = self.image_keys_values([photo])
            queries = self.model.read_photos(image).queries
            for first in range(0, len(texts), PAIRS):
                part = slice(first, first + PAIRS)
                scores = self.model.match(image, queries, text_features[part], input_ids[part], text_mask[part])
                matches += [
                    Match(i, first + t, *numbers)
                    for t, numbers in enumerate(zip(*(x[0].tolist() for x in scores), strict=True))
                ]
        if explain:
            matches = [replace(m, evidence=self.match_evidence(photos[m.image], texts[m.text])) for m in matches]
        return matches

    def check_matches(self) -> None:
        """Raises InputError: the model has no heads of the first stage."""
        if self.model.heads is None:
            raise InputError(f"{self.name} cannot match: its checkpoint has no heads of the first stage")

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights that decide features for contrast."""
        encoder = self.blip2.config.encoder
        bridge = {k: v for k, v in self.model.state_dict().items() if not k.startswith(("lm.", "projection."))}
        return f"{sha256_of(bridge)[:32]}-{encoder.name}-{encoder.image_size}"

    @torch.inference_mode()
    def itc_images(self, images: Sequence[ImageSource]) -> NDArray[np.float32]:
        """Features for contrast of each photo's queries, ``[B, Q, E]``, of length 1."""
        self.check_matches()
        assert self.model.heads is not None
        queries = self.model.read_photos(self.image_keys_values(images)).queries
        return self.model.heads.image_features(queries).float().cpu().numpy()

    @torch.inference_mode()
    def itc_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Features for contrast of each text, ``[T, E]``, of length 1."""
        self.check_matches()
        return self.model.text_features(*self.word_pieces(texts)).float().cpu().numpy()

    # The way from photos and text to the language model and back

    @property
    def lm(self) -> Decoder:
        if self.model.lm is None:
            raise InputError(f"{self.name} has no language model: it matches and captions, but cannot answer questions")
        return self.model.decoder

    @property
    def tokenizer(self) -> TextTokenizer:
        assert self.blip2.tokenizer is not None
        return self.blip2.tokenizer

    def search(self, **settings: Any) -> Search:
        """The model's own way of writing, with ``settings`` changed. Raises InputError for an unknown or impossible one."""
        return changed(self.blip2.search, settings)

    def image_keys_values(self, images: Sequence[ImageSource]) -> ImageKeysValues:
        """Photos as the Q-Former attends to them."""
        return self.model.image_keys_values(torch.cat([self.encode(image) for image in images]))

    def word_pieces(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask for the Q-Former. Raises InputError: a text is empty or too long."""
        if any(not text.strip() for text in texts):
            raise InputError("a text is empty: say what to look for")
        ids, mask = self.blip2.words.encode(texts, self.model.config.qformer.max_positions)
        return ids.to(self.device), mask.to(self.device)

    def read(
        self, prompt: str, images: Sequence[ImageSource], question: str | None = None, explain: bool = False
    ) -> Row:
        """Look at the photos of one prompt, with the question if the Q-Former reads it."""
        lm, texts, prompts = self.lm, split_at_images(prompt, len(images)), self.blip2.prompts
        begins = next((i for i, text in enumerate(texts) if text), len(images)) if prompts.published else None
        ids = [self.tokenizer.encode(text, begin=i == begins) for i, text in enumerate(texts)]
        row = [torch.tensor(piece, dtype=torch.long, device=self.device) for piece in ids]
        asked = None
        instruction = prompt if prompts.whole else question or CAPTION_INSTRUCTION
        if self.model.config.instructed:
            alike = qformer_texts(instruction, 1) * len(images)
            asked = self.word_pieces(alike if prompts.whole else qformer_texts(instruction, len(images)))
        seen = self.model.read_photos(self.image_keys_values(images), asked, explain)
        soft = self.model.soft_prompt(seen.queries)
        row = [row[0], *(piece for pair in zip(soft, row[1:], strict=True) for piece in pair)]
        length = sum(map(len, row))
        if length >= lm.config.max_positions:
            raise InputError(
                f"the prompt has {length} tokens: the language model reads {lm.config.max_positions} at most"
            )
        return Row(row, seen)

    def prompts(self, rows: Sequence[Row]) -> Prompt:
        return self.model.prompt([row.pieces for row in rows])

    def answer(self, hypotheses: Sequence[Hypothesis], row: Row, explain: bool, sentence: bool = False) -> Answer:
        def maps(ids: Sequence[int], spans: Spans) -> NDArray[np.float32]:
            return answer_maps(self.model, row.pieces, row.seen, ids, spans)

        return to_answer(self.name, self.tokenizer, hypotheses, maps if explain else None, sentence)

    def match_evidence(self, image: ImageSource, text: str) -> Evidence:
        """Where each word of a text was looked for in a photo; behind them, as one word, where the best query of contrast looked."""
        input_ids, text_mask = self.word_pieces([text])
        words, spans = joined([self.blip2.words.words[i] for i in input_ids[0, 1:-1].tolist()])
        maps = match_maps(self.model, self.image_keys_values([image]), input_ids, text_mask, spans)
        return Evidence((*words, "(whole text)"), maps, (0.0,) * len(maps))

    def choose(self, row: Row, choices: Sequence[str], explain: bool) -> Answer:
        """The choice that the language model finds the likeliest answer; the prompt is read once for all."""
        lm = self.lm
        logits, cache = lm.prefill(self.prompts([row]))
        each = cache.fork(torch.zeros(len(choices), dtype=torch.long, device=self.device))
        end = min(self.tokenizer.eos_ids)
        best, found = score_choices(self.tokenizer, end, choices, logits, lambda ids: lm.logits(lm(ids, cache=each)))
        answer = self.answer([found[best]], row, explain)
        return replace(answer, text=choices[best], scores={c: h.logprob for c, h in zip(choices, found, strict=True)})

    def info(self) -> dict[str, Any]:
        """Parts, parameters, memory, licence and figures."""
        model, config = self.model, self.blip2.config
        count = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
        frozen = count["vision_encoder"] + count.get("lm", 0)
        return {
            "model": self.name,
            "system": "BLIP-2",
            "encoder": config.encoder.name,
            "language_model": config.lm and config.lm.name,
            "grid": list(self.model.vision_encoder.grid),
            "image_size": config.encoder.image_size,
            "queries": model.config.qformer.queries,
            "parameters": count,
            "parameters_trained": sum(count.values()) - frozen,
            "parameters_frozen": frozen,
            "memory_mb": round(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20, 1),
            "config": asdict(model.config),
            "search": to_builtins(config.search),
            "card": config.card.to_dict(),
        }


class Row:
    """One prompt: its pieces in order (ids, soft prompts), and what the Q-Former saw in its photos."""

    def __init__(self, pieces: list[Tensor], seen: QFormerOutput) -> None:
        self.pieces, self.seen = pieces, seen
