"""Show, Attend and Tell against a slow reading of the paper's equations, and against what must not change."""

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn.cnn import ConvNet
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import (
    CaptionDecoder,
    CaptionState,
    HardAttentionLoss,
    Output,
    ShowAttendTell,
    caption_loss,
    doubly_stochastic_penalty,
)
from triptych.text.vocabulary import BOS

V, D, M, N, A = 11, 6, 5, 7, 4
B, K, T, L = 3, 2, 4, 5
VARIANTS = ("paper", "tutorial")
KINDS: tuple[Literal["soft", "hard"], ...] = ("soft", "hard")


def make(variant: str = "paper", attention: Literal["soft", "hard"] = "soft", seed: int = 0) -> CaptionDecoder:
    """A decoder whose weights are large enough for sharp, uneven attention."""
    torch.manual_seed(seed)
    build = getattr(ShowAttendTellConfig, variant)
    decoder = CaptionDecoder(build(V, D, embed_dim=M, hidden_dim=N, attention_dim=A, attention=attention))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.7)
    return decoder.eval()


def data(seed: int = 1, words: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, V, (B, K, words), generator=generator)
    ids[:, :, 0] = BOS
    return torch.randn(B, L, D, generator=generator), ids


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
            seen = sum(p * cell for p, cell in zip(alpha, a, strict=True))
        else:
            seen = a[max(range(len(a)), key=lambda i: alpha[i])]
        beta = affine("beta", h)
        z_hat = np.array([sigmoid(beta[0 if config.gate == "scalar" else j]) * seen[j] for j in range(D)])
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
    found = torch.autograd.grad(torch.cat(alone).square().sum(), weights)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


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
    places = torch.tensor([3, 0, 4, 1, 2])
    before, after = decoder(annotations, ids), decoder(annotations[:, places], ids)
    torch.testing.assert_close(after.alpha, before.alpha[..., places], atol=1e-5, rtol=1e-5)
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


# Losses


def test_caption_loss_is_the_mean_over_words_that_count() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(B, K, T, V), torch.randint(0, V, (B, K, T))
    labels[0, 1, 2:] = labels[2, 0, 1:] = -100
    terms = [
        -float(logits[b, k, t].double().softmax(-1)[labels[b, k, t]].log())
        for b, k, t in itertools.product(range(B), range(K), range(T))
        if labels[b, k, t] != -100
    ]
    assert caption_loss(logits, labels).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    noise = torch.where((labels == -100)[..., None], torch.randn(B, K, T, V) * 9, 0.0)
    assert torch.equal(caption_loss(logits + noise, labels), caption_loss(logits, labels))
    smoothed = caption_loss(logits, labels, label_smoothing=0.2)
    uniform = -logits.log_softmax(-1).mean(-1)[labels != -100].mean()
    torch.testing.assert_close(smoothed, 0.8 * caption_loss(logits, labels) + 0.2 * uniform)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_penalty_against_a_loop(reduction: Literal["sum", "mean"]) -> None:
    torch.manual_seed(0)
    alpha = torch.rand(B, K, T, L).softmax(-1)
    mask = torch.ones(B, K, T, dtype=torch.bool)
    mask[0, 1, 2:] = mask[2, 0, 1:] = False
    total = 0.0
    for b, k, i in itertools.product(range(B), range(K), range(L)):
        total += (1 - sum(float(alpha[b, k, t, i]) for t in range(T) if mask[b, k, t])) ** 2
    total /= B * K * (1 if reduction == "sum" else L)
    assert doubly_stochastic_penalty(alpha, mask, reduction).item() == pytest.approx(total, rel=1e-5)
    even = torch.full((1, 1, L, L), 1 / L)  # each cell looked at once
    assert float(doubly_stochastic_penalty(even, torch.ones(1, 1, L, dtype=torch.bool), reduction)) < 1e-10


def all_draws(decoder: CaptionDecoder, annotations: Tensor, ids: Tensor, count: int) -> dict[tuple[int, ...], Output]:
    """Teacher forcing under each of the ``count`` ways to draw the cells of one caption, found by trying seeds."""
    found: dict[tuple[int, ...], Output] = {}
    for seed in range(5000):
        output = decoder(annotations, ids, torch.Generator().manual_seed(seed))
        cells = (output.location_logprob[..., None] - output.alpha.log()).abs().argmin(-1)
        found.setdefault(tuple(cells.flatten().tolist()), output)
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} of {count} draws were seen")


