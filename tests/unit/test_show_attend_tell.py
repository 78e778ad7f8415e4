"""Show, Attend and Tell against a slow reading of the paper's equations, and against what must not change."""

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from tiny_sat import KINDS, VARIANTS, A, B, D, K, L, M, N, T, V, data, make
from torch import nn

from triptych.errors import InputError
from triptych.nn.cnn import ConvNet
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import (
    CaptionDecoder,
    CaptionState,
    ShowAttendTell,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow(decoder: CaptionDecoder, a: np.ndarray, words: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The paper's equations (or the tutorial's) for one photo ``a [L, D]`` and one caption, cell by cell and gate by gate."""
    config = decoder.config
    w = {name: p.detach().double().numpy() for name, p in decoder.named_parameters()}

    def affine(name: str, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = w[f"{name}.weight"] @ x
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    mean = sum(a) / len(a)
    h, c = affine("init_h", mean), affine("init_c", mean)
    if config.initial_state == "tanh":
        h, c = np.tanh(h), np.tanh(c)
    all_logits, all_alpha = [], []
    for word in words:
        scores = []
        for cell in a:
            inside = affine("attention.annotation_proj", cell) + affine("attention.hidden_proj", h)
            inside = np.tanh(inside) if config.score == "tanh" else np.maximum(inside, 0)
            scores.append(float(affine("attention.score", inside)[0]))
        total = sum(math.exp(e) for e in scores)
        alpha = [math.exp(e) / total for e in scores]
        if config.attention == "soft":
            context = sum(p * cell for p, cell in zip(alpha, a, strict=True))
        else:
            context = a[max(range(len(a)), key=lambda i: alpha[i])]
        beta = affine("beta", h)
        z_hat = np.array([sigmoid(beta[0 if config.gate == "scalar" else j]) * context[j] for j in range(D)])
        embedded = w["embedding.weight"][word]
        gates = w["lstm.weight_ih"] @ np.concatenate([embedded, z_hat]) + w["lstm.bias_ih"]
        gates = gates + w["lstm.weight_hh"] @ h + w["lstm.bias_hh"]
        new_h, new_c = np.zeros(N), np.zeros(N)
        for j in range(N):
            i, f, g, o = (float(gates[gate * N + j]) for gate in range(4))
            new_c[j] = sigmoid(f) * c[j] + sigmoid(i) * math.tanh(g)
            new_h[j] = sigmoid(o) * math.tanh(new_c[j])
        h, c = new_h, new_c
        if config.output == "deep":
            all_logits.append(affine("output", embedded + affine("output_h", h) + affine("output_z", z_hat)))
        else:
            all_logits.append(affine("output", h))
        all_alpha.append(alpha)
    return np.array(all_logits), np.array(all_alpha)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_forward_is_the_papers_equations(variant: str, attention: Literal["soft", "hard"], seed: int) -> None:
    decoder, (annotations, ids) = make(variant, attention, seed), data(seed + 10)
    output = decoder(annotations, ids)
    assert output.logits.shape == (B, K, T, V) and output.alpha.shape == (B, K, T, L)
    for b, k in itertools.product(range(B), range(K)):
        logits, alpha = slow(decoder, annotations[b].double().numpy(), ids[b, k].tolist())
        np.testing.assert_allclose(output.logits[b, k].detach(), logits, atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(output.alpha[b, k].detach(), alpha, atol=1e-5)


def test_variants_differ_where_the_config_says_so() -> None:
    paper, tutorial = make("paper"), make("tutorial")
    assert paper.beta.out_features == 1 and tutorial.beta.out_features == D
    assert {"output_h.weight", "output_z.weight"} == {
        name for name, p in paper.named_parameters() if name.startswith("output_") and p.ndim == 2
    }
    assert not hasattr(tutorial, "output_h") and tutorial.output.in_features == N
    assert ShowAttendTellConfig.tutorial(V, score="tanh").score == "tanh"


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_step_is_torchs_lstm_cell(variant: str) -> None:
    decoder, (annotations, _) = make(variant), data()
    torch.manual_seed(5)
    state = decoder.start(annotations, K)._replace(h=torch.randn(B, K, N), c=torch.randn(B, K, N))
    embedded = torch.randn(B, K, M)
    step = decoder.advance(decoder.word_gates(embedded), state)
    h, c = decoder.lstm(
        torch.cat([embedded, step.z_hat], -1).flatten(0, 1), (state.h.flatten(0, 1), state.c.flatten(0, 1))
    )
    torch.testing.assert_close(step.h.flatten(0, 1), h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step.c.flatten(0, 1), c, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("words", range(1, 6))
def test_step_by_step_equals_teacher_forcing(variant: str, attention: Literal["soft", "hard"], words: int) -> None:
    decoder, (annotations, ids) = make(variant, attention), data(words=words)
    expected = decoder(annotations, ids).logits
    first, state = decoder.prefill(annotations)
    torch.testing.assert_close(first, expected[:, 0, 0], atol=1e-5, rtol=1e-5)
    state = state.reorder(torch.arange(B)[:, None].expand(-1, K))
    for t in range(1, words):
        logits, state = decoder.step(ids[:, :, t].flatten(), state)
        torch.testing.assert_close(logits, expected[:, :, t].flatten(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_captions_together_equal_captions_alone(variant: str, attention: Literal["soft", "hard"]) -> None:
    decoder, (annotations, ids) = make(variant, attention), data()
    together = decoder(annotations, ids)
    for b, k in itertools.product(range(B), range(K)):
        alone = decoder(annotations[b : b + 1], ids[b : b + 1, k : k + 1])
        torch.testing.assert_close(alone.logits[0, 0], together.logits[b, k], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.alpha[0, 0], together.alpha[b, k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_large_batch_equals_its_photos(variant: str) -> None:
    """Also in its gradients: scores may be made in parts."""
    decoder = make(variant)
    annotations, ids = torch.randn(9, L, D), torch.randint(4, V, (9, K, T))
    weights = list(decoder.attention.parameters())
    together = decoder(annotations, ids)
    expected = torch.autograd.grad(together.logits.square().sum(), weights)
    alone = [decoder(annotations[b : b + 1], ids[b : b + 1]).logits for b in range(9)]
    torch.testing.assert_close(torch.cat(alone), together.logits, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(torch.cat(alone).square().sum(), weights)
    torch.testing.assert_close(gradients, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("changed", range(1, T))
def test_a_word_changes_nothing_before_it(variant: str, changed: int) -> None:
    decoder, (annotations, ids) = make(variant), data()
    other = ids.clone()
    other[1, 0, changed] = 4 + (ids[1, 0, changed] - 3) % (V - 4)
    before, after = decoder(annotations, ids), decoder(annotations, other)
    assert torch.equal(before.logits[:, :, :changed], after.logits[:, :, :changed])
    assert torch.equal(before.alpha[:, :, : changed + 1], after.alpha[:, :, : changed + 1])
    moved = (before.logits != after.logits).any(-1)
    assert moved[1, 0, changed:].all() and moved.sum() == T - changed  # and no other caption moves


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_photo_changes_only_its_own_captions(variant: str) -> None:
    decoder, (annotations, ids) = make(variant), data()
    other = annotations.clone()
    other[1, 2] += 1
    moved = (decoder(annotations, ids).logits != decoder(other, ids).logits).any(-1)
    assert moved[1].all() and not moved[0].any() and not moved[2].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_alpha_is_a_distribution_that_follows_the_scores(variant: str) -> None:
    decoder, (annotations, ids) = make(variant), data()
    alpha = decoder(annotations, ids).alpha
    assert (alpha > 0).all()
    torch.testing.assert_close(alpha.sum(-1), torch.ones(B, K, T))
    assert alpha.std(-1).max() > 0.02
    state = decoder.start(annotations, K)
    before = decoder.attention(state.keys, state.h)
    for cell in range(L):
        keys = state.keys.clone()
        keys[:, cell] += 3 * decoder.attention.score.weight[0].sign()  # both non-linearities climb: the score is raised
        raised = decoder.attention(keys, state.h) - before
        others = torch.arange(L) != cell
        assert (raised[..., cell] > 0).all() and (raised[..., others] < 0).all()


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_moving_the_cells_moves_alpha_and_nothing_else(variant: str, attention: Literal["soft", "hard"]) -> None:
    decoder, (annotations, ids) = make(variant, attention), data()
    order = torch.tensor([3, 0, 4, 1, 2])
    before, after = decoder(annotations, ids), decoder(annotations[:, order], ids)
    torch.testing.assert_close(after.alpha, before.alpha[..., order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)


def open_gate(decoder: CaptionDecoder) -> CaptionDecoder:
    nn.init.zeros_(decoder.beta.weight)
    nn.init.constant_(decoder.beta.bias, 50)
    return decoder


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_closed_gate_hides_the_photo(variant: str) -> None:
    decoder, (annotations, ids) = make(variant), data()
    nn.init.zeros_(decoder.beta.weight)
    nn.init.constant_(decoder.beta.bias, -200)
    shifted = annotations - annotations.mean(1, keepdim=True)  # same initial state: the mean is zero for both
    a, b = decoder(shifted, ids).logits, decoder(3 * shifted, ids).logits
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    a, b = open_gate(decoder)(shifted, ids).logits, decoder(3 * shifted, ids).logits
    assert (a - b).abs().amax(-1).min() > 1e-3


def test_hard_attention_looks_at_the_likeliest_cell_when_it_does_not_draw() -> None:
    decoder, (annotations, _) = open_gate(make(attention="hard")), data()
    torch.manual_seed(2)
    state = decoder.start(annotations, K)._replace(h=torch.randn(B, K, N))
    z_hat, alpha, logprob = decoder.attend(state)
    for b, k in itertools.product(range(B), range(K)):
        row = alpha[b, k].tolist()
        cell = row.index(max(row))
        assert torch.equal(z_hat[b, k], annotations[b, cell])
        torch.testing.assert_close(logprob[b, k], alpha[b, k, cell].log())


def test_hard_attention_draws_single_cells_as_often_as_alpha_says() -> None:
    decoder, (annotations, _) = open_gate(make(attention="hard", seed=4)), data()
    rows = 4000
    z_hat, alpha, logprob = decoder.attend(decoder.start(annotations, rows), torch.Generator().manual_seed(0))
    equal = (z_hat[:, :, None] == annotations[:, None]).all(-1)  # [B, K, L]
    assert (equal.sum(-1) == 1).all()  # exactly one annotation vector, of the row's own photo
    torch.testing.assert_close(logprob, (alpha * equal).sum(-1).log())
    expected = alpha[:, 0] * rows
    statistic = ((equal.sum(1) - expected) ** 2 / expected).sum(-1)
    assert (statistic < 23.5).all()  # chi-square, 4 degrees of freedom: exceeded once in 10,000
    again = decoder.attend(decoder.start(annotations, rows), torch.Generator().manual_seed(0))[0]
    assert torch.equal(z_hat, again)


def test_hard_attention_in_training_is_the_expectation_unless_it_draws() -> None:
    hard, soft, (annotations, ids) = make(attention="hard"), make(attention="soft"), data()
    hard.dropout.p = 0.0
    expected = soft(annotations, ids)
    output = hard.train()(annotations, ids)
    torch.testing.assert_close(output.logits, expected.logits)
    assert (output.location_logprob == 0).all() and (expected.location_logprob == 0).all()
    drawn = hard(annotations, ids, torch.Generator().manual_seed(0))
    assert (drawn.location_logprob < 0).all() and not torch.allclose(drawn.logits, expected.logits)


def test_dropout_acts_in_training_only() -> None:
    decoder, (annotations, ids) = make(), data()
    assert torch.equal(decoder(annotations, ids).logits, decoder(annotations, ids).logits)
    decoder.train()
    assert not torch.equal(decoder(annotations, ids).logits, decoder(annotations, ids).logits)


@pytest.mark.parametrize(
    ("per_photo", "rows"),
    [
        (1, [[0, 0, 0], [1, 1, 1], [2, 2, 2]]),  # widen
        (3, [[2, 0, 0], [5, 4, 3], [6, 6, 8]]),  # permute and repeat
        (3, [[1, 0], [8, 6]]),  # drop a photo, narrow
        (2, [[5, 4, 4, 5]]),  # drop two, widen
        (2, [[4, 5], [1, 0], [2, 2]]),  # photos are exchanged
        (2, [[1], [3], [5]]),  # narrow to one
    ],
)
def test_reorder_against_plain_lists(per_photo: int, rows: list[list[int]]) -> None:
    torch.manual_seed(0)
    state = CaptionState(
        torch.randn(B, L, D), torch.randn(B, L, A), torch.randn(B, per_photo, N), torch.randn(B, per_photo, N)
    )
    new = state.reorder(torch.tensor(rows))
    for b, row in enumerate(rows):
        assert torch.equal(new.annotations[b], state.annotations[row[0] // per_photo])
        assert torch.equal(new.keys[b], state.keys[row[0] // per_photo])
        for k, old in enumerate(row):
            assert torch.equal(new.h[b, k], state.h[old // per_photo, old % per_photo])
            assert torch.equal(new.c[b, k], state.c[old // per_photo, old % per_photo])
    assert len(new.annotations) == len(rows)


# The whole system


class TinyNet(ConvNet):
    name, dim, image_size = "tiny", D, 8

    def __init__(self) -> None:
        super().__init__([nn.Conv2d(3, 4, 1), nn.Conv2d(4, D, 1)], cut=1)


def test_system_is_tail_then_decoder() -> None:
    torch.manual_seed(0)
    model = ShowAttendTell(ShowAttendTellConfig.paper(V, D, embed_dim=M, hidden_dim=N, attention_dim=A), TinyNet())
    model.eval()
    pixels, ids = torch.randn(B, 3, 2, 3), data()[1]
    maps = model.encoder.trunk(pixels)
    annotations = torch.stack([model.encoder.layers(pixels)[:, :, y, x] for y in range(2) for x in range(3)], 1)
    expected = model.decoder(annotations, ids)
    torch.testing.assert_close(model(maps, ids).logits, expected.logits)
    first, state = model.prefill(maps)
    torch.testing.assert_close(first, expected.logits[:, 0, 0])
    logits, _ = model.step(ids[:, 0, 1], state)
    torch.testing.assert_close(logits, expected.logits[:, 0, 1])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, _ in model.named_parameters()} - trained == {
        "encoder.layers.0.weight",
        "encoder.layers.0.bias",
    }


def test_encoder_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"7 channels, but tiny has 6"):
        ShowAttendTell(ShowAttendTellConfig.paper(V, 7), TinyNet())
