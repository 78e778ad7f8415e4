"""The three objectives against references written out by hand, and by perturbation."""

import math

import pytest
import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.systems.blip2_losses import hard_negatives, itc_loss, itc_similarity, itg_loss, itm_loss, itm_pairs


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


def test_similarity_is_that_of_the_best_query(random: torch.Generator) -> None:
    queries, texts = torch.randn(3, 5, 8, generator=random), torch.randn(4, 8, generator=random)
    found = itc_similarity(queries, texts)
    for i in range(3):
        for j in range(4):
            assert found[i, j].item() == pytest.approx(max(float(q @ texts[j]) for q in queries[i]), abs=1e-6)


def test_itc_loss_by_hand(random: torch.Generator) -> None:
    image_to_text, text_to_image = torch.randn(2, 3, 5, generator=random)
    ids, all_ids = torch.tensor([7, 8, 9]), torch.tensor([1, 7, 8, 7, 9])
    right = [{1, 3}, {2}, {4}]  # the photo 7 is there twice
    total = 0.0
    for sides in (image_to_text, text_to_image):
        for row, places in zip(sides.tolist(), right, strict=True):
            targets = [0.1 / 5 + (0.9 / len(places) if j in places else 0) for j in range(5)]
            total -= sum(t * p for t, p in zip(targets, log_softmax(row), strict=True))
    assert itc_loss(image_to_text, text_to_image, ids, all_ids).item() == pytest.approx(total / 6, abs=1e-5)


def test_itc_loss_of_unique_photos_is_smoothed_cross_entropy(random: torch.Generator) -> None:
    a, b = torch.randn(2, 4, 4, generator=random)
    ids = torch.tensor([4, 2, 9, 0])
    expected = [torch.nn.functional.cross_entropy(x, torch.arange(4), label_smoothing=0.1) for x in (a, b)]
    torch.testing.assert_close(itc_loss(a, b, ids, ids), sum(expected) / 2)


def test_gathered_batch_equals_one_process(random: torch.Generator) -> None:
    """The mean over two processes that see each other's features is the loss of one process with all of them."""
    queries = torch.nn.functional.normalize(torch.randn(6, 3, 8, generator=random), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(6, 8, generator=random), dim=-1)
    ids = torch.tensor([0, 1, 2, 1, 3, 4])

    def loss(rows: slice) -> Tensor:
        to_text = itc_similarity(queries[rows], texts) / 0.07
        to_image = itc_similarity(queries, texts[rows]).T / 0.07
        return itc_loss(to_text, to_image, ids[rows], ids)

    torch.testing.assert_close(loss(slice(0, 6)), (loss(slice(0, 3)) + loss(slice(3, 6))) / 2)


def test_hard_negatives_follow_the_similarity(random: torch.Generator) -> None:
    similarity = torch.randn(2, 4, generator=random)
    ids, all_ids = torch.tensor([5, 6]), torch.tensor([5, 6, 5, 8])
    draws = torch.stack([hard_negatives(similarity, ids, all_ids, random) for _ in range(4000)])
    for row, allowed in ((0, [1, 3]), (1, [0, 2, 3])):
        expected = similarity[row, allowed].softmax(0)
        share = torch.stack([(draws[:, row] == j).float().mean() for j in allowed])
        torch.testing.assert_close(share, expected, atol=0.04, rtol=0)
    assert not (draws[:, 0] == 0).any() and not (draws[:, 0] == 2).any() and not (draws[:, 1] == 1).any()


def test_easy_negatives_are_drawn_evenly_among_other_photos(random: torch.Generator) -> None:
    similarity = torch.tensor([[90.0, 50.0, 0.0, 0.0]])
    ids, all_ids = torch.tensor([5]), torch.tensor([5, 6, 7, 8])
    for easy, expected in ((0.0, [0.0, 1.0, 0.0, 0.0]), (1.0, [0, 1 / 3, 1 / 3, 1 / 3]), (0.6, [0, 0.6, 0.2, 0.2])):
        draws = torch.stack([hard_negatives(similarity, ids, all_ids, random, easy) for _ in range(3000)])
        share = torch.stack([(draws == j).float().mean() for j in range(4)])
        torch.testing.assert_close(share, torch.tensor(expected), atol=0.04, rtol=0)


def test_hard_negatives_need_another_photo(random: torch.Generator) -> None:
    with pytest.raises(InputError, match="two different photos"):
        hard_negatives(torch.randn(2, 2, generator=random), torch.tensor([3, 3]), torch.tensor([3, 3]))


def test_itm_pairs_order_and_places(random: torch.Generator) -> None:
    a, b = torch.full((2, 2, 6), -50.0)  # this process holds rows 2 and 3 of six
    a[0, 5] = a[1, 0] = 50.0  # the hardest texts of its photos
    b[0, 4] = b[1, 1] = 50.0  # the hardest photos of its texts
    a[0, 2] = a[1, 3] = b[0, 2] = b[1, 3] = 90.0
    ids = torch.arange(6)
    images, texts = itm_pairs(a, b, ids[2:4], ids, first=2, generator=random)
    assert images.tolist() == [2, 3, 4, 1, 2, 3]
    assert texts.tolist() == [2, 3, 2, 3, 5, 0]


def test_itm_loss_by_hand(random: torch.Generator) -> None:
    logits = torch.randn(6, 2, generator=random)
    expected = -sum(log_softmax(row)[int(i < 2)] for i, row in enumerate(logits.tolist())) / 6
    assert itm_loss(logits).item() == pytest.approx(expected, abs=1e-6)


def test_itg_loss_by_hand(random: torch.Generator) -> None:
    logits = torch.randn(2, 4, 5, generator=random)
    ids, mask = torch.tensor([[4, 2, 1, 3], [4, 0, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    total = 0.0
    for b, t, word in ((0, 0, 2), (0, 1, 1), (0, 2, 3), (1, 0, 0), (1, 1, 3)):  # word 0 counts where it is text
        p = log_softmax(logits[b, t].tolist())
        total -= 0.9 * p[word] + 0.1 * sum(p) / 5
    assert itg_loss(logits, ids, mask).item() == pytest.approx(total / 5, abs=1e-5)


def test_itg_loss_ignores_padding_and_the_last_position(random: torch.Generator) -> None:
    logits = torch.randn(1, 4, 5, generator=random)
    ids, mask = torch.tensor([[4, 2, 1, 0]]), torch.tensor([[True, True, True, False]])
    loss = itg_loss(logits, ids, mask)
    for t, moves in ((0, True), (1, True), (2, False), (3, False)):
        other = logits.clone()
        other[0, t] += torch.randn(5, generator=random)
        assert (itg_loss(other, ids, mask) != loss).item() == moves
