"""Search against brute force and plain loops. The model here is NumPy alone: generation must not need torch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import InputError
from triptych.generate import Hypothesis, Search, generate, stream

EOS, WIDTH = 0, 6
Rng = np.random.Generator


class Memory(NamedTuple):
    h: np.ndarray  # [rows, WIDTH]

    def reorder(self, rows: np.ndarray) -> Self:
        return self._replace(h=self.h[rows.reshape(-1)])


class TinyLM:
    """A random recurrent model whose logits depend on the input and on every token so far."""

    def __init__(self, vocabulary: int, seed: int, eos_bias: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.recur, self.embed = rng.normal(size=(WIDTH, WIDTH)), rng.normal(size=(vocabulary, WIDTH)) * 2
        self.out, self.bias = rng.normal(size=(WIDTH, vocabulary)) * 1.5, np.zeros(vocabulary)
        self.bias[EOS] = eos_bias
        self.rows_stepped: list[int] = []

    def prefill(self, inputs: np.ndarray) -> tuple[np.ndarray, Memory]:
        h = np.tanh(inputs)
        return h @ self.out + self.bias, Memory(h)

    def step(self, ids: np.ndarray, state: Memory) -> tuple[np.ndarray, Memory]:
        assert ids.shape == (len(state.h),)
        self.rows_stepped.append(len(ids))
        h = np.tanh(state.h @ self.recur + self.embed[ids])
        return h @ self.out + self.bias, Memory(h)


def inputs_of(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed + 1000).normal(size=(batch, WIDTH)) * 2


def token_logprobs(model: TinyLM, one: np.ndarray, tokens: Sequence[int], banned: Sequence[int] = ()) -> list[float]:
    """Teacher forcing, one token at a time, by hand."""
    logits, state = model.prefill(one)
    found = []
    for token in tokens:
        scores = logits[0].copy()
        scores[list(banned)] = -np.inf
        found.append(float(scores[token] - np.log(np.exp(scores).sum())))
        logits, state = model.step(np.array([token]), state)
    return found


def tokens_of(hypothesis: Hypothesis) -> tuple[int, ...]:
    return (*hypothesis.ids, EOS) if hypothesis.finished else hypothesis.ids


def search(**others: Any) -> Search:
    defaults: dict[str, Any] = {"eos": frozenset({EOS}), "max_new_tokens": 6}
    return Search(**(defaults | others))


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[tokens_of(h) for h in row] for row in found] == [[tokens_of(h) for h in row] for row in expected]
    for a, b in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert a.finished == b.finished and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def enumerate_texts(
    model: TinyLM, one: np.ndarray, vocabulary: int, longest: int
) -> list[tuple[tuple[int, ...], float]]:
    """Every text that can be: it ends with EOS, or is ``longest`` tokens long."""
    texts = []
    for length in range(1, longest + 1):
        for body in itertools.product(range(1, vocabulary), repeat=length - 1):
            for token in range(vocabulary) if length == longest else (EOS,):
                tokens = (*body, token)
                texts.append((tokens, sum(token_logprobs(model, one, tokens))))
    return texts


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]),
    eos_bias=st.sampled_from([-1.0, 1.0, 2.0]),
    longest=st.integers(1, 4),
)
def test_wide_beams_find_the_best_of_all_texts(seed: int, length_penalty: float, eos_bias: float, longest: int) -> None:
    model, one = TinyLM(4, seed, eos_bias), inputs_of(seed)
    texts = enumerate_texts(model, one, 4, longest)
    assert sum(math.exp(total) for _, total in texts) == pytest.approx(1)
    texts.sort(key=lambda text: -text[1] / len(text[0]) ** length_penalty)
    settings_ = search(max_new_tokens=longest, beams=64, n_best=5, length_penalty=length_penalty)
    [found] = generate(model, one, settings_)
    scores = [h.score(length_penalty) for h in found]
    wanted = [total / len(tokens) ** length_penalty for tokens, total in texts[:5]]
    assert len(found) == min(5, len(texts)) and scores == pytest.approx(wanted, abs=1e-4)
    if len(wanted) > 1 and wanted[0] - wanted[1] > 1e-4:
        assert tokens_of(found[0]) == texts[0][0]


def plain_beam_search(model: TinyLM, one: np.ndarray, vocabulary: int, settings_: Search) -> list[tuple[int, ...]]:
    """The tutorial's way: one input, lists, a beam less for each text that ends. Every text is scored from its start."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []
    for _ in range(settings_.max_new_tokens):
        slots = settings_.beams - len(ended)
        grown = [(*text, token) for text, _ in live for token in range(vocabulary)]
        ranked = sorted(((text, sum(token_logprobs(model, one, text))) for text in grown), key=lambda t: -t[1])
        ended += [t for t in ranked[:slots] if t[0][-1] == EOS]
        live = [t for t in ranked[:slots] if t[0][-1] != EOS]
        if not live:
            break
    ended += live
    ended.sort(key=lambda t: -t[1] / len(t[0]) ** settings_.length_penalty)
    return [text for text, _ in ended][: settings_.n_best]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    beams=st.integers(2, 6),
    eos_bias=st.sampled_from([-3.0, 0.0, 1.0, 2.5]),
    length_penalty=st.sampled_from([0.0, 1.0]),
)
def test_batched_beams_equal_a_plain_beam_search(seed: int, beams: int, eos_bias: float, length_penalty: float) -> None:
    vocabulary, batch = 5, 4
    model, inputs = TinyLM(vocabulary, seed, eos_bias), inputs_of(seed, batch)
    settings_ = search(beams=beams, n_best=beams, length_penalty=length_penalty)
    found = generate(model, inputs, settings_)
    for b in range(batch):
        expected = plain_beam_search(model, inputs[b : b + 1], vocabulary, settings_)
        assert [tokens_of(h) for h in found[b]] == expected


