"""The decoder: cached = uncached however it is cut, batches = singles, beams, configs that cannot be."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from tiny_decoder import CONFIGS, LLAMA, ids, random_decoder

from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.nn import masks
from triptych.nn.cache import KVCache
from triptych.nn.decoder import Decoder, Prompt, TokenContext, left_pad
from triptych.nn.positions import alibi


@pytest.fixture(params=CONFIGS, scope="module")
def lm(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(CONFIGS[request.param])


def compositions(total: int) -> list[list[int]]:
    """Every way to cut ``total`` into chunks."""
    cuts = itertools.product([False, True], repeat=total - 1)
    return [[len(list(run)) for _, run in itertools.groupby(itertools.accumulate((0, *cut)))] for cut in cuts]


def test_every_chunking_of_a_prompt(lm: Decoder) -> None:
    """12 tokens can be cut in 2,048 ways, out of 78 chunks: each chunk after the tokens before it."""
    text = ids(1, 12)
    whole = lm(text)
    for start in range(12):
        cache = KVCache(lm.config.layers, capacity=3)
        if start:
            lm(text[:, :start], cache=cache)
        for end in range(start + 1, 13):
            cache.truncate(start)
            torch.testing.assert_close(lm(text[:, start:end], cache=cache), whole[:, start:end])


@pytest.mark.parametrize("chunks", random.Random(0).sample(compositions(12), 12), ids=str)
def test_chunks_one_after_another(lm: Decoder, chunks: list[int]) -> None:
    text, cache = ids(3, 12), KVCache(lm.config.layers, capacity=2)
    parts = [lm(part, cache=cache) for part in text.split(chunks, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), lm(text))


def test_scores_of_what_may_follow(lm: Decoder) -> None:
    text = ids(2, 9)
    _, cache = lm.prefill(text[:, :4])
    torch.testing.assert_close(lm.score(text[:, 4:], cache), lm.logits(lm(text))[:, 4:])


@pytest.mark.parametrize("chunks", [[12], [5, 7], [1] * 12, [9, 1, 2]], ids=str)
def test_ragged_chunks(lm: Decoder, chunks: list[int]) -> None:
    """Left-padded rows cut anywhere, even inside the padding, equal each row alone."""
    rows = [ids(n, seed=n) for n in (3, 12, 8)]
    prompt, cache, parts = left_pad(rows), KVCache(lm.config.layers, capacity=2), []
    assert prompt.padding_mask is not None
    for part, mask in zip(prompt.inputs.split(chunks, 1), prompt.padding_mask.split(chunks, 1), strict=True):
        parts.append(lm(part, mask, cache))
    hidden = torch.cat(parts, 1)
    torch.testing.assert_close(hidden, lm(prompt.inputs, prompt.padding_mask))
    for i, row in enumerate(rows):
        torch.testing.assert_close(hidden[i, 12 - len(row) :], lm(row[None])[0])


def test_padding_is_never_read(lm: Decoder) -> None:
    prompt = left_pad([ids(3), ids(7)])
    changed = prompt.inputs.clone()
    changed[0, :4] = ids(4, seed=9)
    before, after = lm(prompt.inputs, prompt.padding_mask), lm(changed, prompt.padding_mask)
    assert torch.equal(before[0, 4:], after[0, 4:]) and torch.equal(before[1], after[1])


def test_later_tokens_are_never_read(lm: Decoder) -> None:
    text = ids(1, 10)
    changed = text.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    moved = (lm(text) != lm(changed)).any(-1)[0]
    last = 6 + (lm.config.layers * (lm.config.window - 1) if lm.config.window else 10)
    assert moved.tolist() == [6 <= t <= last for t in range(10)]


@pytest.mark.parametrize("beams", [1, 3])
def test_batch_equals_singles(lm: Decoder, beams: int) -> None:
    rows = [ids(n, seed=n) for n in (2, 9, 5)]
    search = Search(eos=frozenset([7]), max_new_tokens=12, beams=beams, n_best=beams)
    together = generate(lm, left_pad(rows), search)
    embedded = generate(lm, left_pad([lm.embed(row) for row in rows]), search)
    for row, batch, soft in zip(rows, together, embedded, strict=True):
        [alone] = generate(lm, row[None], search)
        assert [h.ids for h in batch] == [h.ids for h in alone] == [h.ids for h in soft]
        assert [h.logprob for h in batch] == pytest.approx([h.logprob for h in alone], abs=1e-4)


def test_beams_score_what_they_say(lm: Decoder) -> None:
    """The log-probability of each beam is that of its ids in one uncached run: the cache followed the beams."""
    prompt = ids(1, 6)
    [texts] = generate(lm, prompt, Search(eos=frozenset([7]), max_new_tokens=10, beams=4, n_best=4))
    for text in texts:
        written = torch.tensor([[*text.ids, *([7] if text.finished else [])]])
        logprobs = lm.logits(lm(torch.cat([prompt, written], 1))).log_softmax(-1)[0, 5:-1]
        assert text.logprob == pytest.approx(float(logprobs.gather(1, written.T).sum()), abs=1e-4)


def test_a_prefix_is_read_once(lm: Decoder) -> None:
    prefix, ends = ids(1, 8), [ids(1, 3, seed=2), ids(1, 3, seed=3)]
    _, cache = lm.prefill(prefix)
    expected = [lm.prefill(torch.cat([prefix, end], 1))[0] for end in ends]
    for end, logits in zip(ends, expected, strict=True):
        torch.testing.assert_close(lm.prefill(Prompt(end, cache=cache))[0], logits)
        cache.truncate(8)
    forked = cache.fork(torch.tensor([0, 0]))
    torch.testing.assert_close(lm.prefill(Prompt(torch.cat(ends), cache=forked))[0], torch.cat(expected))
    assert cache.length == 8 and forked.length == 11


def test_a_ragged_prefix_goes_on(lm: Decoder) -> None:
    """Padding of a second call: of the rows' questions after a shared, itself padded, beginning."""
    first, second = [ids(2, seed=2), ids(5, seed=3)], [ids(4, seed=4), ids(3, seed=5)]
    _, cache = lm.prefill(left_pad(first))
    more = left_pad(second)
    logits, cache = lm.prefill(more._replace(cache=cache))
    alone = torch.cat([lm.prefill(torch.cat([a, b])[None])[0] for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(logits, alone)
    cache.truncate(5)
    torch.testing.assert_close(lm.prefill(more._replace(cache=cache))[0], alone)
    cache.truncate(5)  # and again with texts that have no padding where these had
    third = ids(2, 4, seed=6)
    alone = torch.cat([lm.prefill(torch.cat([a, b])[None])[0] for a, b in zip(first, third, strict=True)])
    torch.testing.assert_close(lm.prefill(Prompt(third, cache=cache))[0], alone)


def test_blocks_may_be_run_from_outside(lm: Decoder) -> None:
    text, cache = ids(2, 7), KVCache(lm.config.layers)
    for part in text.split([4, 3], 1):
        x, place = lm.embed_inputs(part, cache=cache)
        for i, block in enumerate(lm.blocks):
            x = block(x, place, cache[i])
        hidden = lm.final_hidden(x)
    torch.testing.assert_close(hidden, lm(text)[:, 4:])


@pytest.mark.parametrize("training", [False, True])
def test_branches_of_one_row(lm: Decoder, training: bool) -> None:
    """Texts that share a beginning, side by side in one row, as ``add_positions`` numbers them: each as if it were alone."""
    prefix, ends = ids(1, 2), ids(3, 2, seed=2)
    position_ids = torch.tensor([[0, 1] + [2, 3] * 3])
    with torch.set_grad_enabled(training):
        x, positions = lm.add_positions(lm.embed(torch.cat([prefix, ends.view(1, -1)], 1)), position_ids)
        for block in lm.blocks:
            x = block(x, TokenContext(masks.branches(2, [0, 0, 1, 1, 2, 2]), False, positions))
        alone = lm(torch.cat([prefix.expand(3, -1), ends], 1))
    torch.testing.assert_close(lm.final_hidden(x)[0, 2:], alone[:, 2:].flatten(0, 1))


def test_alibi() -> None:
    """The paper's slopes, of 8 heads and of 6, and its biases at positions in any order."""
    for heads, most, exponents in (
        (8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (8, 16, [2, 4, 6, 8, 10, 12, 14, 16]),
        (6, 8, [2, 4, 6, 8, 1, 3]),
        (1, 8, [8]),
    ):
        queries, keys = torch.tensor([[5, 6], [2, 3]]), torch.tensor([[6, 0, 4], [0, 1, 2]])
        for b, (rows, columns) in enumerate(zip(queries.tolist(), keys.tolist(), strict=True)):
            expected = torch.tensor([[[-(2.0**-e) * (i - j) for j in columns] for i in rows] for e in exponents])
            torch.testing.assert_close(alibi(queries, keys, heads, most)[b], expected)


def test_alibi_stays_exact_far_from_the_beginning() -> None:
    """Only distances count, to the last bit."""
    near, far = torch.arange(8)[None], torch.arange(4000, 4008)[None]
    assert torch.equal(alibi(near, near, 6), alibi(far, far, 6))


def test_attention_maps(lm: Decoder) -> None:
    prompt = left_pad([ids(3), ids(7)])
    for weights in lm.attention_maps(prompt.inputs, prompt.padding_mask):
        assert weights.shape == (2, lm.config.heads, 7, 7)
        total = weights.sum(-1)
        torch.testing.assert_close(total[1], torch.ones_like(total[1]))
        torch.testing.assert_close(total[0, :, 4:], torch.ones_like(total[0, :, 4:]))
        assert (total[0, :, :4] == 0).all() and (weights[0, :, :, :4] == 0).all()
        assert (weights.triu(1) == 0).all()


def test_bad_prompts(lm: Decoder) -> None:
    with pytest.raises(InputError, match="65 tokens: the language model reads 64 at most"):
        lm.prefill(ids(1, 65))
    _, cache = lm.prefill(ids(1, 60))
    with pytest.raises(InputError, match="70 tokens"):
        lm.prefill(Prompt(ids(1, 10), cache=cache))
    with pytest.raises(InputError, match="empty"):
        lm.prefill(ids(1, 0))
    with pytest.raises(ValueError, match="left_pad"):
        lm.prefill(Prompt(ids(1, 3), torch.tensor([[True, True, False]])))


def test_configs_that_cannot_be() -> None:
    for change, words in (
        ({"rotary_dim": 0}, "rotary_dim is 0"),
        ({"rotary_dim": 6}, "rotary_dim is 6"),
        ({"rotary_dim": 3}, "even rotary_dim"),
        ({"rotary_dim": 2, "rope_factors": (float("nan"),)}, "rope_factors must be numbers above 0"),
        ({"embed_scale": -1.0}, "embed_scale is -1.0, expected a number above 0"),
        ({"attention_softcap": float("inf")}, "attention_softcap is inf"),
        ({"local_layers": (2,), "window": 3}, r"local_layers is \(2,\), expected numbers below 2"),
        ({"unrotated_layers": (-1,)}, "unrotated_layers"),
        ({"parallel": True, "post_norm": True}, "parallel needs pre_norm"),
        ({"rotary_dim": 2, "rope_factors": (1.0, 1.0)}, "2 rope_factors, expected 1"),
        ({"positions": "alibi", "alibi_bias_max": 0}, "alibi_bias_max is 0"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"parallel": True, "pre_norm": False}, "parallel needs pre_norm"),
    ):
        with pytest.raises(InputError, match=words):
            replace(LLAMA, **change)
