"""From the tokens that a model writes to words, answers and their evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from triptych.evidence import Evidence, Floats
from triptych.generate import Hypothesis
from triptych.tasks.answer import Answer, Method
from triptych.text.tokenizer import TextTokenizer

Spans = Sequence[tuple[int, int]]  # of each word its tokens: the first, and the one behind the last


def decode_pieces(tokenizer: TextTokenizer, tokens: Iterable[tuple[int, float]]) -> Iterator[str]:
    """The text of ids (with log-probabilities) piece by piece, whole characters at a time."""
    text, ids = "", []
    for token, _ in tokens:
        ids.append(token)
        whole = tokenizer.decode(ids)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            yield whole[len(text) :]
            text = whole


def sentence(text: str) -> str:
    """``"a dog runs"`` -> ``"A dog runs."``"""
    return f"{text[:1].upper()}{text[1:].rstrip(' .')}." if text else ""


def words_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """The words that the tokens make up, and each word's tokens."""
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


def join_word_pieces(pieces: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Word pieces (``##`` continues a word) as words, and each word's pieces."""
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    for i, piece in enumerate(pieces):
        if piece.startswith("##") and words:
            words[-1] += piece[2:]
            spans[-1] = (spans[-1][0], i + 1)
        else:
            words.append(piece)
            spans.append((i, i + 1))
    return tuple(words), spans


def sum_over_words(maps: Floats, spans: Spans) -> Floats:
    """Maps of tokens ``[T, ..]`` -> of words, each the sum over its tokens."""
    return np.stack([maps[first:end].sum(0) for first, end in spans])


def mean_over_words(maps: Floats, spans: Spans) -> Floats:
    """Maps of tokens ``[T, ..]`` -> of words, each the mean over its tokens."""
    return np.stack([maps[first:end].mean(0) for first, end in spans])


def to_answer(
    model: str,
    tokenizer: TextTokenizer,
    hypotheses: Sequence[Hypothesis],
    maps: Callable[[Sequence[int], Spans], Floats] | None = None,
    as_sentence: bool = False,
    method: Method = "language model",
) -> Answer:
    """The best hypothesis as an answer, the others as its alternatives.

    ``maps``: where the model looked at each word, from the ids and the words' tokens; None = no evidence.
    """
    best = hypotheses[0]
    texts = [tokenizer.decode(h.ids).strip() for h in hypotheses]
    if as_sentence:
        texts = [sentence(text) for text in texts]
    words, spans = words_of(tokenizer, best.ids)
    logprobs = tuple(sum(best.logprobs[a:b]) for a, b in spans)
    evidence = Evidence(words, maps(best.ids, spans), logprobs) if maps and words else None
    alternatives = tuple(zip(texts[1:], (h.logprob for h in hypotheses[1:]), strict=True))
    return Answer(texts[0], model, best.logprob, words, logprobs, evidence, alternatives, method=method)