MODES: list[dict[str, Any]] = [
    {},
    {"beams": 3, "n_best": 3},
    {"beams": 4, "n_best": 2, "length_penalty": 1.0},
    {"temperature": 1.0, "n_best": 4},
    {"temperature": 0.7, "top_k": 3, "seed": 5},
    {"temperature": 1.5, "top_p": 0.8, "n_best": 2, "banned": frozenset({2})},
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_a_batch_equals_its_items(mode: dict[str, Any], seed: int) -> None:
    model, inputs = TinyLM(7, seed, eos_bias=1.5), inputs_of(seed, 6)
    together = generate(model, inputs, search(**mode))
    assert_same(together, [generate(model, inputs[b : b + 1], search(**mode))[0] for b in range(6)])
    assert_same(generate(model, inputs[::-1], search(**mode)), together[::-1])


def test_the_batches_above_do_end_at_different_times() -> None:
    lengths = {
        len(h.ids) for seed in range(5) for [h] in generate(TinyLM(7, seed, eos_bias=1.5), inputs_of(seed, 6), search())
    }
    assert len(lengths) > 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_logprobs_are_the_models_own(mode: dict[str, Any], seed: int) -> None:
    model, inputs = TinyLM(7, seed, eos_bias=0.5), inputs_of(seed, 4)
    settings_ = search(**mode)
    for b, row in enumerate(generate(model, inputs, settings_)):
        assert len(row) == settings_.n_best
        for h in row:
            tokens = tokens_of(h)
            assert EOS not in h.ids and 1 <= len(tokens) <= 6 and len(h.logprobs) == len(tokens)
            assert h.finished or len(tokens) == 6
            own = token_logprobs(model, inputs[b : b + 1], tokens, sorted(settings_.banned))
            assert h.logprobs == pytest.approx(own, abs=1e-5)
            assert h.logprob == pytest.approx(sum(own), abs=1e-5)
            assert h.score(2.0) == pytest.approx(sum(own) / len(tokens) ** 2, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_takes_the_likeliest_token(seed: int) -> None:
    model, inputs = TinyLM(7, seed), inputs_of(seed, 4)
    found = generate(model, inputs, search())
    for b, [h] in enumerate(found):
        tokens: list[int] = []
        while len(tokens) < 6 and EOS not in tokens:
            options = [token_logprobs(model, inputs[b : b + 1], [*tokens, token])[-1] for token in range(7)]
            tokens.append(options.index(max(options)))
        assert tokens_of(h) == tuple(tokens)


@pytest.mark.parametrize(
    "mode", [{"temperature": 1.0, "top_k": 1}, {"temperature": 2.0, "top_p": 1e-6}, {"temperature": 1e-4}]
)
def test_sampling_with_nothing_to_choose_is_greedy(mode: dict[str, Any]) -> None:
    model, inputs = TinyLM(7, 3), inputs_of(3, 5)
    assert_same(generate(model, inputs, search(**mode)), generate(model, inputs, search()))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_n_best_are_sorted_distinct_and_nested(seed: int, length_penalty: float) -> None:
    model, inputs = TinyLM(7, seed, eos_bias=0.5), inputs_of(seed, 3)
    wide = search(beams=5, n_best=5, length_penalty=length_penalty)
    full = generate(model, inputs, wide)
    for row in full:
        scores = [h.score(length_penalty) for h in row]
        assert scores == sorted(scores, reverse=True)
        assert len({tokens_of(h) for h in row}) == 5
    assert_same(generate(model, inputs, replace(wide, n_best=2)), [row[:2] for row in full])


def test_length_penalty_ranks_longer_texts_higher() -> None:
    lengths = [
        np.mean(
            [
                len(row[0].ids)
                for seed in range(10)
                for row in generate(TinyLM(7, seed, 1.0), inputs_of(seed, 4), search(beams=5, length_penalty=penalty))
            ]
        )
        for penalty in (-2.0, 0.0, 2.0)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[2]


@pytest.mark.parametrize("mode", [{}, {"beams": 4, "n_best": 4}, {"temperature": 3.0, "n_best": 16}])
def test_banned_tokens_never_appear(mode: dict[str, Any]) -> None:
    model, inputs = TinyLM(7, 1), inputs_of(1, 8)
    free = {i for row in generate(model, inputs, search(**mode)) for h in row for i in tokens_of(h)}
    banned = frozenset(sorted(free - {EOS})[:2])
    assert len(banned) == 2
    used = {i for row in generate(model, inputs, search(**mode, banned=banned)) for h in row for i in tokens_of(h)}
    assert used and not used & banned


def test_probabilities_without_the_banned_sum_to_one() -> None:
    model, one = TinyLM(5, 2), inputs_of(2)
    [row] = generate(model, one, search(beams=5, n_best=3, max_new_tokens=1, banned=frozenset({1, 3})))
    assert {tokens_of(h) for h in row} == {(0,), (2,), (4,)}  # and no dead beam is passed off as a text
    assert sum(math.exp(h.logprob) for h in row) == pytest.approx(1, abs=1e-5)


def test_banning_the_end_makes_every_text_long() -> None:
    for mode in ({}, {"beams": 3}, {"temperature": 1.0}):
        for [h] in generate(TinyLM(5, 2, eos_bias=9), inputs_of(2, 3), search(**mode, banned=frozenset({EOS}))):
            assert not h.finished and len(h.ids) == len(h.logprobs) == 6


def sample_counts(model: TinyLM, one: np.ndarray, vocabulary: int, **mode: Any) -> np.ndarray:
    """How often each first token is drawn in 64 x 80 samples."""
    counts = np.zeros(vocabulary)
    for seed in range(80):
        [row] = generate(model, one, search(max_new_tokens=1, n_best=64, seed=seed, **mode))
        for h in row:
            counts[tokens_of(h)[0]] += 1
    return counts


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("limit", [{}, {"top_k": 3}, {"top_p": 0.8}])
def test_samples_follow_the_tempered_softmax(temperature: float, limit: dict[str, Any]) -> None:
    model, one = TinyLM(6, 4), inputs_of(4) / 3
    p = np.exp(model.prefill(one)[0][0] / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if "top_k" in limit:
        p[order[3:]] = 0
    if "top_p" in limit:
        nucleus = next(n for n in range(1, 7) if p[order[:n]].sum() >= 0.8)
        p[order[nucleus:]] = 0
    p /= p.sum()
    counts = sample_counts(model, one, 6, temperature=temperature, **limit)
    assert counts[p == 0].sum() == 0
    expected = p[p > 0] * counts.sum()
    statistic = ((counts[p > 0] - expected) ** 2 / expected).sum()
    assert statistic < 25.7  # chi-square, at most 5 degrees of freedom: exceeded once in 10,000


def test_the_second_token_is_drawn_from_its_own_rows_distribution() -> None:
    model, one = TinyLM(3, 8), inputs_of(8)
    model.out /= 4
    settings_ = search(max_new_tokens=2, n_best=64, temperature=1.0, banned=frozenset({EOS}))
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(80):
        for h in generate(model, one, replace(settings_, seed=seed))[0]:
            counts[h.ids] = counts.get(h.ids, 0) + 1
    expected = {
        ids: 64 * 80 * math.exp(sum(token_logprobs(model, one, ids, [EOS])))
        for ids in itertools.product((1, 2), repeat=2)
    }
    assert min(expected.values()) > 50
    assert sum((counts.get(ids, 0) - n) ** 2 / n for ids, n in expected.items()) < 21.1  # 3 degrees of freedom


def test_each_input_may_have_its_own_seed() -> None:
    """Self-critical training needs it: with one seed for all, every photo would be given the same noise."""
    model, one = TinyLM(7, 3), inputs_of(3)
    same = np.repeat(one, 5, 0)
    mode = search(temperature=1.0, n_best=3)
    together = generate(model, same, mode, seeds=[10, 11, 12, 13, 14])
    assert len({tuple(map(tokens_of, row)) for row in together}) == 5
    assert_same(together, [generate(model, one, search(temperature=1.0, n_best=3, seed=s))[0] for s in range(10, 15)])


def test_seed_decides_the_samples() -> None:
    model, inputs = TinyLM(7, 0), inputs_of(0, 2)
    settings_ = search(temperature=1.0, n_best=8)
    first = generate(model, inputs, settings_)
    assert first == generate(model, inputs, settings_) != generate(model, inputs, replace(settings_, seed=1))
    assert len({tokens_of(h) for h in first[0]}) > 1  # the samples of one input are different draws


@pytest.mark.parametrize("mode", [{}, {"beams": 3}, {"temperature": 1.0, "n_best": 2}])
@pytest.mark.parametrize("longest", [1, 2, 5])
def test_texts_that_never_end_are_returned_unfinished(mode: dict[str, Any], longest: int) -> None:
    model = TinyLM(5, 1, eos_bias=-99)
    for row in generate(model, inputs_of(1, 3), search(**mode, max_new_tokens=longest)):
        for h in row:
            assert not h.finished and len(h.ids) == len(h.logprobs) == longest
    assert len(model.rows_stepped) == longest - 1  # the last token needs no further step


@pytest.mark.parametrize("mode", [{}, {"beams": 1}, {"beams": 3}, {"temperature": 1.0}])
def test_end_as_first_token_is_an_empty_text(mode: dict[str, Any]) -> None:
    for row in generate(TinyLM(5, 1, eos_bias=99), inputs_of(1, 3), search(**mode)):
        assert row[0].ids == () and row[0].finished and len(row[0].logprobs) == 1
        assert row[0].logprob == pytest.approx(0, abs=1e-5)


def test_any_of_several_end_tokens_ends_a_text() -> None:
    model, inputs = TinyLM(4, 3), inputs_of(3, 12)
    for mode in ({}, {"beams": 3}, {"temperature": 1.0}):
        for [h] in generate(model, inputs, search(**mode, eos=frozenset({EOS, 2}), max_new_tokens=20)):
            assert not {EOS, 2} & set(h.ids)


@pytest.mark.parametrize("mode", [{}, {"beams": 2}, {"temperature": 1.0, "n_best": 2}])
def test_inputs_that_are_done_are_dropped(mode: dict[str, Any]) -> None:
    model, inputs = TinyLM(7, 2, eos_bias=2), inputs_of(2, 8)
    generate(model, inputs, search(**mode, max_new_tokens=12))
    assert model.rows_stepped == sorted(model.rows_stepped, reverse=True)
    assert model.rows_stepped[-1] < model.rows_stepped[0] <= 16


def test_generation_stops_when_all_have_ended() -> None:
    model = TinyLM(5, 1, eos_bias=99)
    generate(model, inputs_of(1, 3), search(max_new_tokens=50))
    assert model.rows_stepped == []


@pytest.mark.parametrize("mode", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_p": 0.9}])
@pytest.mark.parametrize("eos_bias", [-99.0, 0.0, 99.0])
def test_stream_equals_generate(mode: dict[str, Any], eos_bias: float) -> None:
    model, one = TinyLM(7, 5, eos_bias), inputs_of(5)
    [[h]] = generate(model, one, search(**mode))
    streamed = list(stream(model, one, search(**mode)))
    assert tuple(token.id for token in streamed) == h.ids
    assert [token.logprob for token in streamed] == pytest.approx(list(h.logprobs[: len(h.ids)]))


MODES: list[dict[str, Any]] = [
    {},
    {"beams": 3, "n_best": 3},
    {"beams": 2, "refill": True, "once": lambda token: frozenset({token} if token % 2 else ())},
    {"temperature": 1.0, "n_best": 2, "seed": 3},
]


@pytest.mark.parametrize("mode", MODES)
def test_the_likeliest_tokens_are_recorded_at_each_place(mode: dict[str, Any]) -> None:
    model, one, banned = TinyLM(9, 4), inputs_of(4), frozenset({7})
    plain = generate(model, one, search(banned=banned, **mode))
    assert [h.likeliest for h in plain[0]] == [()] * len(plain[0])
    written = generate(model, one, search(banned=banned, top_logprobs=8, **mode))
    assert_same(written, plain)
    for h in written[0]:
        assert len(h.likeliest) == len(h.ids)
        for place, likeliest in enumerate(h.likeliest):
            wanted = [(t, token_logprobs(model, one, [*h.ids[:place], t], [7])[-1]) for t in range(9) if t != 7]
            wanted.sort(key=lambda pair: -pair[1])
            assert [t for t, _ in likeliest] == [t for t, _ in wanted]
            assert [p for _, p in likeliest] == pytest.approx([p for _, p in wanted], abs=1e-4)
    (first, *_) = generate(model, one, search(top_logprobs=0, **mode))[0]
    assert first.likeliest == ((),) * len(first.ids) and "top_logprobs" not in search(top_logprobs=3).to_dict()


def test_stream_gives_each_token_before_the_next_step() -> None:
    model = TinyLM(7, 5, eos_bias=-99)
    tokens = stream(model, inputs_of(5), search())
    for made in range(6):
        next(tokens)
        assert len(model.rows_stepped) == made
    assert next(tokens, None) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 10**6}, "max_new_tokens"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 65}, "beams is 65"),
        ({"n_best": 0}, "n_best is 0"),
        ({"n_best": 2}, "n_best is 2.*between 1 and 1"),
        ({"beams": 3, "n_best": 4}, "n_best is 4"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),  # would overflow to nonsense
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 1.0, "n_best": 65}, "n_best is 65"),
        ({"temperature": 1.0, "beams": 2}, "choose either beams"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"length_penalty": 1e9}, "length_penalty"),
        ({"length_penalty": math.nan}, "length_penalty is nan"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(**wrong)


@pytest.mark.parametrize("wrong", [{"beams": 2}, {"temperature": 1.0, "n_best": 2}])
def test_only_one_text_can_be_streamed(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="streaming writes one text"):
        next(stream(TinyLM(5, 0), inputs_of(0), search(**wrong)))
