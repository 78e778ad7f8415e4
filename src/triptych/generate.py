"""Turning logits into text: greedy, sampling, beam search, streaming; batched, with the log-probability of every token.

This module knows no model. It asks for three things (``StepModel``): ``prefill`` reads the inputs and returns the logits of the
first token, ``step`` takes one token per row, and ``state.reorder`` lets rows continue others. The search is NumPy's; a model whose
logits are torch's is given torch's tensors, on its device. Shapes: B inputs, K rows (beams, samples) of each, V tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError
from triptych.interruption import check_interruption

Scores = NDArray[np.float32]
Ints = NDArray[np.int64]

TOP_BLOCK = 256  # candidates of which only the best is looked at first
TOP_LOGPROBS = 20  # at most


class State(Protocol):
    def reorder(self, rows: Any) -> Self:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``; inputs may be dropped, K may change, rows of one input stay together."""
        ...


Inputs = TypeVar("Inputs", contravariant=True)
StateT = TypeVar("StateT", bound=State)


class StepModel(Protocol[Inputs, StateT]):
    """``Inputs``: what is read, of B inputs. Logits are NumPy's or torch's; so are the ``ids`` and ``rows`` that come back."""

    def prefill(self, inputs: Inputs) -> tuple[Any, StateT]:
        """-> logits of the first new token ``[B, V]``, state with one row for each input."""
        ...

    def step(self, ids: Any, state: StateT) -> tuple[Any, StateT]:
        """``ids [B * K]`` -> logits of the next token ``[B * K, V]``, the state after ``ids``."""
        ...


@dataclass(frozen=True)
class Search:
    """How to choose. ``temperature`` above 0 samples ``n_best`` texts of each input; else beam search (1 beam is greedy).

    length_penalty: hypotheses are ranked by sum of log-probabilities / tokens ** length_penalty; 0 = the plain sum (SAT), 1 = the mean.
    banned: tokens that are never chosen. once: whether a text may hold a token only once; None = all may repeat.
    no_repeat_ngrams: sequences of so many tokens occur once; 0 = they may repeat. min_new_tokens: before so many the end is not chosen.
    refill: a beam whose text ends is given to another, until no beam can overtake the ``beams`` best texts (as in transformers and LAVIS);
        else it is given up (as in SAT's paper).
    repetition_penalty: what a token's logit is divided by (multiplied, if negative) where the text holds it already (Keskar et al. 2019,
        CTRL, section 4.1); 1 = nothing. The prompt does not count, as in LAVIS. Beam search takes log-probabilities for logits, as
        transformers does.
    seed: of each input's own random numbers, so a batch equals its items.
    top_logprobs: so many of the likeliest tokens are recorded at each place of a text (``Token.likeliest``); None = no tokens are recorded.
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
    once: Callable[[int], bool] | None = None
    no_repeat_ngrams: int = 0
    min_new_tokens: int = 0
    repetition_penalty: float = 1.0
    refill: bool = False
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams", "n_best", "top_k", "seed", "no_repeat_ngrams", "min_new_tokens"):
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
            ("no_repeat_ngrams", self.no_repeat_ngrams, 0, 64),
            ("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100),
            ("top_logprobs", self.top_logprobs or 0, 0, TOP_LOGPROBS),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} is {value}: it must lie between {low} and {high}")
        if sampling and self.beams > 1:
            raise InputError("choose either beams above 1 or a temperature above 0: beam search does not sample")

    def to_dict(self) -> dict[str, Any]:
        """The settings that decide the text, for JSON: those that are not the default, and always those of the beam search."""
        record: dict[str, Any] = {"eos": sorted(self.eos)}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("max_new_tokens", "beams", "length_penalty") or (
                field.name not in ("eos", "banned", "once", "top_logprobs") and value != field.default
            ):
                record[field.name] = value
        return record | ({"once": True} if self.once else {})


Likeliest = tuple[tuple[int, float], ...]  # tokens at one place with their log-probabilities, the likeliest first


class Token(NamedTuple):
    """``likeliest``: of the model at its place, before ``restrict``; as many as ``Search.top_logprobs``; None = not recorded."""

    id: int
    logprob: float
    likeliest: Likeliest | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One produced text: ``ids`` without the end token; ``logprobs`` of each, then of the end token if it was reached; ``likeliest``:
    ``Token.likeliest`` of each id, where it was recorded."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    likeliest: tuple[Likeliest, ...] = ()

    @property
    def logprob(self) -> float:
        return sum(self.logprobs)

    def score(self, length_penalty: float) -> float:
        return self.logprob / len(self.logprobs) ** length_penalty


def to_numpy(array: Any) -> Scores:
    """An array of NumPy's, or a tensor of torch's on any device, in fp32."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float32, copy=False)
    return np.asarray(array.detach().float().cpu().numpy())


