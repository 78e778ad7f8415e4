"""Self-critical training: what a sample is worth, and which samples become likelier."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_blip2 import byte_tokenizer, tiny_blip2
from torch import Tensor

from triptych.data import Photo
from triptych.errors import InputError
from triptych.generate import Hypothesis, Search
from triptych.metrics.bleu import bleu
from triptych.metrics.cider import CiderD
from triptych.models import Blip2Model
from triptych.text.prompt import IGNORED
from triptych.train.blip2.batches import Blip2Items
from triptych.train.blip2.objective import Blip2Objective
from triptych.train.blip2.prompts import CaptionPrompt
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.recipe import make_recipe
from triptych.train.self_critical import CaptionReward, Reward, independent_seeds, self_critical_loss, to_labels

REFERENCES = [[["a", "dog", "runs", "on", "grass", "."]], [["a", "man", "rides", "one", "horse", "."]]]


def test_the_loss_makes_what_beats_the_other_samples_likelier() -> None:
    labels = torch.tensor([[[5, 6], [5, IGNORED], [7, 8]]])
    reward = torch.tensor([[3.0, 1.0, 2.0]])
    sampling = Search(frozenset({8}), n_best=3, temperature=0.5, banned=frozenset({0}))
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = self_critical_loss(logits, labels, reward, sampling)
    # over the mean of the other two: 3 - 1.5, 1 - 2.5, 2 - 2; five tokens, drawn from softmax(2 x) without the first
    advantage, tokens = torch.tensor([1.5, 1.5, -1.5, 0, 0]), torch.tensor([5, 6, 5, 7, 8])
    nll = F.cross_entropy(2 * logits[:, 1:], tokens - 1, reduction="none")
    torch.testing.assert_close(loss, (advantage * nll).mean())
    [gradient] = torch.autograd.grad(loss, logits)
    assert (gradient[range(5), tokens].sign() == -advantage.sign()).all() and not gradient[:, 0].any()


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_reward_is_cider_and_bleu(weight: float) -> None:
    texts = [["a", "dog", "runs", "on", "sand", "."], ["a", "man", "rides", "one", "horse", "."]]
    found = Reward(REFERENCES, weight)(texts, [0, 1])
    each = bleu(texts, REFERENCES)[1].mean(1)
    expected = CiderD(REFERENCES).score_items(texts, [0, 1]) + weight * each
    torch.testing.assert_close(found, torch.from_numpy(expected).float())
    assert found[1] > found[0] > 0


def test_a_caption_must_end_to_have_its_whole_reward() -> None:
    tokenizer = byte_tokenizer()
    photos = [
        Photo(str(i), "train", (text,), {}, Path("none"))
        for i, text in enumerate(("A dog runs on grass.", "A man rides one horse."))
    ]
    reward = CaptionReward(photos, tokenizer, 1.0)
    ids = tuple(tokenizer.encode("a dog runs on grass"))
    ended, cut = Hypothesis(ids, (0.0,) * (len(ids) + 1), True), Hypothesis(ids, (0.0,) * len(ids), False)
    found = reward([[ended, cut], [ended, cut]], [0, 1])
    assert found.shape == (2, 2)
    assert found[0, 0] > found[0, 1] > found[1, 0]  # right and ended; right and cut; of another photo


def test_labels_end_where_samples_end() -> None:
    found = [
        [Hypothesis((4, 5), (0.0,) * 3, True), Hypothesis((6, 7, 8), (0.0,) * 3, False)],
        [Hypothesis((), (0.0,), True)] * 2,
    ]
    assert to_labels(found, 9).tolist() == [[[4, 5, 9], [6, 7, 8]], [[9, IGNORED, IGNORED]] * 2]


def test_photos_draw_independently_and_again_alike() -> None:
    assert len(set(independent_seeds(50, 3))) == 50
    assert independent_seeds(50, 3) == independent_seeds(50, 3) != independent_seeds(50, 4)


def test_one_sample_has_no_others_to_be_compared_with() -> None:
    with pytest.raises(InputError, match="captions_per_photo must be 2 or more"):
        make_recipe(Blip2Recipe, {"stage": 3, "weights": {"scst": 1.0}, "captions_per_photo": 1})


class OneReward:
    """Stands for ``CaptionReward``: the first sample of the first photo is worth 1, all others nothing."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.photos: list[list[int]] = []
        self.samples: list[list[list[Hypothesis]]] = []

    def __call__(self, found: list[list[Hypothesis]], photos: list[int]) -> Tensor:
        self.photos.append(photos)
        self.samples.append(found)
        reward = torch.zeros(len(photos), len(found[0]))
        reward[0, 0] = 1
        return reward


def blip2_objective(blip2: Blip2Model, reward_fn: OneReward, weight: float = 1.0) -> Blip2Objective:
    settings = {"captions_per_photo": 4, "max_tokens": 40, "temperature": 0.6, "lm_photos": 0.6, "cells": 1.0}
    recipe = make_recipe(Blip2Recipe, {"stage": 3, "weights": {"scst": weight}, **settings})
    instruction = blip2.words.encode(["describe the photo"])
    prompt = CaptionPrompt(after=(7, 8), instruction=instruction)
    return Blip2Objective(blip2.model, recipe, blip2.words.dec, prompt, reward_fn=reward_fn)  # type: ignore[arg-type]


def test_blip2_learns_the_samples_that_it_drew() -> None:
    blip2 = tiny_blip2()
    lm = blip2.model.lm
    assert lm is not None
    reward_fn = OneReward(min(blip2.search.eos))
    objective = blip2_objective(blip2, reward_fn)
    soft = torch.randn(2, 3, 16)
    loss, reward = objective.reward_loss(soft, [3, 1], seed=5)
    objective.reward_loss(soft, [3, 1], seed=6)
    (first, other), (again, _) = reward_fn.samples
    assert reward == pytest.approx(1 / 8) and len({h.ids for h in (*first, *again)}) == 8
    assert len({h.finished for h in (*first, *other)}) == 2

    totals = []
    for sample in first:
        written = [*sample.ids, *([reward_fn.end] * sample.finished)]
        x = torch.cat([soft[:1], lm.embed(torch.tensor([[7, 8, *written]]))], 1)
        logits = lm.logits(lm(x))[0, 3 + 1 : -1]
        totals.append((logits / 0.6).log_softmax(-1)[range(len(written)), written].sum())
        drawn_from = logits.log_softmax(-1)[range(len(written)), written]
        torch.testing.assert_close(drawn_from, torch.tensor(sample.logprobs), rtol=1e-4, atol=1e-4)
    tokens = sum(len(h.logprobs) for h in (*first, *other))
    torch.testing.assert_close(loss, -(totals[0] - sum(totals[1:]) / 3) / tokens, rtol=1e-4, atol=1e-6)


def test_blip2_is_rewarded_for_the_photos_that_it_captions() -> None:
    """The language model captions 0.6 of the batch's photos, which stand in any order among the training photos."""
    blip2 = tiny_blip2()
    reward_fn = OneReward(min(blip2.search.eos))
    objective = blip2_objective(blip2, reward_fn, weight=3.0)
    batch = Blip2Items(torch.randn(3, 9, 5), torch.tensor([40, 2, 17]), None, None, None, None)
    loss = objective(batch, 5)
    assert reward_fn.photos == [[40, 2]]
    assert set(objective.last) == {"scst", "reward"} and objective.last["reward"] == pytest.approx(1 / 8)
    assert float(loss) == pytest.approx(3 * objective.last["scst"], rel=1e-5) and float(loss)
