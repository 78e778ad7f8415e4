"""Every mask is what its drawing shows, and attention keeps to it: a forbidden position moves nothing, a permitted one does."""

import inspect
import re

import pytest
import torch
from torch import Tensor

from triptych.nn import masks
from triptych.nn.attention import MultiHeadAttention

MASKS = {
    "causal": masks.causal(6),
    "causal chunk": masks.causal(3, past=4),
    "sliding window": masks.intersection(masks.causal(7), masks.window(torch.arange(7), torch.arange(7), 3)),
    "itc": masks.itc(3, 4),
    "itm": masks.itm(3, 4),
    "itg": masks.itg(3, 4),
    "right padding": masks.right_padding([2, 5]).expand(2, 5, 5),
    "left padding": masks.left_padding([2, 5]).expand(2, 5, 5),
    "branches": masks.branches(2, [0, 0, 1, 1, 1, 2]),
    "itg, padded": masks.intersection(masks.itg(2, 3), masks.right_padding([3, 5])),
}


def drawings() -> list[tuple[str, str]]:
    """(call, picture) of every drawing in the docstrings."""
    pictures = []
    for name, function in inspect.getmembers(masks, inspect.isfunction):
        text = inspect.getdoc(function) or ""
        for call, picture in re.findall(rf"``({name}\([^`]*\))``[^\n]*:\n\n((?:    [#. ]+(?:\n|$))+)", text):
            pictures.append((call, inspect.cleandoc(picture)))
    return pictures


@pytest.mark.parametrize(("call", "picture"), drawings(), ids=[call for call, _ in drawings()])
def test_the_drawing_is_the_mask(call: str, picture: str) -> None:
    mask = eval(call, vars(masks))
    assert masks.draw(mask if mask.ndim == 2 else mask.flatten(0, 1)) == picture


def test_every_mask_is_drawn() -> None:
    drawn = {call.partition("(")[0] for call, _ in drawings()}
    assert drawn == {"causal", "window", "right_padding", "left_padding", "itc", "itm", "itg", "media", "branches"}
    assert len(drawings()) == 11


@pytest.mark.parametrize("look", ["last", "all"])
def test_no_text_attends_to_the_padding_of_pictures(look: str) -> None:
    mask = masks.media(torch.tensor([[0, 1, 2]]), torch.tensor([[1, -1, -1]]), 1, look)
    assert not mask[..., 1:].any() and mask[0, 1, 0]


@pytest.mark.parametrize("training", [False, True], ids=["fused", "training"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_keeps_to_the_mask(mask: Tensor, training: bool) -> None:
    """Change one key: exactly the rows that may attend to it change."""
    with torch.set_grad_enabled(training):
        check_attention(mask)


def check_attention(mask: Tensor) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 4)
    rows, columns = mask.shape[-2:]
    mask = mask.expand(2, rows, columns)
    x, source = torch.randn(2, rows, 16), torch.randn(2, columns, 16)
    before = attention(x, attention.keys_values(source), mask)
    for column in range(columns):
        changed = source.clone()
        changed[:, column] += torch.randn(16)
        moved = (attention(x, attention.keys_values(changed), mask) != before).any(-1)
        assert torch.equal(moved, mask[:, :, column]), f"position {column}"


def test_both() -> None:
    causal, padding = masks.causal(3), masks.right_padding([1, 3])
    expected = torch.tensor([[[1, 0, 0], [1, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]).bool()
    assert torch.equal(masks.intersection(causal, None, padding), expected)
    assert masks.intersection(None, None) is None
    assert masks.intersection(None, causal) is causal


def test_padding_takes_any_padding_mask() -> None:
    given = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert torch.equal(masks.padding(given), given.bool()[:, None])
    assert masks.right_padding([1, 2]).tolist() == [[[True, False]], [[True, True]]]


def test_window_counts_no_padding() -> None:
    """Two texts with padding at different positions: each row attends to the two last tokens, wherever they stand."""
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    expected = [[[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]], [[1, 1, 1, 1]] * 4]
    assert torch.equal(masks.window(positions, positions, 2), torch.tensor(expected).bool())


def test_itg_is_what_cached_text_sees() -> None:
    assert torch.equal(masks.itg(5, 4)[5:], masks.causal(4, past=5))
