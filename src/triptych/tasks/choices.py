"""Questions with choices: the possible answers, scored by a language model."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.errors import InputError
from triptych.generate import Hypothesis
from triptych.text.tokenizer import TextTokenizer


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


def choice_ids(tokenizer: TextTokenizer, choices: Sequence[str], end: int) -> list[list[int]]:
    """The tokens of each choice as the whole answer, with its end."""
    return [[*tokenizer.encode(f" {choice}"), end] for choice in choices]


def to_hypotheses(ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> list[Hypothesis]:
    """Scored choices as texts that have ended."""
    return [Hypothesis(tuple(row[:-1]), tuple(told), True) for row, told in zip(ids, logprobs, strict=True)]


def likeliest(hypotheses: Sequence[Hypothesis]) -> int:
    return max(range(len(hypotheses)), key=lambda i: hypotheses[i].logprob)
