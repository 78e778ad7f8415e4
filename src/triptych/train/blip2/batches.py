"""The batches of BLIP-2's training: photos' cells, captions as ids of both vocabularies, questions with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.data import Photo
from triptych.data.english.kinds import Question
from triptych.data.english.pairs import PairQuestion
from triptych.text.prompt import DEFAULT_PROMPTS, IGNORED, Prompts, question_prompt
from triptych.text.tokenizer import TextTokenizer
from triptych.text.vocabulary import plain_caption
from triptych.text.wordpiece import WordPieces
from triptych.train.blip2.prompts import instructions, prompt_ids

PICTURE = -1  # in ids: one query of a soft prompt stands here
T = TypeVar("T")


class CaptionPieces(NamedTuple):
    """K captions of each of P photos as word pieces: ``[P * K, T]``, True on text."""

    input_ids: Tensor
    text_mask: Tensor


class AnswerRows(NamedTuple):
    """M prompts with answers. ``photos [R]``: which photo of the batch each soft prompt shows, in the order in which the prompts need
    them; ``question_ids``, ``question_mask [R, Tq]``: what the Q-Former reads with it; ``input_ids [M, T]`` with PICTURE where the Q
    queries of a soft prompt stand; ``labels [M, T]``: what follows each token."""

    photos: Tensor
    question_ids: Tensor
    question_mask: Tensor
    input_ids: Tensor
    token_mask: Tensor
    labels: Tensor


class Agreement(NamedTuple):
    """Directions in the space of the V words of a consensus, whose cosine is how well photo and caption agree. ``photos [P, V]``: of the
    captions to expect; ``captions [P * K, V]``."""

    photos: Tensor
    captions: Tensor


class WordGuidance(NamedTuple):
    """``tokens [N]`` of the language model, and what is added to the logit of each for each photo: ``weights [P, N]``."""

    tokens: Tensor
    weights: Tensor


class Blip2Items(NamedTuple):
    """A batch: P photos of L cells, and what is learnt of them."""

    image_features: Tensor  # [P, L, Dv]
    image_ids: Tensor  # [P]
    captions: CaptionPieces | None
    lm_captions: Tensor | None  # [P, K, T] ids of the language model with the end token, IGNORED on padding
    questions: AnswerRows | None
    pairs: AnswerRows | None
    agreement: Agreement | None = None  # of photos and captions; None: contrast is the cosine alone
    guidance: WordGuidance | None = None  # of the photos that the language model captions; None: by its own words alone


class CaptionTexts:
    """The captions of the training photos as ids of both vocabularies, encoded once; those by a model are for the language model alone."""

    def __init__(
        self,
        photos: Sequence[Photo],
        words: WordPieces,
        tokenizer: TextTokenizer | None,
        max_pieces: int,
        max_tokens: int,
    ) -> None:
        """``tokenizer``: of the language model, if there is one."""
        self.words, self.max_pieces = words, max_pieces
        self.pieces = [words.encode(p.captions, max_pieces, cut=True) for p in photos]
        self.tokens: list[list[list[int]]] = []
        if tokenizer is not None:
            end = min(tokenizer.eos_ids)
            self.tokens = [
                [[*tokenizer.encode(f" {plain_caption(c)}")[: max_tokens - 1], end] for c in (*p.captions, *p.written)]
                for p in photos
            ]

    def captions(self, rows: Sequence[int], choice: Sequence[Sequence[int]], full_width: bool) -> CaptionPieces:
        """The chosen captions of each photo, padded to the longest, or with ``full_width`` to the same width in all batches."""
        ids = [self.pieces[row][0][k] for row, ks in zip(rows, choice, strict=True) for k in ks]
        masks = [self.pieces[row][1][k] for row, ks in zip(rows, choice, strict=True) for k in ks]
        width = self.max_pieces if full_width else max(int(mask.sum()) for mask in masks)
        ids = [F.pad(x, (0, max(0, width - len(x))), value=self.words.pad)[:width] for x in ids]
        masks = [F.pad(x, (0, max(0, width - len(x))))[:width] for x in masks]
        return CaptionPieces(torch.stack(ids), torch.stack(masks))

    def lm_captions(self, rows: Sequence[int], choice: Sequence[Sequence[int]]) -> Tensor:
        chosen = [[self.tokens[row][k] for k in ks] for row, ks in zip(rows, choice, strict=True)]
        width = max(len(ids) for ks in chosen for ids in ks)
        return torch.tensor([[ids + [IGNORED] * (width - len(ids)) for ids in ks] for ks in chosen])


def choose_captions(counts: Sequence[int], k: int, seed: int) -> list[list[int]]:
    """K captions of each photo in random order, none twice unless there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(count, generator=generator).tolist() for count in counts)
    return [[order[i % len(order)] for i in range(k)] for order in orders]


