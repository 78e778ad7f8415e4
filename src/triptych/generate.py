"""Turning logits into text: greedy, sampling, beam search, streaming; batched, with the log-probability of every token.

This module knows no model. It needs three functions (``StepModel``): ``prefill`` reads the inputs and returns the logits of the
first token, ``step`` takes one token for each row, and ``state.reorder`` lets rows continue others. The search runs in NumPy; a model
whose logits are torch's gets torch's tensors, on its device. Shapes: B inputs, K rows (beams, samples) of each, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from triptych.errors import InputError
from triptych.interruption import check_interruption
from triptych.logits import (
    Ints,
    Likeliest,
    Scores,
    Uniform,
    choose,
    completing_tokens,
    largest,
    likeliest_tokens,
    log_softmax,
    penalise,
    repeating_tokens,
    to_library_of,
    to_numpy,
    without_gradients,
)

MAX_NEW_TOKENS = 4096  # the most that Search.max_new_tokens may be
TOP_LOGPROBS = 20  # the most that Search.top_logprobs may ask for
EarlyStopping = bool | Literal["never"]


class State(Protocol):
    def reorder(self, rows: Any) -> Self:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``; inputs may be dropped, K may change, rows of one input stay together."""
        ...


Inputs = TypeVar("Inputs", contravariant=True)
StateT = TypeVar("StateT", bound=State)


class StepModel(Protocol[Inputs, StateT]):
    """A model that reads B inputs and writes token by token. Logits are arrays of NumPy or torch; ``ids`` and ``rows`` are of the same."""

    def prefill(self, inputs: Inputs) -> tuple[Any, StateT]:
        """The logits of the first new token ``[B, V]``, and a state with one row for each input."""
        ...

    def step(self, ids: Any, state: StateT) -> tuple[Any, StateT]:
        """``ids [B * K]`` -> the logits of the next token ``[B * K, V]``, and the state after ``ids``."""
        ...


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


Texts = Sequence[Sequence[int]]  # the tokens of each


class Guidance(NamedTuple):
    """What is added to the log-probabilities of N tokens wherever texts or tokens are compared, for each of B inputs (shallow fusion,
    Gulcehre et al. 2015). The texts keep the model's own log-probabilities."""

    tokens: Ints  # [N]
    weights: Scores  # [B, N]

    def added(self, logprobs: Scores, inputs: Sequence[int]) -> Scores:
        """``logprobs [len(inputs) * K, V]`` with the weights of each row's input added."""
        added = np.zeros((len(inputs), 1, logprobs.shape[-1]), np.float32)
        added[:, 0, self.tokens] = self.weights[list(inputs)]
        return (logprobs.reshape(len(inputs), -1, logprobs.shape[-1]) + added).reshape(logprobs.shape)


class Token(NamedTuple):
    """``guidance``: what was added to ``logprob`` in the comparison; ``likeliest``: the model's ``Search.top_logprobs`` most likely tokens
    at this position, before ``restrict``; None = not recorded."""

    id: int
    logprob: float
    likeliest: Likeliest | None = None
    guidance: float = 0.0


BeamText = tuple[Token, ...]


