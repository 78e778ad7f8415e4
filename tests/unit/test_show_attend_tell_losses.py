"""The losses of Show, Attend and Tell against loops, and hard attention's gradient against the enumerated one."""

import itertools
import math
from typing import Literal

import pytest
import torch
from tiny_sat import A, B, D, K, L, M, N, T, V, data, make
from torch import Tensor, nn

from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import (
    CaptionDecoder,
    HardAttentionLoss,
    Output,
    caption_loss,
    doubly_stochastic_penalty,
)
from triptych.text.vocabulary import BOS


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
    even = torch.full((1, 1, L, L), 1 / L)  # the attention of each cell sums to 1
    assert float(doubly_stochastic_penalty(even, torch.ones(1, 1, L, dtype=torch.bool), reduction)) < 1e-10


def all_draws(decoder: CaptionDecoder, annotations: Tensor, ids: Tensor, count: int) -> dict[tuple[int, ...], Output]:
    """Teacher forcing under each of the ``count`` ways to draw the cells of one caption, by trying seeds."""
    by_cells: dict[tuple[int, ...], Output] = {}
    for seed in range(5000):
        output = decoder(annotations, ids, torch.Generator().manual_seed(seed))
        cells = (output.location_logprob[..., None] - output.alpha.log()).abs().argmin(-1)
        by_cells.setdefault(tuple(cells.flatten().tolist()), output)
        if len(by_cells) == count:
            return by_cells
    raise AssertionError(f"only {len(by_cells)} of {count} draws came")


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
