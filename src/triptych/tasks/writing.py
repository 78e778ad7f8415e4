"""What the systems that write with a language model share: settings, words of tokens, answers, choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.errors import InputError
from triptych.evidence import Evidence
from triptych.generate import Hypothesis, Search, log_softmax
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer
from triptych.text.tokenizer import TextTokenizer

Photos = ImageSource | Sequence[ImageSource]
Spans = Sequence[tuple[int, int]]


class Asked(NamedTuple):
    """Questions, each about its own pictures, and how to answer them."""

    images: Sequence[list[ImageSource]]
    questions: Sequence[str]
    choices: list[str] | None  # the possible answers to each; None = free
    explain: bool
    settings: Mapping[str, Any]


class Answerer:
    """How a system is asked. What it does with a question is its ``answers``."""

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
    @torch.inference_mode()
    def ask(
        self,
        images: Any,
        question: str | Sequence[str],
        choices: Sequence[str] | None = None,
        *,
        explain: bool = False,
        **settings: Any,
    ) -> Answer | list[Answer]:
        """Answer a question about one picture or several; with ``choices``, which of them is the likeliest answer.

        Args:
            images: one picture, or a list of the pictures that the question is about. Two are called left and right in the prompt.
                ``<image>`` in the question says where they stand instead.
            question: with a list of questions, ``images`` is a list of the same length, and so is the answer (each as if it were alone).
            choices: scored by the log-probability of each as the whole answer (``Answer.scores``); nothing else is answered.

        Raises:
            InputError: no picture, an empty question, fewer than two choices or one given twice, placeholders that do not match the
                pictures, a question that is too long, an unreadable picture.
        """
        if isinstance(question, str):
            return self.ask([images], [question], choices, explain=explain, **settings)[0]
        if len(images) != len(question):
            raise InputError(
                f"{len(question)} questions for {len(images)} photos or lists of photos: each needs its own"
            )
        kept = None if choices is None else check_choices(choices)
        return self.answers(Asked([as_list(shown) for shown in images], question, kept, explain, settings))

    def compare(
        self,
        left: ImageSource,
        right: ImageSource,
        question: str,
        choices: Sequence[str] = ("left", "right"),
        *,
        explain: bool = False,
    ) -> Answer:
        """Which of two photos: ``ask`` with both, and choices that tell them apart."""
        return self.ask([left, right], question, choices, explain=explain)

    def answers(self, asked: Asked) -> list[Answer]:
        """The answer to each question about its pictures."""
        raise NotImplementedError


def pieces_of(tokenizer: TextTokenizer, tokens: Iterable[tuple[int, float]]) -> Iterator[str]:
    """The text of ids (with log-probabilities) piece by piece, whole characters at a time."""
    text, ids = "", []
    for token, _ in tokens:
        ids.append(token)
        whole = tokenizer.decode(ids)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            yield whole[len(text) :]
            text = whole


def as_list(images: Photos) -> list[ImageSource]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def changed(search: Search, settings: Mapping[str, Any]) -> Search:
    """``search`` with ``settings`` changed. Raises InputError for an unknown or impossible one."""
    if unknown := set(settings) - {field.name for field in fields(Search)}:
        raise InputError(f"unknown setting {', '.join(sorted(unknown))}")
    if settings.get("temperature"):
        settings = {"beams": 1} | dict(settings)  # to sample is not to search
    return replace(search, **settings)


def sentence(text: str) -> str:
    """``"a dog runs"`` -> ``"A dog runs."``"""
    return f"{text[:1].upper()}{text[1:].rstrip(' .')}." if text else ""


def words_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """The words that the tokens make up, and each word's tokens (first, behind the last)."""
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    text = ""
    for i in range(len(ids)):
        before, text = text, tokenizer.decode(ids[: i + 1]).rstrip("\N{REPLACEMENT CHARACTER}")
        piece = text[len(before) :]
        if not words or piece[:1].isspace():
            words.append(piece.strip())
            spans.append((i, i + 1))
        else:
            words[-1] += piece
            spans[-1] = (spans[-1][0], i + 1)
    return tuple(words), spans


def to_answer(
    name: str,
    tokenizer: TextTokenizer,
    hypotheses: Sequence[Hypothesis],
    maps: Callable[[Sequence[int], Spans], NDArray[np.float32]] | None = None,
    as_sentence: bool = False,
) -> Answer:
    """The best hypothesis as an answer of the model ``name``, the others as its alternatives.

    ``maps``: draws where the model looked at each word, from the ids and the words' spans; None = no evidence.
    """
    best = hypotheses[0]
    texts = [tokenizer.decode(h.ids).strip() for h in hypotheses]
    if as_sentence:
        texts = [sentence(text) for text in texts]
    words, spans = words_of(tokenizer, best.ids)
    logprobs = tuple(sum(best.logprobs[a:b]) for a, b in spans)
    evidence = Evidence(words, maps(best.ids, spans), logprobs) if maps and words else None
    alternatives = tuple(zip(texts[1:], (h.logprob for h in hypotheses[1:]), strict=True))
    return Answer(texts[0], name, best.logprob, words, logprobs, evidence, alternatives)


def check_choices(choices: Sequence[str]) -> list[str]:
    """Raises InputError: fewer than two, an empty one, or one twice."""
    kept = [" ".join(choice.split()) for choice in choices]
    if len(kept) < 2:
        raise InputError(f"{len(kept)} choices: give at least two, or none for a free answer")
    if not all(kept):
        raise InputError("a choice is empty: give each a word")
    if len(set(kept)) < len(kept):
        twice = next(choice for choice in kept if kept.count(choice) > 1)
        raise InputError(f"the choice {twice!r} is given twice: give different ones")
    return kept


def score_choices(
    tokenizer: TextTokenizer,
    end: int,
    choices: Sequence[str],
    first: Tensor,
    go_on: Callable[[Tensor], Tensor],
    whole: bool = True,
) -> tuple[int, list[Hypothesis]]:
    """Each choice as the whole answer to one prompt, which was read once for all; or as its beginning (``whole`` false).

    Args:
        end: the token that ends an answer.
        first: ``[1, V]``, the logits of what follows the prompt.
        go_on: ``ids [C, T]`` behind the prompt -> logits ``[C, T, V]`` of what follows each.

    Returns:
        The place of the likeliest, and all with their log-probabilities.
    """
    ids = [[*tokenizer.encode(f" {choice}"), *[end] * whole] for choice in choices]
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[end] * (longest - len(row))] for row in ids], device=first.device)
    begin = first.expand(len(ids), -1)[:, None]
    logits = torch.cat([begin, go_on(padded[:, :-1])], 1) if longest > 1 else begin
    told = log_softmax(logits, Search(frozenset({end}))).gather(2, padded[..., None])[..., 0]
    texts = [tuple(row[:-1] if whole else row) for row in ids]
    found = [Hypothesis(text, tuple(told[i, : len(ids[i])].tolist()), whole) for i, text in enumerate(texts)]
    return max(range(len(found)), key=lambda i: found[i].logprob), found
