"""Turning logits into text: greedy, sampling, beam search, streaming; batched, with the log-probability of every token.

This module knows no model. It asks for three things (``StepModel``): ``prefill`` reads the inputs and returns the logits of the
first token, ``step`` takes one token per row, and ``state.reorder`` lets rows continue others. Arrays may be of any library that
``torch.as_tensor`` takes, so an engine without torch fits as well. Shapes: B inputs, K rows (beams, samples) of each, V tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.interruption import check_interruption


class State(Protocol):
    def reorder(self, rows: Tensor) -> Self:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``; inputs may be dropped, K may change, rows of one input stay together."""
        ...


Inputs = TypeVar("Inputs", contravariant=True)
StateT = TypeVar("StateT", bound=State)


class StepModel(Protocol[Inputs, StateT]):
    """``Inputs``: what is read, of B inputs. Logits are arrays that ``torch.as_tensor`` takes."""

    def prefill(self, inputs: Inputs) -> tuple[Any, StateT]:
        """-> logits of the first new token ``[B, V]``, state with one row for each input."""
        ...

    def step(self, ids: Tensor, state: StateT) -> tuple[Any, StateT]:
        """``ids [B * K]`` -> logits of the next token ``[B * K, V]``, the state after ``ids``."""
        ...


@dataclass(frozen=True)
class Search:
    """How to choose. ``temperature`` above 0 samples ``n_best`` texts of each input; else beam search (1 beam is greedy).

    length_penalty: hypotheses are ranked by sum of log-probabilities / tokens ** length_penalty; 0 = the plain sum (SAT), 1 = the mean.
    banned: tokens that are never chosen. seed: of each input's own random numbers, so a batch equals its items.
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

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams", "n_best", "top_k", "seed"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"{name} is {getattr(self, name)!r}: it must be a whole number")
        sampling = self.temperature > 0
        for name, value, low, high in (
            ("max_new_tokens", self.max_new_tokens, 1, 4096),
            ("beams", self.beams, 1, 64),
            ("n_best", self.n_best, 1, 64 if sampling else self.beams),
            ("temperature", self.temperature, 1e-4 if sampling else 0, 100),
            ("top_k", self.top_k, 0, 1_000_000),
            ("top_p", self.top_p, 1e-6, 1),
            ("length_penalty", self.length_penalty, -10, 10),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} is {value}: it must lie between {low} and {high}")
        if sampling and self.beams > 1:
            raise InputError("choose either beams above 1 or a temperature above 0: beam search does not sample")


@dataclass(frozen=True)
class Hypothesis:
    """One produced text: ``ids`` without the end token; ``logprobs`` of each, then of the end token if it was reached."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool

    @property
    def logprob(self) -> float:
        return sum(self.logprobs)

    def score(self, length_penalty: float) -> float:
        return self.logprob / len(self.logprobs) ** length_penalty


def log_softmax(logits: Any, search: Search) -> Tensor:
    """``[rows, V]`` log-probabilities in fp32, the banned tokens at minus infinity."""
    scores = torch.as_tensor(logits).float()
    if search.banned:
        scores = scores.index_fill(-1, torch.tensor(sorted(search.banned), device=scores.device), -torch.inf)
    return scores.log_softmax(-1)


@torch.inference_mode()
def generate(
    model: StepModel[Inputs, StateT], inputs: Inputs, search: Search, seeds: Sequence[int] | None = None
) -> list[list[Hypothesis]]:
    """The ``n_best`` texts of each input, best first (samples: in the order drawn).

    ``seeds``: one for each input instead of ``search.seed`` for all, where the draws of different inputs must be independent.
    """
    if search.temperature == 0 and search.beams > 1:
        return beam_search(model, inputs, search)
    texts: list[list[list[tuple[int, float]]]] = []
    for tokens in decode(model, inputs, search, seeds):
        if not texts:
            texts = [[[] for _ in row] for row in tokens]
        for text_row, token_row in zip(texts, tokens, strict=True):
            for text, token in zip(text_row, token_row, strict=True):
                if token is not None:
                    text.append(token)
    return [[to_hypothesis(text, search.eos) for text in row] for row in texts]


@torch.inference_mode()
def stream(model: StepModel[Inputs, StateT], inputs: Inputs, search: Search) -> Iterator[tuple[int, float]]:
    """Token ids and log-probabilities of a single input as they are made, without the end token."""
    if search.beams > 1 or search.n_best > 1:
        raise InputError("streaming writes one text as it is made: use beams = 1 and n_best = 1")
    for tokens in decode(model, inputs, search):
        [[token]] = tokens
        if token is None or token[0] in search.eos:
            return
        yield token


def to_hypothesis(tokens: Sequence[tuple[int, float]], eos: frozenset[int]) -> Hypothesis:
    finished = bool(tokens) and tokens[-1][0] in eos
    ids = tuple(i for i, _ in tokens)
    return Hypothesis(ids[:-1] if finished else ids, tuple(p for _, p in tokens), finished)


