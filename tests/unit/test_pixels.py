"""Maps over what an encoder saw, drawn over the whole photo."""

import numpy as np
import pytest

from triptych.errors import InputError
from triptych.io.pixels import PixelSpec, spread

CUT = PixelSpec(8, (0, 0, 0), (1, 1, 1), shortest_side=8)


def test_a_map_of_a_stretched_photo_is_the_photo_s() -> None:
    maps = np.random.default_rng(0).random((2, 4, 4), np.float32)
    assert PixelSpec(8, (0, 0, 0), (1, 1, 1)).over_photo(maps, 30, 10) is maps


def test_a_map_of_the_middle_lies_in_the_middle() -> None:
    """Of a photo twice as wide as high the encoder saw columns 1 and 2 of 4."""
    whole = CUT.over_photo(np.arange(16, dtype=np.float32).reshape(1, 4, 4), 20, 10)[0]
    assert whole[:, [0, 3]].sum() == 0
    assert whole.tolist() == [[0, 4 * r * 2 + 1, 4 * r * 2 + 5, 0] for r in range(4)]


def test_upright_photos_and_wider_margins() -> None:
    maps = np.ones((3, 5, 5), np.float32)
    upright = PixelSpec(7, (0, 0, 0), (1, 1, 1), shortest_side=8).over_photo(maps, 10, 30)
    assert np.allclose(upright.sum((1, 2)), 25, atol=1e-4)
    assert upright[0, 0].sum() == upright[0, 4].sum() == 0 and upright[0, 2, 0] < upright[0, 2, 1]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.37])
def test_nothing_is_lost(share: float) -> None:
    assert np.allclose(spread(6, share).sum(0), 1)


def test_impossible_settings() -> None:
    with pytest.raises(InputError, match="unknown resampling 'cubic'"):
        PixelSpec(8, (0, 0, 0), (1, 1, 1), resample="cubic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="photos of 0 pixels"):
        PixelSpec(0, (0, 0, 0), (1, 1, 1))