@dataclass(frozen=True)
class Hypothesis:
    """One generated text: ``ids`` without the end token; ``logprobs`` of each id, then of the end token if it was reached;
    ``likeliest``: ``Token.likeliest`` of each id, if recorded; ``guidance``: the sum of what its tokens got added."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    likeliest: tuple[Likeliest, ...] = ()
    guidance: float = 0.0

    @property
    def logprob(self) -> float:
        return sum(self.logprobs)

    def score(self, length_penalty: float) -> float:
        return (self.logprob + self.guidance) / len(self.logprobs) ** length_penalty


def restrict(logprobs: Scores, texts: Texts, counted: Texts, search: Search) -> Scores:
    """``logprobs [rows, V]`` with minus infinity for the tokens that may not follow the ``texts`` so far (``Search``).

    They are not normalised again, so the log-probabilities stay the model's, as in transformers. ``counted``: the texts, perhaps behind
    their prompts (``Search.counts_prompt``).
    """
    if not (search.once or search.no_repeat_ngrams or search.min_new_tokens or search.banned_sequences):
        return logprobs
    allowed = logprobs.copy()
    for row, text, whole in zip(allowed, texts, counted, strict=True):
        refused = repeating_tokens(whole, search.no_repeat_ngrams)
        refused |= completing_tokens(whole, search.banned_sequences)
        if search.once:
            refused = refused.union(*map(search.once, text))
        if len(text) < search.min_new_tokens:
            refused |= search.eos
        row[sorted(refused)] = -np.inf
    return allowed


def generate(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    seeds: Sequence[int] | None = None,
    guidance: Guidance | None = None,
    prompts: Texts = (),
) -> list[list[Hypothesis]]:
    """The ``n_best`` texts of each input, best first (samples: in the order drawn).

    ``seeds``: one for each input, if the draws of different inputs must be independent; None = ``search.seed`` for all. ``prompts``: the
    tokens of each input, for ``Search.counts_prompt``.
    """
    with without_gradients():
        if search.beams > 1:
            return beam_search(model, inputs, search, guidance, prompts)
        texts: list[list[list[Token]]] = []
        for tokens in decode(model, inputs, search, seeds, guidance, prompts):
            if not texts:
                texts = [[[] for _ in row] for row in tokens]
            for text_row, token_row in zip(texts, tokens, strict=True):
                for text, token in zip(text_row, token_row, strict=True):
                    if token is not None:
                        text.append(token)
    return [[to_hypothesis(text, search.eos) for text in row] for row in texts]


def stream(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    guidance: Guidance | None = None,
    prompt: Sequence[int] = (),
) -> Generator[Token, None, bool]:
    """Yields the tokens of a single input without the end token; returns whether the end token was reached.

    Raises:
        InputError: several beams or texts.
    """
    if search.beams > 1 or search.n_best > 1:
        raise InputError("streaming writes one text token by token: use beams = 1 and n_best = 1")
    tokens = decode(model, inputs, search, guidance=guidance, prompts=[prompt])
    while True:
        with without_gradients():  # entered for each token, so that it is off in the caller's code
            [[token]] = next(tokens, [[None]])
        if token is None or token.id in search.eos:
            return token is not None
        yield token


def to_hypothesis(tokens: Sequence[Token], eos: frozenset[int]) -> Hypothesis:
    finished = bool(tokens) and tokens[-1].id in eos
    text = tokens[:-1] if finished else tokens
    logprobs = tuple(token.logprob for token in tokens)
    recorded = tuple(token.likeliest for token in text if token.likeliest is not None)
    guidance = sum(token.guidance for token in tokens)
    return Hypothesis(tuple(token.id for token in text), logprobs, finished, recorded, guidance)


def score_next(logits: Any, texts: Texts, search: Search, prompts: Texts) -> tuple[Sequence[Likeliest | None], Scores]:
    """``logits [rows, V]`` behind the ``texts``, as ``search`` takes them: the likeliest tokens, and the log-probabilities of those that
    may follow. ``prompts``: of the inputs, each of which has as many rows."""
    counted = texts
    if search.counts_prompt:
        rows, vocabulary = len(texts) // len(prompts), logits.shape[-1]
        known = [[token for token in prompt if token < vocabulary] for prompt in prompts]
        counted = [[*known[i // rows], *text] for i, text in enumerate(texts)]
    if search.beams > 1:
        logprobs = penalise(log_softmax(logits, search.banned), counted, search.repetition_penalty)
    else:
        logprobs = log_softmax(penalise(to_numpy(logits), counted, search.repetition_penalty), search.banned)
    return likeliest_tokens(logprobs, search.top_logprobs), restrict(logprobs, texts, counted, search)


def decode(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    seeds: Sequence[int] | None = None,
    guidance: Guidance | None = None,
    prompts: Texts = (),
) -> Iterator[list[list[Token | None]]]:
    """Greedy or sampled tokens ``[B][K]``, step by step; None in rows that have ended."""
    logits, state = model.prefill(inputs)
    prompts = prompts or [()] * len(logits)
    likeliest, logprobs = score_next(logits, [()] * len(logits), search, prompts)
    batch, rows = len(logprobs), search.n_best if search.temperature > 0 else 1
    seeds = [search.seed] * batch if seeds is None else seeds
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} inputs")
    draws = [Uniform(seed) for seed in seeds]
    if rows > 1:
        order = np.repeat(np.arange(batch)[:, None], rows, 1)
        state, logprobs = state.reorder(to_library_of(logits, order)), logprobs.repeat(rows, 0)
        likeliest = [row for row in likeliest for _ in range(rows)]
    inputs_left, alive = list(range(batch)), [[True] * rows for _ in range(batch)]
    texts: list[list[int]] = [[] for _ in range(batch * rows)]
    for position in range(search.max_new_tokens):
        guided = guidance.added(logprobs, inputs_left) if guidance else logprobs
        ids = choose(guided, [draws[source] for source in inputs_left], search.temperature, search.top_k, search.top_p)
        chosen, scores = (x[np.arange(len(ids)), ids].tolist() for x in (logprobs, guided))
        tokens: list[list[Token | None]] = [[None] * rows for _ in range(batch)]
        for index, (token, logprob, score) in enumerate(zip(ids.tolist(), chosen, scores, strict=True)):
            source, row = inputs_left[index // rows], index % rows
            if alive[source][row]:
                tokens[source][row] = Token(token, logprob, likeliest[index], score - logprob)
                alive[source][row] = token not in search.eos
            texts[index].append(token)
        yield tokens
        kept = [index for index, source in enumerate(inputs_left) if any(alive[source])]
        if not kept or position + 1 == search.max_new_tokens:
            return
        if len(kept) < len(inputs_left):
            order = np.array(kept)[:, None] * rows + np.arange(rows)
            ids, state = ids[order.reshape(-1)], state.reorder(to_library_of(logits, order))
            texts = [texts[index] for index in order.reshape(-1)]
            inputs_left = [inputs_left[index] for index in kept]
        check_interruption()
        logits, state = model.step(to_library_of(logits, ids), state)
        likeliest, logprobs = score_next(logits, texts, search, [prompts[source] for source in inputs_left])


def beam_search(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    guidance: Guidance | None = None,
    prompts: Texts = (),
) -> list[list[Hypothesis]]:
    """Beam search, batched over inputs: the ``n_best`` texts of each, best first.

    An input leaves the batch when all its beams have ended, when no beam can win any more, or at ``max_new_tokens``.
    """
    logits, state = model.prefill(inputs)
    prompts = prompts or [()] * len(logits)
    likeliest, logprobs = score_next(logits, [()] * len(logits), search, prompts)
    (batch, vocabulary), beams = logprobs.shape, search.beams
    ended: list[list[Hypothesis]] = [[] for _ in range(batch)]
    inputs_left = list(range(batch))
    totals = np.zeros((batch, 1), np.float32)  # [B, K]: guided log-probabilities; minus infinity = a dead beam
    texts: list[list[BeamText]] = [[()] for _ in range(batch)]
    # With refill, enough candidates that ``beams`` of them continue even if all others end.
    wanted = beams * (1 + max(1, len(search.eos))) if search.refill else beams

    for position in range(search.max_new_tokens):
        guided = guidance.added(logprobs, inputs_left) if guidance else logprobs
        scores = (totals[..., None] + guided.reshape(*totals.shape, vocabulary)).reshape(len(totals), -1)
        best, index = largest(scores, min(wanted, scores.shape[1]))
        parents, ids = index // vocabulary, index % vocabulary
        first_rows = np.arange(len(totals))[:, None] * totals.shape[1]
        columns = (best, parents, ids, *(x[first_rows + parents, ids] for x in (logprobs, guided)))
        kept, survivors = [], []
        for row, (source, *values) in enumerate(zip(inputs_left, *(x.tolist() for x in columns), strict=True)):
            recorded = likeliest[row * totals.shape[1] :]
            candidates = [
                Candidate(score, beam, Token(token, logprob, recorded[beam], compared - logprob))
                for score, beam, token, logprob, compared in zip(*values, strict=True)
            ]
            alive = continue_texts(candidates, texts[row], ended[source], search, position + 1)
            if alive and not is_settled(ended[source], candidates[alive[0][0]].score, position + 1, search):
                kept.append(row)
                survivors.append(alive)
        if not kept:
            break
        # Rows with fewer survivors than beams are filled up with dead copies of their first one.
        places = np.array([[place for place, _ in a] + [a[0][0]] * (beams - len(a)) for a in survivors])
        dead = np.arange(beams) >= np.array([[len(a)] for a in survivors])
        rows = np.array(kept)[:, None]
        totals = np.where(dead, np.float32(-np.inf), best[rows, places])
        texts = [[text for _, text in alive] for alive in survivors]
        inputs_left = [inputs_left[row] for row in kept]
        state = state.reorder(to_library_of(logits, (first_rows + parents)[rows, places]))
        check_interruption()
        logits, state = model.step(to_library_of(logits, ids[rows, places].reshape(-1)), state)
        written = [[token.id for token in row[min(k, len(row) - 1)]] for row in texts for k in range(beams)]
        likeliest, logprobs = score_next(logits, written, search, [prompts[source] for source in inputs_left])

    return [best_first(hypotheses, search)[: search.n_best] for hypotheses in ended]


class Candidate(NamedTuple):
    """A token that may continue a beam. ``score``: the guided log-probability of the text with it; ``beam``: the place of the text."""

    score: float
    beam: int
    token: Token


def continue_texts(
    candidates: Sequence[Candidate], texts: Sequence[BeamText], ended: list[Hypothesis], search: Search, length: int
) -> list[tuple[int, BeamText]]:
    """Add the best candidates of one input that end here to ``ended``; returns those that continue, each with its place and its text.

    Those of dead beams, which have no text in ``texts``, are at minus infinity. ``length``: of the texts with the candidates; at
    ``max_new_tokens`` all end.
    """
    alive: list[tuple[int, BeamText]] = []
    slots = len(candidates) if search.refill else search.beams - len(ended)
    for place, candidate in enumerate(candidates[:slots]):
        if candidate.score == -np.inf:
            break
        text = (*texts[candidate.beam], candidate.token)
        if candidate.token.id in search.eos or length == search.max_new_tokens:
            if place < search.beams:
                ended.append(to_hypothesis(text, search.eos))
        elif len(alive) < search.beams:
            alive.append((place, text))
    if search.refill:
        ended[:] = best_first(ended, search)[: search.beams]
    return alive


def best_first(hypotheses: Sequence[Hypothesis], search: Search) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: -h.score(search.length_penalty))


def is_settled(ended: Sequence[Hypothesis], running: float, length: int, search: Search) -> bool:
    """Whether the ``ended`` texts are final (``Search.early_stopping``), as transformers judges it.

    Args:
        running: the guided log-probability of the best beam after ``length`` tokens.
    """
    if not search.refill or len(ended) < search.beams:
        return False
    if search.early_stopping is True:
        return True
    if search.early_stopping == "never" and search.length_penalty > 0:
        length = search.max_new_tokens
    return running / length**search.length_penalty <= ended[-1].score(search.length_penalty)