def like(array: Ints, logits: Any) -> Any:
    """``array`` as a model expects it whose logits these are."""
    if isinstance(logits, np.ndarray):
        return array
    return sys.modules["torch"].from_numpy(array).to(logits.device)


def without_gradients() -> AbstractContextManager[Any]:
    """torch's inference mode, where torch is in use."""
    torch = sys.modules.get("torch")
    return torch.inference_mode() if torch else nullcontext()


def log_softmax(logits: Any, search: Search) -> Scores:
    """``[rows, V]`` log-probabilities in fp32, the banned tokens at minus infinity."""
    scores = to_numpy(logits)
    if search.banned:
        scores = scores.copy()
        scores[:, sorted(search.banned)] = -np.inf
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def restrict(logprobs: Scores, texts: Sequence[Sequence[int]], search: Search) -> Scores:
    """``logprobs [rows, V]`` with minus infinity where a token may not follow the ``texts`` written so far (``Search``).

    They are not normalised again, so log-probabilities stay those of the model; transformers does the same.
    """
    if not (search.once or search.no_repeat_ngrams or search.min_new_tokens):
        return logprobs
    allowed = logprobs.copy()
    for row, text in zip(allowed, texts, strict=True):
        refused = repeating_tokens(text, search.no_repeat_ngrams)
        if search.once:
            refused |= frozenset(filter(search.once, text))
        if len(text) < search.min_new_tokens:
            refused |= search.eos
        row[sorted(refused)] = -np.inf
    return allowed


def penalise(scores: Scores, texts: Sequence[Sequence[int]], penalty: float) -> Scores:
    """``scores [rows, V]`` with the tokens of each row's text made less likely (``Search.repetition_penalty``)."""
    if penalty == 1:
        return scores
    changed = scores.copy()
    for row, text in zip(changed, texts, strict=True):
        tokens = sorted(set(text))
        row[tokens] = np.where(row[tokens] < 0, row[tokens] * penalty, row[tokens] / penalty)
    return changed


def repeating_tokens(text: Sequence[int], size: int) -> frozenset[int]:
    """The tokens that would complete a sequence of ``size`` tokens that ``text`` holds already."""
    if size < 1 or len(text) < size:
        return frozenset()
    tail = tuple(text[len(text) - size + 1 :])
    starts = range(len(text) - size + 1)
    return frozenset(text[i + size - 1] for i in starts if tuple(text[i : i + size - 1]) == tail)


def generate(
    model: StepModel[Inputs, StateT], inputs: Inputs, search: Search, seeds: Sequence[int] | None = None
) -> list[list[Hypothesis]]:
    """The ``n_best`` texts of each input, best first (samples: in the order drawn).

    ``seeds``: one for each input instead of ``search.seed`` for all, where the draws of different inputs must be independent.
    """
    with without_gradients():
        if search.temperature == 0 and search.beams > 1:
            return beam_search(model, inputs, search)
        texts: list[list[list[Token]]] = []
        for tokens in decode(model, inputs, search, seeds):
            if not texts:
                texts = [[[] for _ in row] for row in tokens]
            for text_row, token_row in zip(texts, tokens, strict=True):
                for text, token in zip(text_row, token_row, strict=True):
                    if token is not None:
                        text.append(token)
    return [[to_hypothesis(text, search.eos) for text in row] for row in texts]