def decode(
    model: StepModel[Inputs, StateT], inputs: Inputs, search: Search, seeds: Sequence[int] | None = None
) -> Iterator[list[list[tuple[int, float] | None]]]:
    """Greedy or sampled tokens ``[B][K]``, step by step; None in rows that have ended."""
    logits, state = model.prefill(inputs)
    logprobs = log_softmax(logits, search)
    batch, rows = len(logprobs), search.n_best if search.temperature > 0 else 1
    seeds = [search.seed] * batch if seeds is None else seeds
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} inputs")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    order = torch.arange(batch, device=logprobs.device)[:, None].expand(-1, rows)
    if rows > 1:
        state, logprobs = state.reorder(order), logprobs.repeat_interleave(rows, 0)
    inputs_left, alive = list(range(batch)), [[True] * rows for _ in range(batch)]
    for position in range(search.max_new_tokens):
        ids = choose(logprobs, [generators[source] for source in inputs_left], search)
        chosen = logprobs.gather(1, ids[:, None]).squeeze(1)
        tokens: list[list[tuple[int, float] | None]] = [[None] * rows for _ in range(batch)]
        for index, (token, logprob) in enumerate(zip(ids.tolist(), chosen.tolist(), strict=True)):
            source, row = inputs_left[index // rows], index % rows
            if alive[source][row]:
                tokens[source][row] = (token, logprob)
                alive[source][row] = token not in search.eos
        yield tokens
        kept = [index for index, source in enumerate(inputs_left) if any(alive[source])]
        if not kept or position + 1 == search.max_new_tokens:
            return
        if len(kept) < len(inputs_left):
            order = torch.tensor(kept, device=ids.device)[:, None] * rows + torch.arange(rows, device=ids.device)
            ids, state = ids[order.flatten()], state.reorder(order)
            inputs_left = [inputs_left[index] for index in kept]
        check_interruption()
        logits, state = model.step(ids, state)
        logprobs = log_softmax(logits, search)


def choose(logprobs: Tensor, generators: Sequence[torch.Generator], search: Search) -> Tensor:
    """One token for each row: the likeliest, or drawn after temperature, top-k and top-p (each input by its own generator)."""
    if search.temperature == 0:
        return logprobs.argmax(-1)
    scores = logprobs / search.temperature
    if 0 < search.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(search.top_k).values[:, -1:], -torch.inf)
    if search.top_p < 1:
        ordered, order = scores.softmax(-1).sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= search.top_p  # keeps the token that crosses the line
        scores = scores.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    rows = len(scores) // len(generators)
    device = torch.device("cpu") if scores.device.type == "mps" else scores.device  # MPS has no float64
    uniform = torch.cat([torch.rand(rows, 1, dtype=torch.float64, generator=g) for g in generators]).to(device)
    # the inverse of the cumulative distribution at a random number
    below = scores.softmax(-1).to(device).cumsum(-1, dtype=torch.float64)
    drawn = torch.searchsorted(below, uniform * below[:, -1:], right=True).squeeze(1)
    return drawn.clamp_max(scores.shape[-1] - 1).to(scores.device)


def beam_search(model: StepModel[Inputs, StateT], inputs: Inputs, search: Search) -> list[list[Hypothesis]]:
    """Beam search as the paper and its tutorial do it: a hypothesis that ends gives up its beam; batched over inputs.

    An input is done when all its beams have ended or at ``max_new_tokens``, and leaves the batch then.
    """
    logits, state = model.prefill(inputs)
    logprobs = log_softmax(logits, search)
    batch, vocabulary = logprobs.shape
    device, beams = logprobs.device, search.beams
    ended: list[list[Hypothesis]] = [[] for _ in range(batch)]
    inputs_left = list(range(batch))
    totals = torch.zeros(batch, 1, device=device)  # [B, K] log-probability of each beam; minus infinity: it is dead
    texts: list[list[tuple[tuple[int, float], ...]]] = [[()] for _ in range(batch)]

    for position in range(search.max_new_tokens):
        candidates = (totals[..., None] + logprobs.view(*totals.shape, vocabulary)).flatten(1)
        best, index = candidates.topk(min(beams, candidates.shape[1]))
        parents, ids = index // vocabulary, index % vocabulary
        first_rows = torch.arange(len(totals), device=device)[:, None] * totals.shape[1]
        token_logprobs = logprobs[(first_rows + parents).flatten(), ids.flatten()].view_as(best).tolist()
        last = position + 1 == search.max_new_tokens
        kept, survivors = [], []
        for row, (source, scores) in enumerate(zip(inputs_left, best.tolist(), strict=True)):
            slots, alive = beams - len(ended[source]), []
            for k, score in enumerate(scores[:slots]):
                if score == -torch.inf:
                    break
                token = (int(ids[row, k]), token_logprobs[row][k])
                text = (*texts[row][int(parents[row, k])], token)
                if token[0] in search.eos or last:
                    ended[source].append(to_hypothesis(text, search.eos))
                else:
                    alive.append((k, text))
            if alive:
                kept.append(row)
                survivors.append(alive)
        if not kept:
            break
        # Each photo's survivors come first; where there are fewer than beams, its first one is repeated, dead.
        columns = torch.tensor([[k for k, _ in a] + [a[0][0]] * (beams - len(a)) for a in survivors], device=device)
        dead = torch.arange(beams, device=device) >= torch.tensor([[len(a)] for a in survivors], device=device)
        rows = torch.tensor(kept, device=device)
        totals = best[rows].gather(1, columns).masked_fill(dead, -torch.inf)
        texts = [[text for _, text in alive] for alive in survivors]
        inputs_left = [inputs_left[row] for row in kept]
        state = state.reorder((first_rows + parents)[rows].gather(1, columns))
        check_interruption()
        logits, state = model.step(ids[rows].gather(1, columns).flatten(), state)
        logprobs = log_softmax(logits, search)

    rank = search.length_penalty
    return [sorted(hypotheses, key=lambda h: -h.score(rank))[: search.n_best] for hypotheses in ended]
