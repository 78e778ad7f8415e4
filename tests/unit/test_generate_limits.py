"""Texts that say things once, and texts of a least length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from triptych.errors import InputError
from triptych.generate import Search, generate, stream
from triptych.logits import penalise


class Parrot:
    """A ``StepModel`` that likes the tokens 5, 6, 7 in this order of preference, whatever came before; 0 ends a text."""

    def __init__(self, liked: Sequence[int] = (5, 6, 7, 0)) -> None:
        self.liked = liked

    def logits(self, rows: int) -> np.ndarray:
        row = np.zeros(9, np.float32)
        row[list(self.liked)] = range(4, 4 - len(self.liked), -1)
        return np.tile(row, (rows, 1))

    def prefill(self, inputs: int) -> tuple[np.ndarray, Any]:
        return self.logits(inputs), self

    def step(self, ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        return self.logits(len(ids)), self

    def reorder(self, rows: np.ndarray) -> Any:
        return self


@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_that_a_text_holds_once(beams: int) -> None:
    def text(**settings: Any) -> tuple[int, ...]:
        both = generate(Parrot(), 2, Search(frozenset({0}), beams=beams, max_new_tokens=6, **settings))
        assert both[0][0].ids == both[1][0].ids
        return both[0][0].ids

    assert text(min_new_tokens=6) == (5,) * 6
    assert text(once=lambda token: frozenset({token} & {5, 6}), min_new_tokens=6) == (5, 6, 7, 7, 7, 7)
    assert text(no_repeat_ngrams=2, min_new_tokens=6)[:4] == (5, 5, 6, 5)
    written = text(no_repeat_ngrams=2, min_new_tokens=6)
    assert len({written[i : i + 2] for i in range(5)}) == 5
    assert len(text(once=lambda token: frozenset({token}))) < 6  # the end is what is left


def test_a_text_of_at_least_so_many_tokens() -> None:
    for beams in (1, 2):
        search = Search(frozenset({0}), beams=beams, min_new_tokens=3)
        assert generate(Parrot((0, 5)), 1, search)[0][0].ids == (5, 5, 5)
    with pytest.raises(InputError, match="min_new_tokens"):
        Search(frozenset({0}), max_new_tokens=2, min_new_tokens=3)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_penalty_for_what_a_text_holds(beams: int) -> None:
    """The liked tokens have the logits 4, 3, 2; beam search takes their log-probabilities, -0.5, -1.5, -2.5."""

    def text(penalty: float) -> tuple[int, ...]:
        search = Search(frozenset({0}), beams=beams, max_new_tokens=4, min_new_tokens=4, repetition_penalty=penalty)
        return generate(Parrot(), 1, search)[0][0].ids

    assert text(1.0) == (5, 5, 5, 5)
    assert text(1.5)[:2] == (5, 6) if beams == 1 else text(6.0)[:3] == (5, 6, 7)
    with pytest.raises(InputError, match="repetition_penalty is 0"):
        text(0)


@pytest.mark.parametrize("beams", [1, 2])
def test_prompts_count_where_they_should(beams: int) -> None:
    """Each input has its own; a token behind the vocabulary, which stands for a photo, is passed over."""

    def texts(counts: bool, **settings: Any) -> list[tuple[int, ...]]:
        limits = {"max_new_tokens": 3, "min_new_tokens": 3, "counts_prompt": counts}
        search = Search(frozenset({0}), beams=beams, **limits, **settings)
        found = generate(Parrot(), 2, search, prompts=[[99, 5], [99, 6]])
        return [row[0].ids[:2] for row in found]

    penalty = {"repetition_penalty": 2.5 if beams == 1 else 6.0}
    assert texts(False, **penalty) == [(5, 6), (5, 6)]
    assert texts(True, **penalty) == [(6, 7), (5, 7)]
    assert texts(False, no_repeat_ngrams=2) == [(5, 5), (5, 5)]
    assert texts(False, banned_sequences=((6, 5),)) == [(5, 5), (5, 5)]
    first, second = texts(True, banned_sequences=((6, 5),))
    assert first == (5, 5) and second[0] != 5
    (ids,) = [[token.id for token in stream(Parrot(), 1, search_of_one(), prompt=[5, 5])]]
    assert ids == [6, 5]


def search_of_one() -> Search:
    return Search(frozenset({0}), max_new_tokens=2, no_repeat_ngrams=2, counts_prompt=True)


def test_penalised_scores() -> None:
    scores = np.array([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]], np.float32)
    assert penalise(scores, [(0, 1, 1), ()], 2.0).tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 1.0]]
    assert scores[0, 0] == 2.0


def test_settings_as_they_are_recorded() -> None:
    search = Search(frozenset({3, 1}), beams=5, repetition_penalty=1.5, once=lambda token: frozenset({token}))
    assert search.to_dict() == {
        "eos": [1, 3],
        "max_new_tokens": 30,
        "beams": 5,
        "length_penalty": 0.0,
        "repetition_penalty": 1.5,
        "once": True,
    }