def stream(model: StepModel[Inputs, StateT], inputs: Inputs, search: Search) -> Generator[Token, None, bool]:
    """The tokens of a single input as they are made, without the end token; returns whether that was reached."""
    if search.beams > 1 or search.n_best > 1:
        raise InputError("streaming writes one text as it is made: use beams = 1 and n_best = 1")
    tokens = decode(model, inputs, search)
    while True:
        with without_gradients():  # not while the caller has the token
            [[token]] = next(tokens, [[None]])
        if token is None or token.id in search.eos:
            return token is not None
        yield token


def to_hypothesis(tokens: Sequence[Token], eos: frozenset[int]) -> Hypothesis:
    finished = bool(tokens) and tokens[-1].id in eos
    text = tokens[:-1] if finished else tokens
    logprobs = tuple(token.logprob for token in tokens)
    recorded = tuple(token.likeliest for token in text if token.likeliest is not None)
    return Hypothesis(tuple(token.id for token in text), logprobs, finished, recorded)


def likeliest_tokens(logprobs: Scores, search: Search) -> Sequence[Likeliest | None]:
    """Of each row of ``logprobs [rows, V]`` the ``search.top_logprobs`` likeliest tokens, those that are banned left out."""
    if not search.top_logprobs:
        return [None if search.top_logprobs is None else ()] * len(logprobs)
    best, ids = top(logprobs, min(search.top_logprobs, logprobs.shape[1]))
    rows = zip(ids.tolist(), best.tolist(), strict=True)
    return [tuple(pair for pair in zip(*row, strict=True) if pair[1] > -np.inf) for row in rows]


