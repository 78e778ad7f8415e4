"""Scores of the next token, in NumPy: ``[rows, V]``, a row for each text."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import TriptychError

Scores = NDArray[np.float32]
Ints = NDArray[np.int64]
Likeliest = tuple[tuple[int, float], ...]  # tokens at one position with their log-probabilities, the most likely first


def not_finite_error() -> TriptychError:
    """The error for scores that the model's precision could not hold."""
    return TriptychError("the model's scores are not finite numbers: choose another precision, such as fp32")


def log_softmax(logits: Any, banned: Collection[int] = ()) -> Scores:
    """``logits [rows, V]``, NumPy's or torch's -> log-probabilities in fp32, the ``banned`` tokens at minus infinity.

    Raises TriptychError: a row's largest logit is not finite.
    """
    scores = to_numpy(logits)
    if banned:
        scores = scores.copy()
        scores[:, sorted(banned)] = -np.inf
    largest_of_row = scores.max(-1, keepdims=True)
    if not np.isfinite(largest_of_row).all():
        raise not_finite_error()
    scores = scores - largest_of_row
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return scores


def penalise(scores: Scores, texts: Sequence[Sequence[int]], penalty: float) -> Scores:
    """``scores [rows, V]``, lower for the tokens of each row's text (``Search.repetition_penalty``)."""
    if penalty == 1:
        return scores
    changed = scores.copy()
    for row, text in zip(changed, texts, strict=True):
        tokens = sorted(set(text))
        row[tokens] = np.where(row[tokens] < 0, row[tokens] * penalty, row[tokens] / penalty)
    return changed


def repeating_tokens(text: Sequence[int], size: int) -> frozenset[int]:
    """The tokens that would complete an n-gram of ``size`` tokens that ``text`` already contains."""
    if size < 1 or len(text) < size:
        return frozenset()
    tail = tuple(text[len(text) - size + 1 :])
    starts = range(len(text) - size + 1)
    return frozenset(text[i + size - 1] for i in starts if tuple(text[i : i + size - 1]) == tail)


def completing_tokens(text: Sequence[int], sequences: Sequence[Sequence[int]]) -> frozenset[int]:
    """The last tokens of those ``sequences`` of which ``text`` ends with all the others."""
    tail = tuple(text)
    return frozenset(s[-1] for s in sequences if len(s) <= len(tail) + 1 and tail[len(tail) + 1 - len(s) :] == s[:-1])


class Uniform:
    """The random numbers of one input: the same sequence as torch's generator on a CPU (a Mersenne Twister)."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.RandomState(seed & 0xFFFFFFFF)._bit_generator

    def draw(self, count: int) -> NDArray[np.float64]:
        """``count`` numbers, uniform in [0, 1)."""
        high, low = self.bits.random_raw(2 * count).reshape(count, 2).T
        mantissas = (high << np.uint64(32) | low) & np.uint64((1 << 53) - 1)
        return mantissas.astype(np.float64) * 2.0**-53


def softmax(scores: Scores) -> Scores:
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def largest(scores: Scores, count: int) -> tuple[Scores, Ints]:
    """The largest ``count`` of each row of ``scores [B, N]``, in descending order, and their columns; both ``[B, count]``.

    Of equal scores the ones in the first columns. Only those that reach the row's ``count``-th largest are sorted.
    """
    columns = scores.shape[1]
    least = np.partition(scores, columns - count, 1)[:, columns - count]
    order = np.empty((len(scores), count), np.int64)
    for row, bound, best in zip(scores, least, order, strict=True):
        at = np.flatnonzero(~(row < bound))
        best[:] = at[np.argsort(-row[at], kind="stable")[:count]]
    return np.take_along_axis(scores, order, 1), order


def to_numpy(array: Any) -> Scores:
    """A NumPy array, or a torch tensor on any device, as fp32."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float32, copy=False)
    return np.asarray(array.detach().float().cpu().numpy())


def to_library_of(logits: Any, array: Ints) -> Any:
    """``array`` as a NumPy array or a torch tensor, on the device of ``logits``, like ``logits``."""
    if isinstance(logits, np.ndarray):
        return array
    return sys.modules["torch"].from_numpy(array).to(logits.device)


def choose(logprobs: Scores, draws: Sequence[Uniform], temperature: float, top_k: int, top_p: float) -> Ints:
    """One token for each row ``[B * K]``: the most likely, or drawn after temperature, top-k and top-p; ``draws``: one for each input."""
    if temperature == 0:
        return logprobs.argmax(-1)
    scores = logprobs / np.float32(temperature)
    if 0 < top_k < scores.shape[-1]:
        lowest = np.partition(scores, -top_k, -1)[:, -top_k, None]
        scores = np.where(scores < lowest, -np.inf, scores)
    if top_p < 1:
        order = np.argsort(-scores, -1, kind="stable")
        ordered = np.take_along_axis(softmax(scores), order, -1)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the token that reaches top_p is kept
        cut = np.empty_like(beyond)
        np.put_along_axis(cut, order, beyond, -1)
        scores = np.where(cut, -np.inf, scores)
    rows = len(scores) // len(draws)
    uniform = np.concatenate([numbers.draw(rows) for numbers in draws])
    # the inverse of the cumulative distribution at a random number
    below = softmax(scores).cumsum(-1, dtype=np.float64)
    drawn = (below <= uniform[:, None] * below[:, -1:]).sum(-1)
    return np.minimum(drawn, scores.shape[-1] - 1)


def without_gradients() -> AbstractContextManager[Any]:
    """torch's inference mode, if torch has been imported."""
    torch = sys.modules.get("torch")
    return torch.inference_mode() if torch else nullcontext()


def likeliest_tokens(logprobs: Scores, count: int | None) -> Sequence[Likeliest | None]:
    """The ``count`` most likely tokens in each row of ``logprobs [rows, V]``, without those at minus infinity; None = none are recorded."""
    if not count:
        return [None if count is None else ()] * len(logprobs)
    best, ids = largest(logprobs, min(count, logprobs.shape[1]))
    rows = zip(ids.tolist(), best.tolist(), strict=True)
    return [tuple(pair for pair in zip(*row, strict=True) if pair[1] > -np.inf) for row in rows]
