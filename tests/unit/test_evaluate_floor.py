"""The closed-form floors: a linear world is found, captions agree, and a split is not measured with itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.floor import Rarity, Ridge, caption_floor, consensus, retrieval_floor, unit
from triptych.evidence import Floats
from triptych.io.images import load_image

WORDS = ("dog", "cat", "horse", "boat", "tree", "car")


class Brightness:
    """Pools a photo into its colours' shares: photo number ``n`` is one of six colours."""

    def pooled(self, images: Sequence[Image.Image]) -> Floats:
        pixels = np.stack([np.asarray(load_image(image), np.float32)[0, 0] for image in images])
        return np.concatenate([pixels, pixels**2 / 255], 1) / 255


def embed(texts: Sequence[str]) -> Floats:
    """Counts of the words."""
    return np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float32) + 1e-3


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    found = []
    for n in range(24):
        kind = n % len(WORDS)
        colour = tuple(int(x) for x in np.random.default_rng(kind).integers(0, 255, 3) // 2 + n)
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{n}.png")
        captions = (f"a {WORDS[kind]} outside", f"the {WORDS[kind]} is here", "something else")
        found.append(Photo(str(n), "train" if n < 18 else "test", captions, {}, tmp_path / f"{n}.png"))
    return found


def test_ridge_finds_a_linear_map_and_shrinks_without_data() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(200, 5)), rng.normal(size=(5, 3))
    ridge = Ridge.fit(x.astype(np.float32), (x @ weight + 2).astype(np.float32), penalty=1e-6)
    np.testing.assert_allclose(ridge.weight, weight, atol=1e-3)
    np.testing.assert_allclose(ridge.photos(x[:4]), unit((x[:4] - x.mean(0)) @ weight), atol=1e-3)
    shrunk = Ridge.fit(x.astype(np.float32), (x @ weight).astype(np.float32), penalty=100.0)
    assert np.linalg.norm(shrunk.weight) < 0.1 * np.linalg.norm(weight)


def test_photos_and_texts_find_one_another(photos: list[Photo]) -> None:
    floor = retrieval_floor(Brightness(), embed, photos[:18], photos[18:])
    chance = 100 / 6
    assert floor["text-to-image R@1"] > 2 * chance and floor["image-to-text R@1"] > 2 * chance
    with pytest.raises(InputError, match="training split"):
        retrieval_floor(Brightness(), embed, [], photos[18:])


def test_the_floor_of_captions_is_the_consensus_of_the_nearest(
    photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.evaluate.floor.NEIGHBOURS", 3)
    captions = caption_floor(Brightness(), embed, photos[:18], photos[18:])
    right = [WORDS[int(key) % len(WORDS)] in text for key, text in captions.items()]
    assert len(captions) == 6 and sum(right) >= 4


def test_the_consensus_is_the_caption_nearest_to_the_others_by_rare_words() -> None:
    rarity = Rarity([["a dog runs"], ["a cat sits"], ["a man stands"]])
    assert rarity.weight(("a",)) == 0 and rarity.weight(("dog",)) == pytest.approx(np.log(3))
    captions = ["a man sits", "a dog runs on grass", "a dog runs", "the dog runs fast", "a cat"]
    assert consensus(captions, rarity) == "a dog runs"
    assert consensus(["a dog"], rarity) == "a dog"
