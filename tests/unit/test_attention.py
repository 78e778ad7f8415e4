"""Attention: the fused path equals the formula, rows with nothing to see, keys and values given, cached chunks."""

import math
from collections.abc import Iterator

import pytest
import torch

from triptych.nn import masks
from triptych.nn.attention import AttentionScores, KeysValues, MultiHeadAttention, attend, attention_weights
from triptych.nn.cache import KVCache, LayerCache


@pytest.fixture(autouse=True, params=[False, True], ids=["fused", "training"])
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test twice: by the fused kernel, and by the plain products that training on a CPU takes."""
    torch.manual_seed(0)
    with torch.set_grad_enabled(request.param):
        yield


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biases", [0, 1, 2])
@pytest.mark.parametrize(("scale", "softcap"), [(None, None), (0.7, None), (0.7, 1.5)])
def test_attend_is_the_formula(
    groups: int, masked: bool, biases: int, scale: float | None, softcap: float | None
) -> None:
    q, k, v = torch.randn(2, 6, 3, 8), torch.randn(2, groups, 5, 8), torch.randn(2, groups, 5, 8)
    mask = torch.rand(2, 3, 5) > 0.4 if masked else None
    bias = torch.randn(biases, 6, 3, 5) if biases else None  # one for all items, or each its own
    expected = torch.zeros(2, 6, 3, 8)
    weights = torch.zeros(2, 6, 3, 5)
    for b in range(2):
        for h in range(6):
            for t in range(3):
                allowed = [s for s in range(5) if mask is None or mask[b, t, s]]
                products = [float(q[b, h, t] @ k[b, h * groups // 6, s]) * (scale or 8**-0.5) for s in allowed]
                if softcap:
                    products = [softcap * math.tanh(product / softcap) for product in products]
                added = [0.0 if bias is None else float(bias[b % biases, h, t, s]) for s in allowed]
                scores = [math.exp(product + extra) for product, extra in zip(products, added, strict=True)]
                for s, score in zip(allowed, scores, strict=True):
                    weights[b, h, t, s] = score / sum(scores)
                    expected[b, h, t] += weights[b, h, t, s] * v[b, h * groups // 6, s]
    made = AttentionScores(scale, bias, softcap)
    torch.testing.assert_close(attend(q, k, v, mask, scores=made), expected)
    torch.testing.assert_close(attention_weights(q, k, mask, made), weights)


@pytest.mark.parametrize("biased", [False, True])
def test_causal_flag_is_the_causal_mask(biased: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8)
    bias = torch.randn(1, 4, 7, 7) if biased else None
    causal = attend(q, k, v, causal=True, scores=AttentionScores(bias=bias))
    torch.testing.assert_close(causal, attend(q, k, v, masks.causal(7), scores=AttentionScores(bias=bias)))


@pytest.mark.parametrize("length", [1, 5, 40])
def test_a_biased_row_with_all_keys_masked_gets_zero(length: int) -> None:
    q, (k, v) = torch.randn(2, 4, length, 8, requires_grad=True), torch.randn(2, 2, 4, 9, 8, requires_grad=True)
    mask = torch.ones(2, length, 9, dtype=torch.bool)
    mask[0, 0] = False
    out = attend(q, k, v, mask, scores=AttentionScores(bias=torch.randn(1, 4, length, 9)))
    assert torch.equal(out[0, :, 0], torch.zeros(4, 8)) and (out[1] != 0).all()
    if torch.is_grad_enabled():
        out.square().sum().backward()
        assert q.grad is not None and q.grad.isfinite().all()


@pytest.mark.parametrize("length", [1, 5, 40])
def test_a_row_with_all_keys_masked_gets_zero(length: int) -> None:
    attention = MultiHeadAttention(16, 2, bias=False)
    x = torch.randn(2, length, 16, requires_grad=True)
    source = torch.randn(2, 9, 16, requires_grad=True)
    mask = torch.ones(2, length, 9, dtype=torch.bool)
    mask[0, 0] = False
    kv = attention.keys_values(source)
    out, weights = attention(x, kv, mask), attention.weights(x, kv, mask)
    assert torch.equal(out[0, 0], torch.zeros(16))
    assert torch.equal(weights[0, :, 0], torch.zeros(2, 9))
    assert (out[1] != 0).all()
    if not torch.is_grad_enabled():
        return
    (out.square().sum() + weights.square().sum()).backward()
    for tensor in (x, source, *attention.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_widths_and_biases() -> None:
    attention = MultiHeadAttention(24, 4, kv_dim=10, head_dim=5, bias=False)
    assert {name: tuple(p.shape) for name, p in attention.named_parameters()} == {
        "query.weight": (20, 24),
        "key.weight": (20, 10),
        "value.weight": (20, 10),
        "out.weight": (24, 20),
    }
    kv = attention.keys_values(torch.randn(2, 7, 10))
    assert kv.keys.shape == (2, 4, 7, 5)
    assert attention(torch.randn(2, 3, 24), kv).shape == (2, 3, 24)
    assert attention.weights(torch.randn(2, 3, 24), kv).shape == (2, 4, 3, 7)


def test_weights_explain_the_output() -> None:
    attention = MultiHeadAttention(16, 4)
    x, mask = torch.randn(2, 6, 16), masks.causal(6)
    values = attention.keys_values(x).values
    rebuilt = attention.out((attention.weights(x, mask=mask) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, mask=mask), rebuilt)


@pytest.mark.parametrize("chunks", [[6], [1] * 6, [2, 4], [3, 1, 2]])
def test_cached_chunks_equal_the_whole(chunks: list[int]) -> None:
    attention = MultiHeadAttention(16, 4).requires_grad_(False)
    x, cache = torch.randn(2, 6, 16), LayerCache(capacity=2)
    parts = []
    for part in x.split(chunks, dim=1):
        mask = masks.causal(part.shape[1], past=cache.length)
        parts.append(attention(part, KeysValues(*cache.append(*attention.keys_values(part))), mask))
    torch.testing.assert_close(torch.cat(parts, 1), attention(x, mask=masks.causal(6)))


def filled(rows: int, length: int, capacity: int = 4) -> tuple[KVCache, torch.Tensor]:
    cache, content = KVCache(2, capacity), torch.randn(rows, 3, length, 8)
    for layer in range(2):
        cache[layer].append(content + layer, content - layer)
    return cache, content


def contents(cache: KVCache, layer: int = 1) -> torch.Tensor:
    empty = torch.empty(len(cache[layer]._buffers[0]), 3, 0, 8)  # type: ignore[index]
    keys, values = cache[layer].append(empty, empty)
    torch.testing.assert_close(keys, values + 2 * layer)
    return keys - layer


def test_reorder_follows_rows() -> None:
    """Any sequence of reorders and appends gives what copying whole rows gives."""
    cache, content = filled(3, 5)
    for rows in (
        [[0, 0], [1, 1], [2, 2]],
        [[0, 1], [2, 3], [4, 5]],
        [[1, 0], [2, 2], [5, 4]],
        [[0, 0, 1], [4, 5, 4]],
        [[2, 1, 0], [3, 3, 3]],
        [[5, 3, 4]],
        [[1]],
    ):
        cache = cache.reorder(torch.tensor(rows))
        content = content[torch.tensor(rows).flatten()]
        torch.testing.assert_close(contents(cache), content)
        more = torch.randn(len(content), 3, 2, 8)
        for layer in range(2):
            cache[layer].append(more + layer, more - layer)
        content = torch.cat([content, more], 2)
    torch.testing.assert_close(contents(cache), content)


def test_reorder_moves_no_prompt() -> None:
    cache, _ = filled(1, 5)
    cache = cache.reorder(torch.tensor([[0, 0]]))
    more = torch.randn(2, 3, 1, 8)
    for layer in range(2):
        cache[layer].append(more, more)
    keys, _ = cache[0]._buffers  # type: ignore[misc]
    keys[0, :, 2] = 7  # a mark in one row's prompt stays where it is
    cache = cache.reorder(torch.tensor([[1, 0]]))
    assert (keys[0, :, 2] == 7).all() and not (keys[1, :, 2] == 7).any()
    torch.testing.assert_close(keys[:, :, 5:6], more.flip(0))


def test_fork_leaves_the_original_and_truncate_goes_back() -> None:
    cache, content = filled(2, 6)
    fork = cache.fork(torch.tensor([1, 1, 0]))
    torch.testing.assert_close(contents(fork), content[[1, 1, 0]])
    for layer in range(2):
        fork[layer].append(torch.randn(3, 3, 1, 8), torch.randn(3, 3, 1, 8))
    torch.testing.assert_close(contents(cache), content)
    storage = cache[0]._buffers[0].data_ptr()  # type: ignore[index]
    cache.truncate(4)
    assert cache.length == 4 and cache[0]._buffers[0].data_ptr() == storage  # type: ignore[index]
    torch.testing.assert_close(contents(cache), content[:, :, :4])


def test_places_count_tokens_only() -> None:
    cache = KVCache(1)
    mask = torch.tensor([[False, False, True], [True, True, True]])
    position_ids, visible = cache.advance(3, mask)
    assert position_ids is not None and visible is not None
    assert position_ids.tolist() == [[0, 0, 0], [0, 1, 2]] and torch.equal(visible, mask)
    cache[0].append(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4))
    position_ids, visible = cache.advance(2)
    assert position_ids is not None and visible is not None
    assert position_ids.tolist() == [[1, 2], [3, 4]]
    assert visible.tolist() == [[False, False, True, True, True], [True] * 5]


def test_no_padding_needs_no_mask() -> None:
    cache = KVCache(1)
    assert cache.advance(3, torch.ones(2, 3, dtype=torch.bool)) == (None, None)
    assert cache.advance(3) == (None, None) and not cache.padded