class AnsweredQuestion(NamedTuple):
    """A question about photos of the batch (their places in it), and its answer."""

    photos: tuple[int, ...]
    question: str
    answer: str


class QuestionEncoder:
    """Questions and answers as ids for the Q-Former and the language model, behind the checkpoint's prompts."""

    def __init__(
        self, words: WordPieces, tokenizer: TextTokenizer, queries: int, prompts: Prompts = DEFAULT_PROMPTS
    ) -> None:
        self.words, self.tokenizer, self.queries, self.prompts = words, tokenizer, queries, prompts
        self.end = min(tokenizer.eos_ids)

    def __call__(self, questions: Sequence[AnsweredQuestion]) -> AnswerRows:
        """Prompts with answers, padded at the end; only the answers are learnt."""
        prompts = [question_prompt(item.question, len(item.photos), self.prompts) for item in questions]
        rows = [self.row(prompt, item) for prompt, item in zip(prompts, questions, strict=True)]
        width = max(len(ids) for ids, _ in rows)
        input_ids = torch.tensor([ids + [self.end] * (width - len(ids)) for ids, _ in rows])
        labels = torch.tensor([label + [IGNORED] * (width - len(label)) for _, label in rows])
        token_mask = torch.arange(width) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
        read = [
            text
            for prompt, item in zip(prompts, questions, strict=True)
            for text in instructions(self.prompts, prompt, item.question, len(item.photos))
        ]
        question_ids, question_mask = self.words.encode(read, cut=True)
        photos = torch.tensor([photo for item in questions for photo in item.photos], dtype=torch.long)
        return AnswerRows(photos, question_ids, question_mask, input_ids, token_mask, labels)

    def row(self, prompt: str, item: AnsweredQuestion) -> tuple[list[int], list[int]]:
        """Ids of the prompt and the answer, and what follows each (IGNORED within the prompt)."""
        first, *further = prompt_ids(self.tokenizer, self.prompts, prompt, len(item.photos))
        ids = [*first, *(i for text in further for i in (*[PICTURE] * self.queries, *text))]
        answer = [*self.tokenizer.encode(f" {item.answer}"), self.end]
        return ids + answer[:-1], [IGNORED] * (len(ids) - 1) + answer


def draw_questions(
    rows: Sequence[int], questions: Sequence[Sequence[Question]], count: int, seed: int
) -> list[AnsweredQuestion]:
    """A question about each of ``count`` photos of the batch; all kinds are equally likely."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[AnsweredQuestion] = []

    def pick(items: Sequence[T]) -> T:
        return items[int(torch.randint(len(items), (1,), generator=generator))]

    for place in torch.randperm(len(rows), generator=generator).tolist():
        if len(drawn) == count:
            break
        by_kind: dict[str, list[Question]] = {}
        for question in questions[rows[place]]:
            by_kind.setdefault(question.kind, []).append(question)
        if by_kind:
            question = pick(by_kind[pick(sorted(by_kind))])
            drawn.append(AnsweredQuestion((place,), question.question, question.answer))
    return drawn


def pair_questions(pairs: Sequence[PairQuestion]) -> list[AnsweredQuestion]:
    return [AnsweredQuestion((pair.left, pair.right), pair.question, pair.answer) for pair in pairs]
