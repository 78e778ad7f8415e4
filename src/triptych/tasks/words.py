"""From the tokens that a model wrote to words, answers and their evidence."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from triptych.evidence import Evidence, Floats
from triptych.generate import Hypothesis, Token, to_hypothesis
from triptych.tasks.answer import Answer, Method, TextEnd, WrittenToken
from triptych.text.tokenizer import TextTokenizer

Spans = Sequence[tuple[int, int]]  # the tokens of each word: [first, end)
Pieces = Generator[str, None, TextEnd]  # yields the pieces of a text as it is written


class Spelling(NamedTuple):
    """How ids are spelt. ``decode``: ids -> text, without special tokens; ``names``: those of the special tokens."""

    decode: Callable[[Sequence[int]], str]
    names: Mapping[int, str]

    def token(self, before: Sequence[int], token: int) -> str:
        """The text that ``token`` adds after the ids ``before``; U+FFFD for the first bytes of a character."""
        if token in self.names:
            return self.names[token]
        text = self.decode(before).rstrip("\N{REPLACEMENT CHARACTER}")
        return self.decode([*before, token])[len(text) :]


def tokenizer_spelling(tokenizer: TextTokenizer) -> Spelling:
    return Spelling(tokenizer.decode, {token: name for name, token in tokenizer.specials.items()})


def decode_pieces(tokenizer: TextTokenizer, tokens: Generator[Token, None, bool], prompt_tokens: int) -> Pieces:
    """The text of ``generate.stream`` in pieces of whole characters."""
    text, ids = "", list[int]()

    def piece_of(token: int) -> str:
        nonlocal text
        ids.append(token)
        whole = tokenizer.decode(ids)
        if whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        before, text = text, whole
        return whole[len(before) :]

    return (yield from pieces_of_tokens(tokens, piece_of, tokenizer_spelling(tokenizer), prompt_tokens))


def pieces_of_tokens(
    tokens: Generator[Token, None, bool], piece_of: Callable[[int], str], spelling: Spelling, prompt_tokens: int = 0
) -> Pieces:
    """``piece_of`` each token of ``generate.stream``, without empty pieces."""
    written: list[Token] = []
    while True:
        try:
            written.append(next(tokens))
        except StopIteration as end:
            text = to_hypothesis(written, frozenset())
            return text_end([text], spelling, prompt_tokens)._replace(finished=bool(end.value))
        if piece := piece_of(written[-1].id):
            yield piece


def recorded_pieces(pieces: Pieces, record: Callable[[str], object]) -> Pieces:
    """The same pieces; ``record`` is called with each first."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            ended: TextEnd = end.value
            return ended
        record(piece)
        yield piece


def changed_pieces(pieces: Pieces, change: Callable[[Iterator[str]], Iterator[str]]) -> Pieces:
    """What ``change`` makes of the pieces; the text ends as it did."""
    ends: list[TextEnd] = []

    def plain() -> Iterator[str]:
        ends.append((yield from pieces))

    yield from change(plain())
    return ends[0]


def in_one_piece(answer: Answer) -> Pieces:
    """An answer that is not written token by token."""
    yield answer.text
    return answer.end


def sentence(text: str) -> str:
    """``"a dog runs"`` -> ``"A dog runs."``"""
    return f"{text[:1].upper()}{text[1:].rstrip(' .')}." if text else ""


def words_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """The words of a text, and the tokens of each."""
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
    """The words of word pieces (``##`` continues a word), and the pieces of each."""
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
    prompt_tokens: int = 0,
) -> Answer:
    """The first hypothesis as an answer, the others as its alternatives.

    ``maps``: computes the evidence ``[words, N, h, w]`` from the ids and the words' tokens; None = no evidence.
    """
    best = hypotheses[0]
    texts = [tokenizer.decode(h.ids).strip() for h in hypotheses]
    if as_sentence:
        texts = [sentence(text) for text in texts]
    words, spans = words_of(tokenizer, best.ids)
    logprobs = tuple(sum(best.logprobs[a:b]) for a, b in spans)
    return Answer(
        text=texts[0],
        model=model,
        logprob=best.logprob,
        tokens=words,
        logprobs=logprobs,
        evidence=Evidence(words, maps(best.ids, spans), logprobs) if maps and words else None,
        alternatives=tuple(zip(texts[1:], (h.logprob for h in hypotheses[1:]), strict=True)),
        method=method,
        end=text_end(hypotheses, tokenizer_spelling(tokenizer), prompt_tokens),
        finished_alternatives=tuple(h.finished for h in hypotheses[1:]),
    )


def text_end(hypotheses: Sequence[Hypothesis], spelling: Spelling, prompt_tokens: int = 0) -> TextEnd:
    """How the first hypothesis ended, and the tokens of all."""
    written = [spell(h, spelling) for h in hypotheses if h.likeliest]
    return TextEnd(hypotheses[0].finished, prompt_tokens, sum(len(h.ids) for h in hypotheses), tuple(written))


def spell(hypothesis: Hypothesis, spelling: Spelling) -> tuple[WrittenToken, ...]:
    """The tokens of a text with the recorded most likely ones (``Hypothesis.likeliest``)."""
    ids, logprobs = hypothesis.ids, hypothesis.logprobs
    return tuple(
        WrittenToken(
            spelling.token(ids[:i], ids[i]),
            logprobs[i],
            tuple((spelling.token(ids[:i], other), logprob) for other, logprob in likeliest),
        )
        for i, likeliest in enumerate(hypothesis.likeliest)
    )