def decode(
    model: StepModel[Inputs, StateT], inputs: Inputs, search: Search, seeds: Sequence[int] | None = None
) -> Iterator[list[list[Token | None]]]:
    """Greedy or sampled tokens ``[B][K]``, step by step; None in rows that have ended."""
    logits, state = model.prefill(inputs)
    model_logprobs = log_softmax(logits, search)
    likeliest = likeliest_tokens(model_logprobs, search)
    logprobs = restrict(model_logprobs, [()] * len(model_logprobs), search)
    batch, rows = len(logprobs), search.n_best if search.temperature > 0 else 1
    seeds = [search.seed] * batch if seeds is None else seeds
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} inputs")
    draws = [Uniform(seed) for seed in seeds]
    if rows > 1:
        order = np.repeat(np.arange(batch)[:, None], rows, 1)
        state, logprobs = state.reorder(like(order, logits)), logprobs.repeat(rows, 0)
        likeliest = [row for row in likeliest for _ in range(rows)]
    inputs_left, alive = list(range(batch)), [[True] * rows for _ in range(batch)]
    texts: list[list[int]] = [[] for _ in range(batch * rows)]
    for position in range(search.max_new_tokens):
        ids = choose(logprobs, [draws[source] for source in inputs_left], search)
        chosen = logprobs[np.arange(len(ids)), ids]
        tokens: list[list[Token | None]] = [[None] * rows for _ in range(batch)]
        for index, (token, logprob) in enumerate(zip(ids.tolist(), chosen.tolist(), strict=True)):
            source, row = inputs_left[index // rows], index % rows
            if alive[source][row]:
                tokens[source][row] = Token(token, logprob, likeliest[index])
                alive[source][row] = token not in search.eos
            texts[index].append(token)
        yield tokens
        kept = [index for index, source in enumerate(inputs_left) if any(alive[source])]
        if not kept or position + 1 == search.max_new_tokens:
            return
        if len(kept) < len(inputs_left):
            order = np.array(kept)[:, None] * rows + np.arange(rows)
            ids, state = ids[order.reshape(-1)], state.reorder(like(order, logits))
            texts = [texts[index] for index in order.reshape(-1)]
            inputs_left = [inputs_left[index] for index in kept]
        check_interruption()
        logits, state = model.step(like(ids, logits), state)
        scores = penalise(to_numpy(logits), texts, search.repetition_penalty)
        model_logprobs = log_softmax(scores, search)
        likeliest = likeliest_tokens(model_logprobs, search)
        logprobs = restrict(model_logprobs, texts, search)


class Uniform:
    """Random numbers of one input: the Mersenne Twister of torch's generators on a CPU, number for number."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.RandomState(seed & 0xFFFFFFFF)._bit_generator

    def draw(self, count: int) -> NDArray[np.float64]:
        """``count`` numbers from 0 to 1."""
        high, low = self.bits.random_raw(2 * count).reshape(count, 2).T
        mantissas = (high << np.uint64(32) | low) & np.uint64((1 << 53) - 1)
        return mantissas.astype(np.float64) * 2.0**-53


def choose(logprobs: Scores, draws: Sequence[Uniform], search: Search) -> Ints:
    """One token for each row: the likeliest, or drawn after temperature, top-k and top-p (each input by its own numbers)."""
    if search.temperature == 0:
        return logprobs.argmax(-1)
    scores = logprobs / np.float32(search.temperature)
    if 0 < search.top_k < scores.shape[-1]:
        lowest = np.partition(scores, -search.top_k, -1)[:, -search.top_k, None]
        scores = np.where(scores < lowest, -np.inf, scores)
    if search.top_p < 1:
        order = np.argsort(-scores, -1, kind="stable")
        ordered = np.take_along_axis(softmax(scores), order, -1)
        beyond = ordered.cumsum(-1) - ordered >= search.top_p  # keeps the token that crosses the line
        cut = np.empty_like(beyond)
        np.put_along_axis(cut, order, beyond, -1)
        scores = np.where(cut, -np.inf, scores)
    rows = len(scores) // len(draws)
    uniform = np.concatenate([numbers.draw(rows) for numbers in draws])
    # the inverse of the cumulative distribution at a random number
    below = softmax(scores).cumsum(-1, dtype=np.float64)
    drawn = (below <= uniform[:, None] * below[:, -1:]).sum(-1)
    return np.minimum(drawn, scores.shape[-1] - 1)


def softmax(scores: Scores) -> Scores:
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def top(scores: Scores, count: int) -> tuple[Scores, Ints]:
    """The largest ``count`` of each row of ``scores [B, N]``, in order, and where they are.

    The largest lie in the blocks of columns whose maxima are largest, so only these are sorted.
    """
    rows, columns = scores.shape
    places = np.broadcast_to(np.arange(columns), scores.shape)
    if columns > 4 * count * TOP_BLOCK:
        padding = np.full((rows, -columns % TOP_BLOCK), -np.inf, np.float32)
        blocks = np.concatenate([scores, padding], 1).reshape(rows, -1, TOP_BLOCK)
        best = np.sort(np.argpartition(-blocks.max(2), count - 1, 1)[:, :count], 1)
        places = (best[..., None] * TOP_BLOCK + np.arange(TOP_BLOCK)).reshape(rows, -1)
        scores = np.take_along_axis(blocks, best[..., None], 1).reshape(rows, -1)
    order = np.argsort(-scores, 1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, 1), np.minimum(np.take_along_axis(places, order, 1), columns - 1)


def beam_search(model: StepModel[Inputs, StateT], inputs: Inputs, search: Search) -> list[list[Hypothesis]]:
    """Beam search, batched over inputs. What becomes of the beam of a text that ends: ``Search.refill``.

    An input is done when all its beams have ended, or cannot win any more, or at ``max_new_tokens``, and leaves the batch then.
    """
    logits, state = model.prefill(inputs)
    logprobs = log_softmax(logits, search)
    likeliest = likeliest_tokens(logprobs, search)
    logprobs = restrict(logprobs, [()] * len(logprobs), search)
    (batch, vocabulary), beams = logprobs.shape, search.beams
    ended: list[list[Hypothesis]] = [[] for _ in range(batch)]
    inputs_left = list(range(batch))
    totals = np.zeros((batch, 1), np.float32)  # [B, K] log-probability of each beam; minus infinity: it is dead
    texts: list[list[tuple[Token, ...]]] = [[()] for _ in range(batch)]

    for position in range(search.max_new_tokens):
        candidates = (totals[..., None] + logprobs.reshape(*totals.shape, vocabulary)).reshape(len(totals), -1)
        wanted = (
            beams * (1 + max(1, len(search.eos))) if search.refill else beams
        )  # as many as can end, and as many again
        best, index = top(candidates, min(wanted, candidates.shape[1]))
        parents, ids = index // vocabulary, index % vocabulary
        first_rows = np.arange(len(totals))[:, None] * totals.shape[1]
        token_logprobs = logprobs[first_rows + parents, ids].tolist()
        last = position + 1 == search.max_new_tokens
        kept, survivors = [], []
        for row, (source, scores) in enumerate(zip(inputs_left, best.tolist(), strict=True)):
            slots = wanted if search.refill else beams - len(ended[source])
            alive: list[tuple[int, tuple[Token, ...]]] = []
            for k, score in enumerate(scores[:slots]):
                if score == -np.inf:
                    break
                parent = int(parents[row, k])
                place = likeliest[row * totals.shape[1] + parent]
                text = (*texts[row][parent], Token(int(ids[row, k]), token_logprobs[row][k], place))
                if text[-1].id in search.eos or last:
                    if k < beams:
                        ended[source].append(to_hypothesis(text, search.eos))
                elif len(alive) < beams:
                    alive.append((k, text))
            if search.refill:
                ended[source] = best_first(ended[source], search)[:beams]
            if alive and not is_settled(ended[source], scores[alive[0][0]], position + 1, search):
                kept.append(row)
                survivors.append(alive)
        if not kept:
            break
        # Each photo's survivors come first; where there are fewer than beams, its first one is repeated, dead.
        columns = np.array([[k for k, _ in a] + [a[0][0]] * (beams - len(a)) for a in survivors])
        dead = np.arange(beams) >= np.array([[len(a)] for a in survivors])
        rows = np.array(kept)[:, None]
        totals = np.where(dead, np.float32(-np.inf), best[rows, columns])
        texts = [[text for _, text in alive] for alive in survivors]
        inputs_left = [inputs_left[row] for row in kept]
        state = state.reorder(like((first_rows + parents)[rows, columns], logits))
        check_interruption()
        logits, state = model.step(like(ids[rows, columns].reshape(-1), logits), state)
        written = [[token.id for token in row[min(k, len(row) - 1)]] for row in texts for k in range(beams)]
        logprobs = penalise(log_softmax(logits, search), written, search.repetition_penalty)
        likeliest = likeliest_tokens(logprobs, search)
        logprobs = restrict(logprobs, written, search)

    return [best_first(hypotheses, search)[: search.n_best] for hypotheses in ended]


def best_first(hypotheses: Sequence[Hypothesis], search: Search) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: -h.score(search.length_penalty))


def is_settled(ended: Sequence[Hypothesis], running: float, length: int, search: Search) -> bool:
    """Whether the best beam, of log-probability ``running`` after ``length`` tokens, cannot overtake the texts that have ended: it would
    have to end now, as transformers reckons."""
    if not search.refill or len(ended) < search.beams:
        return False
    return running / length**search.length_penalty <= ended[-1].score(search.length_penalty)