@pytest.mark.parametrize("baseline", [0.0, -2.5])
def test_reinforce_equals_the_enumerated_gradient(baseline: float) -> None:
    """Over all draws of 3 cells at 2 words: the surrogate's expected gradient is eq. 11, with any baseline."""
    torch.manual_seed(3)
    config = ShowAttendTellConfig.paper(V, D, embed_dim=M, hidden_dim=N, attention_dim=A, attention="hard")
    decoder = CaptionDecoder(config).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    annotations, ids = torch.randn(1, 3, D), torch.tensor([[[BOS, 6]]])
    labels = torch.tensor([[[6, 9]]])
    draws = all_draws(decoder, annotations, ids, 9)
    weights = {cells: output.location_logprob.sum().exp() for cells, output in draws.items()}
    assert sum(w.item() for w in weights.values()) == pytest.approx(1, abs=1e-5)

    exact = torch.zeros(())  # L_s per word, eq. 10
    for cells, output in draws.items():
        logprob = output.logits[0, 0].log_softmax(-1)[[0, 1], labels[0, 0]].sum()
        exact = exact + weights[cells] * logprob / 2
    parameters = dict(decoder.named_parameters())
    expected = torch.autograd.grad(exact, list(parameters.values()), retain_graph=True, allow_unused=True)

    estimate = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for cells, output in draws.items():
        loss = HardAttentionLoss(entropy_weight=0.0)
        loss.baseline.fill_(baseline)
        gradients = torch.autograd.grad(
            -loss(output, labels), list(parameters.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                estimate[name] += weights[cells].detach() * gradient
    for name, gradient in zip(parameters, expected, strict=True):
        wanted = torch.zeros_like(parameters[name]) if gradient is None else gradient
        torch.testing.assert_close(estimate[name], wanted, atol=2e-6, rtol=1e-4)
    assert estimate["attention.score.weight"].abs().max() > 1e-4  # the draws do teach the attention


def test_the_bound_is_below_the_likelihood() -> None:
    decoder = make(attention="hard", seed=3)
    annotations, ids, labels = torch.randn(1, 3, D), torch.tensor([[[BOS, 6]]]), torch.tensor([[[6, 9]]])
    bound = likelihood = 0.0
    for output in all_draws(decoder, annotations, ids, 9).values():
        weight = output.location_logprob.sum().exp().item()
        logprob = output.logits[0, 0].log_softmax(-1)[[0, 1], labels[0, 0]].sum().item()
        loss = HardAttentionLoss(reward_weight=0.0, entropy_weight=0.0)(output, labels)
        assert loss.item() == pytest.approx(-logprob / 2, rel=1e-5)
        bound, likelihood = bound + weight * logprob, likelihood + weight * math.exp(logprob)
    assert bound < math.log(likelihood)


def test_hard_loss_ignores_padding_and_averages_captions() -> None:
    decoder, (annotations, ids) = make(attention="hard"), data()
    labels = torch.randint(4, V, (B, K, T))
    labels[0, 1, 2:] = labels[2, 0, 1:] = -100
    output = decoder(annotations, ids, torch.Generator().manual_seed(0))
    loss = HardAttentionLoss()
    loss.baseline.fill_(-1.5)
    together = loss(output, labels)
    singles = []
    for b, k in itertools.product(range(B), range(K)):
        words = int((labels[b, k] != -100).sum())
        cut = Output(*(x[b : b + 1, k : k + 1, :words] for x in output))
        alone = HardAttentionLoss()
        alone.baseline.fill_(-1.5)
        singles.append(alone(cut, labels[b : b + 1, k : k + 1, :words]))
    torch.testing.assert_close(together, torch.stack(singles).mean())


def test_baseline_moves_by_a_tenth_and_carries_no_gradient() -> None:
    decoder, (annotations, ids) = make(attention="hard"), data()
    loss, expected = HardAttentionLoss(), 0.0
    for seed in range(4):
        labels = torch.randint(4, V, (B, K, T), generator=torch.Generator().manual_seed(seed))
        output = decoder(annotations, ids, torch.Generator().manual_seed(seed))
        loss(output, labels)
        reward = output.logits.log_softmax(-1).gather(-1, labels[..., None]).mean()
        expected = 0.9 * expected + 0.1 * reward.item()
        assert loss.baseline.item() == pytest.approx(expected, rel=1e-5)
    assert not loss.baseline.requires_grad and "baseline" in loss.state_dict()


def test_entropy_term_pushes_towards_even_attention() -> None:
    decoder, (annotations, ids) = make(attention="hard"), data()
    output = decoder(annotations, ids, torch.Generator().manual_seed(0))
    labels = torch.randint(4, V, (B, K, T))
    plain = HardAttentionLoss(entropy_weight=0.0)(output, labels)
    rewarded = HardAttentionLoss(entropy_weight=0.3)(output, labels)
    entropy = sum(-p * math.log(p) for p in output.alpha.flatten().tolist()) / (B * K * T)
    assert (plain - rewarded).item() == pytest.approx(0.3 * entropy, rel=1e-4)


# CaptionState


@pytest.mark.parametrize(
    ("per_photo", "rows"),
    [
        (1, [[0, 0, 0], [1, 1, 1], [2, 2, 2]]),  # widen
        (3, [[2, 0, 0], [5, 4, 3], [6, 6, 8]]),  # permute and repeat
        (3, [[1, 0], [8, 6]]),  # drop a photo, narrow
        (2, [[5, 4, 4, 5]]),  # drop two, widen
        (2, [[4, 5], [1, 0], [2, 2]]),  # photos change places
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
    with pytest.raises(InputError, match=r"7 channels, tiny gives 6"):
        ShowAttendTell(ShowAttendTellConfig.paper(V, 7), TinyNet())
