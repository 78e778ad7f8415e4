"""What a training step of BLIP-2 reads: photos' cells, captions in both alphabets, questions with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.data import Photo
from triptych.data.english.kinds import Question
from triptych.data.english.pairs import PairQuestion
from triptych.text.prompt import IGNORED, qformer_texts, question_prompt, split_at_images
from triptych.text.tokenizer import TextTokenizer
from triptych.text.vocabulary import plain_caption
from triptych.text.wordpiece import WordPieces

PICTURE = -1  # in ids: one query of a soft prompt stands here


class Captions(NamedTuple):
    """K captions of each of P photos as word pieces: ``[P * K, T]``, True on text."""

    input_ids: Tensor
    text_mask: Tensor


class Rows(NamedTuple):
    """M prompts with answers. ``photos [R]``: which photo of the batch each soft prompt shows, in the order in which the prompts need
    them; ``question_ids``, ``question_mask [R, Tq]``: what the Q-Former reads with it; ``input_ids [M, T]`` with PICTURE where the Q
    queries of a soft prompt stand; ``labels [M, T]``: what follows each token."""

    photos: Tensor
    question_ids: Tensor
    question_mask: Tensor
    input_ids: Tensor
    token_mask: Tensor
    labels: Tensor


class Batch(NamedTuple):
    image_features: Tensor  # [P, L, Dv]
    image_ids: Tensor  # [P]
    captions: Captions | None
    lm_captions: Tensor | None  # [P, K, T] ids of the language model with the end token, IGNORED on padding
    questions: Rows | None
    pairs: Rows | None


class Texts:
    """The captions of the training photos in both alphabets, tokenised once."""

    def __init__(
        self,
        photos: Sequence[Photo],
        words: WordPieces,
        tokenizer: TextTokenizer | None,
        max_pieces: int,
        max_tokens: int,
    ) -> None:
        self.words = words
        self.pieces = [words.encode(p.captions, max_pieces, cut=True) for p in photos]
        self.tokens: list[list[list[int]]] = []
        if tokenizer is not None:
            end = min(tokenizer.eos_ids)
            self.tokens = [
                [[*tokenizer.encode(f" {plain_caption(c)}")[: max_tokens - 1], end] for c in p.captions] for p in photos
            ]

    def captions(self, rows: Sequence[int], choice: Sequence[Sequence[int]], width: int | None = None) -> Captions:
        """The chosen captions of each photo, padded to ``width`` (None: to the longest)."""
        ids = [self.pieces[row][0][k] for row, ks in zip(rows, choice, strict=True) for k in ks]
        shown = [self.pieces[row][1][k] for row, ks in zip(rows, choice, strict=True) for k in ks]
        width = width or max(int(mask.sum()) for mask in shown)
        pad = [F.pad(x, (0, max(0, width - len(x))), value=self.words.pad)[:width] for x in ids]
        return Captions(torch.stack(pad), torch.stack([F.pad(x, (0, max(0, width - len(x))))[:width] for x in shown]))

    def lm_captions(self, rows: Sequence[int], choice: Sequence[Sequence[int]]) -> Tensor:
        chosen = [[self.tokens[row][k] for k in ks] for row, ks in zip(rows, choice, strict=True)]
        width = max(len(ids) for ks in chosen for ids in ks)
        return torch.tensor([[ids + [IGNORED] * (width - len(ids)) for ids in ks] for ks in chosen])


def choose_captions(counts: Sequence[int], k: int, seed: int) -> list[list[int]]:
    """K captions of each photo in random order, none twice unless there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(count, generator=generator).tolist() for count in counts)
    return [[order[i % len(order)] for i in range(k)] for order in orders]


class Asked(NamedTuple):
    """A question about photos of the batch (their places in it), and its answer."""

    photos: tuple[int, ...]
    question: str
    answer: str


class QuestionRows:
    """Questions and answers as ids for the Q-Former and the language model."""

    def __init__(self, words: WordPieces, tokenizer: TextTokenizer, queries: int) -> None:
        self.words, self.tokenizer, self.queries = words, tokenizer, queries
        self.end = min(tokenizer.eos_ids)

    def __call__(self, asked: Sequence[Asked]) -> Rows:
        """Prompts with answers, padded at the end; only the answers are learnt."""
        rows = [self.row(item) for item in asked]
        width = max(len(ids) for ids, _ in rows)
        input_ids = torch.tensor([ids + [self.end] * (width - len(ids)) for ids, _ in rows])
        labels = torch.tensor([told + [IGNORED] * (width - len(told)) for _, told in rows])
        token_mask = torch.arange(width) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
        read = [text for item in asked for text in qformer_texts(item.question, len(item.photos))]
        question_ids, question_mask = self.words.encode(read, cut=True)
        photos = torch.tensor([photo for item in asked for photo in item.photos], dtype=torch.long)
        return Rows(photos, question_ids, question_mask, input_ids, token_mask, labels)

    def row(self, item: Asked) -> tuple[list[int], list[int]]:
        """Ids of the prompt and the answer, and what follows each (IGNORED within the prompt)."""
        texts = split_at_images(question_prompt(item.question, len(item.photos)), len(item.photos))
        prompt = self.tokenizer.encode(texts[0])
        for text in texts[1:]:
            prompt += [PICTURE] * self.queries + self.tokenizer.encode(text)
        answer = [*self.tokenizer.encode(f" {item.answer}"), self.end]
        return prompt + answer[:-1], [IGNORED] * (len(prompt) - 1) + answer


def draw_questions(rows: Sequence[int], questions: Sequence[Sequence[Question]], count: int, seed: int) -> list[Asked]:
    """One question each about ``count`` photos of the batch, each kind as likely."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Asked] = []

    def pick(items: Sequence[Any]) -> Any:
        return items[int(torch.randint(len(items), (1,), generator=generator))]

    for place in torch.randperm(len(rows), generator=generator).tolist():
        if len(drawn) == count:
            break
        by_kind: dict[str, list[Question]] = {}
        for question in questions[rows[place]]:
            by_kind.setdefault(question.kind, []).append(question)
        if by_kind:
            question = pick(by_kind[pick(sorted(by_kind))])
            drawn.append(Asked((place,), question.question, question.answer))
    return drawn


def asked_pairs(pairs: Sequence[PairQuestion]) -> list[Asked]:
    return [Asked((pair.left, pair.right), pair.question, pair.answer) for pair in pairs]
