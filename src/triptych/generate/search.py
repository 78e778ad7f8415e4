"""The settings of a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from triptych.errors import InputError

MAX_NEW_TOKENS = 4096  # the most that Search.max_new_tokens may be
TOP_LOGPROBS = 20  # the most that Search.top_logprobs may ask for
EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class Search:
    """How tokens are chosen. A ``temperature`` above 0 samples ``n_best`` texts for each input; else beam search (1 beam is greedy).

    length_penalty: hypotheses are ranked by sum of log-probabilities / tokens ** length_penalty; 0 = the plain sum (SAT), 1 = the mean.
    banned: tokens that are never chosen. once: the tokens that a text may not contain any more behind a token; None = all may come again.
    banned_sequences: sequences of tokens that no text contains. Unlike those of ``banned``, their log-probabilities still count in the sum
        that makes all of them 1.
    no_repeat_ngrams: n-grams of this many tokens may not repeat; 0 = all may. min_new_tokens: a text may not end earlier.
    refill: when a text ends, its beam goes to another text, until no beam can overtake the ``beams`` best texts (as in transformers and
        LAVIS); else the search continues with one beam less (as in SAT's paper).
    early_stopping: with ``refill``, when no beam can overtake those texts: False = when the best beam, if it ended now, would score lower;
        "never" = when it would even at ``max_new_tokens``; True = at once.
    repetition_penalty: the logits of tokens that the text already contains are divided by it, or multiplied if negative (Keskar et al.
        2019, CTRL, section 4.1); 1 = off. Beam search applies it to log-probabilities, as transformers does.
    counts_prompt: the repetition penalty, n-grams and banned sequences count the prompt's tokens too, as in transformers; else only what
        is written, as in LAVIS.
    seed: each input has its own random numbers, so that a batch gives the same texts as its items.
    top_logprobs: the number of most likely tokens to record at each position (``Token.likeliest``); None = none.
    """

    eos: frozenset[int]
    max_new_tokens: int = 30
    beams: int = 1
    n_best: int = 1
    length_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    banned: frozenset[int] = frozenset()
    once: Callable[[int], frozenset[int]] | None = None
    no_repeat_ngrams: int = 0
    min_new_tokens: int = 0
    repetition_penalty: float = 1.0
    refill: bool = False
    early_stopping: EarlyStopping = False
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    counts_prompt: bool = False
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams", "n_best", "top_k", "seed", "no_repeat_ngrams", "min_new_tokens"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"{name} is {getattr(self, name)!r}: it must be a whole number")
        sampling = self.temperature > 0
        for name, value, low, high in (
            ("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS),
            ("beams", self.beams, 1, 64),
            ("n_best", self.n_best, 1, 64 if sampling else self.beams),
            ("temperature", self.temperature, 1e-4 if sampling else 0, 100),
            ("top_k", self.top_k, 0, 1_000_000),
            ("top_p", self.top_p, 1e-6, 1),
            ("length_penalty", self.length_penalty, -10, 10),
            ("no_repeat_ngrams", self.no_repeat_ngrams, 0, 64),
            ("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100),
            ("top_logprobs", self.top_logprobs or 0, 0, TOP_LOGPROBS),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} is {value}: it must lie between {low} and {high}")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InputError(f'early_stopping is {self.early_stopping!r}: it must be true, false or "never"')
        if not all(self.banned_sequences):
            raise InputError("banned_sequences holds an empty sequence: each must have at least one token")
        if sampling and self.beams > 1:
            raise InputError("choose either beams above 1 or a temperature above 0: beam search does not sample")

    def to_dict(self) -> dict[str, Any]:
        """The settings that affect the text, for JSON: those that differ from the defaults, and always those of the beam search."""
        record: dict[str, Any] = {"eos": sorted(self.eos)}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("max_new_tokens", "beams", "length_penalty") or (
                (field.name not in ("eos", "banned", "once", "top_logprobs") and value != field.default)
                and (self.temperature > 0 or field.name not in ("top_k", "top_p"))
            ):
                record[field.name] = value
        return record | ({"once": True} if self.once else {})
