"""Self-critical training: what a sample is worth, and which samples become likelier."""

from pathlib import Path

import pytest
import torch
from tiny_blip2 import byte_tokenizer

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.bleu import bleu
from triptych.evaluate.cider import CiderD
from triptych.generate import Hypothesis
from triptych.prompt import IGNORED
from triptych.train.blip2 import Blip2Recipe
from triptych.train.self_critical import CaptionReward, Reward, independent_seeds, self_critical_loss, to_labels

REFERENCES = [[["a", "dog", "runs", "on", "grass", "."]], [["a", "man", "rides", "one", "horse", "."]]]


def test_the_loss_makes_what_beats_the_other_samples_likelier() -> None:
    losses = torch.full((1, 3, 2), 2.0, requires_grad=True)
    labels = torch.tensor([[[5, 6], [5, IGNORED], [7, 8]]])
    reward = torch.tensor([[3.0, 1.0, 2.0]])
    loss = self_critical_loss(losses, labels, reward)
    # over the mean of the other two: 3 - 1.5, 1 - 2.5, 2 - 2; five tokens
    expected = torch.tensor([[[1.5, 1.5], [-1.5, 0.0], [0.0, 0.0]]]) / 5
    torch.testing.assert_close(torch.autograd.grad(loss, losses)[0], expected)
    torch.testing.assert_close(loss.detach(), (2 * expected).sum())


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
        Blip2Recipe(3, {"scst": 1.0}, captions_per_photo=1)
