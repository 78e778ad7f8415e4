"""The vision transformer: shapes, positions at other sizes, and what each part of the photo can reach."""

import pytest
import torch

from triptych.errors import InputError
from triptych.nn.configs import ViTConfig
from triptych.nn.vit import ViT

TINY = {"dim": 16, "layers": 2, "heads": 4, "mlp_dim": 24, "patch_size": 4, "image_size": 12}


def model(**others: object) -> ViT:
    torch.manual_seed(5)
    vit = ViT(ViTConfig(**(TINY | others))).eval()  # type: ignore[arg-type]
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit


def test_class_token_comes_first_where_asked() -> None:
    pixels = torch.randn(2, 3, 12, 12)
    with_class, without = model(class_token=True), model()
    without.load_state_dict(with_class.state_dict())
    torch.testing.assert_close(with_class(pixels)[:, 1:], without(pixels))
    assert without(pixels).shape == (2, 9, 16)
    assert (without.dim, without.grid) == (16, (3, 3))


def test_cells_run_from_left_to_right_then_down() -> None:
    vit = model(layers=0, norm_before=False, norm_after=False)
    pixels = torch.randn(1, 3, 12, 12)
    other = pixels.clone()
    other[:, :, 4:8, 8:12] += 1  # second row, third column
    moved = (vit(pixels) != vit(other)).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [5]


def test_every_cell_sees_every_other() -> None:
    vit = model(layers=1)
    pixels = torch.randn(1, 3, 12, 12)
    other = pixels.clone()
    other[:, :, :4, :4] += torch.randn(3, 4, 4)
    assert (vit(pixels) != vit(other)).any(-1).all()


def test_batch_equals_single() -> None:
    vit, pixels = model(), torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(vit(pixels), torch.cat([vit(p[None]) for p in pixels]), atol=1e-5, rtol=1e-5)


def test_positions_at_another_size() -> None:
    vit = model()
    assert vit(torch.randn(1, 3, 16, 8)).shape == (1, 8, 16)
    assert vit.positions_for((3, 3)) is vit.positions
    with torch.no_grad():
        vit.positions[1:] = torch.randn(3)[None, :, None].expand(3, 3, 16).flatten(0, 1)  # alike down each column
    wide = vit.positions_for((5, 3))[1:].unflatten(0, (5, 3))
    torch.testing.assert_close(wide, vit.positions[1:4].expand(5, 3, 16))


@pytest.mark.parametrize("size", [(12, 13), (10, 12)])
def test_sizes_that_cut_a_patch_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="multiples of 4"):
        model()(torch.zeros(1, 3, *size))


def test_published_size() -> None:
    with torch.device("meta"):
        vit = ViT(ViTConfig.blip2())
    assert sum(p.numel() for p in vit.parameters()) == 985_952_256  # as transformers counts them
    assert vit.grid == (16, 16)


def test_all_of_it_is_the_trunk() -> None:
    """As ``VisionEncoder`` has it: what the frozen trunk makes may be kept, and the tail has nothing to add."""
    vit, pixels = model().requires_grad_(True), torch.randn(2, 3, 12, 12)
    kept = vit.trunk(pixels)
    assert not kept.requires_grad and vit.frozen_layers is vit and vit.cut == 2
    torch.testing.assert_close(vit.tail(kept), vit(pixels))
