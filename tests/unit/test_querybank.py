"""What a search takes off the similarity of photos and texts that are close to everything."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_blip2 import blip2_tasks

from triptych.data import Photo
from triptych.errors import InputError
from triptych.tasks import matching
from triptych.tasks.querybank import OFFSET_WEIGHT, QUERYBANK_FILE, SHARPNESS, Offsets, Querybank, read_querybank
from triptych.text.consensus import Consensus, unit
from triptych.train.consensus import collect_querybank, fit_consensus

WORDS = ("dog", "cat", "horse", "boat")
Rng = np.random.Generator


@pytest.fixture(scope="module")
def consensus() -> Consensus:
    rng = np.random.default_rng(0)
    photos = [Photo(str(n), "train", (f"a {WORDS[n % 4]} here",), {}, Path("x.png")) for n in range(80)]
    features = np.array([np.eye(4)[n % 4] + 0.1 * rng.normal(size=4) for n in range(80)], np.float32)
    return fit_consensus(features, photos)


def vectors(rng: Rng, *shape: int) -> np.ndarray:
    return unit(rng.normal(size=shape))


def bank_of(consensus: Consensus, seed: int = 1) -> tuple[Querybank, tuple[np.ndarray, ...], list[str]]:
    rng = np.random.default_rng(seed)
    captions = ["a dog here", "unknown", "the cat and a dog", "boat"]
    arrays = vectors(rng, 3, 2, 8), rng.normal(size=(3, 4)).astype(np.float32), vectors(rng, 4, 8)
    return Querybank.of(*arrays, captions, consensus), arrays, captions


def soft_maximum(values: np.ndarray) -> float:
    return float(np.log(np.mean([np.exp(SHARPNESS * x) for x in values])) / SHARPNESS)


def test_offsets_are_soft_maxima_over_the_bank(consensus: Consensus) -> None:
    bank, (photos, pooled, texts), captions = bank_of(consensus)
    offsets, rng = Offsets(bank, consensus), np.random.default_rng(2)
    queries, features = vectors(rng, 2, 2, 8), rng.normal(size=(2, 4)).astype(np.float32)
    for row, found in enumerate(offsets.of_photos(queries, consensus.expected(features))):
        similarity = (queries[row] @ texts.T).max(0) + consensus.agreement(features[row : row + 1], captions)[0]
        assert found == pytest.approx(OFFSET_WEIGHT * soft_maximum(similarity), abs=0.01)
    asked, words = vectors(rng, 3, 8), ["a horse", "dog", "xyz"]
    for row, found in enumerate(offsets.of_texts(asked, consensus.vectors(words))):
        similarity = (photos @ asked[row]).max(1) + consensus.agreement(pooled, [words[row]])[:, 0]
        assert found == pytest.approx(OFFSET_WEIGHT * soft_maximum(similarity), abs=0.01)


def test_it_is_read_as_it_was_written(consensus: Consensus, tmp_path: Path) -> None:
    bank, _, _ = bank_of(consensus)
    (tmp_path / QUERYBANK_FILE).write_bytes(bank.to_bytes())
    read = read_querybank(tmp_path / QUERYBANK_FILE)
    for name, array in vars(bank).items():
        np.testing.assert_array_equal(getattr(read, name), array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: replace(b, photos=b.photos[:2]),
        lambda b: replace(b, photos=b.photos[0]),
        lambda b: replace(b, texts=b.texts[:, :5]),
        lambda b: replace(b, texts=b.texts.astype(np.float32)),
        lambda b: replace(b, pooled=np.full_like(b.pooled, np.inf)),
        lambda b: replace(b, ends=b.ends[::-1].copy()),
        lambda b: replace(b, words=b.words[:-1]),
        lambda b: replace(b, words=b.words - 100),
    ],
)
def test_arrays_that_do_not_fit_are_refused(consensus: Consensus, damage: Callable[[Querybank], Querybank]) -> None:
    with pytest.raises(InputError, match="querybank"):
        damage(bank_of(consensus)[0])


def test_a_bank_of_another_consensus_is_refused(consensus: Consensus) -> None:
    bank = bank_of(consensus)[0]
    with pytest.raises(InputError, match="fit both anew"):
        Offsets(replace(bank, words=bank.words + len(consensus.words)), consensus)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x80\x04]q\x00."])
def test_files_that_are_no_querybank_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / QUERYBANK_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"querybank\.npz cannot be read"):
        read_querybank(tmp_path / QUERYBANK_FILE)


def test_the_score_of_matching_loses_the_offsets(
    consensus: Consensus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, plain_tasks, texts = blip2_tasks(), blip2_tasks(), ["cat", "dog"]
    images = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 48), "blue")]
    before = plain_tasks.match(images, texts)
    photos = [Photo(str(n), "train", ("a dog here", "cat", "boat"), {}, save(tmp_path, n)) for n in range(4)]
    pooled = plain_tasks.pooled(images)
    of_model = fit_consensus(np.tile(pooled, (3, 1)), [photos[0]] * 6)
    bank = collect_querybank(plain_tasks, [photos[:3], photos[3:]], of_model)
    assert len(bank.photos) == 4 and len(bank.texts) == 8  # two captions each
    tasks.consensus_file, tasks.querybank_file = tmp_path / "consensus.npz", tmp_path / QUERYBANK_FILE
    tasks.consensus_file.write_bytes(of_model.to_bytes())
    tasks.querybank_file.write_bytes(bank.to_bytes())
    offsets = Offsets(bank, of_model)
    of_photos = offsets.of_photos(tasks.itc_images(images), of_model.expected(pooled))
    of_texts = offsets.of_texts(tasks.itc_texts(texts), of_model.vectors(texts))
    agreement = of_model.agreement(pooled, texts)
    for plain, found in zip(before, tasks.match(images, texts), strict=True):
        similarity = agreement[found.image, found.text] - of_photos[found.image] - of_texts[found.text]
        assert found.rerank == pytest.approx(plain.rerank + tasks.spec.contrast_weight * similarity, abs=1e-3)
        assert found.itm_prob == pytest.approx(plain.itm_prob)
        assert tasks.similarity(images, texts)[found.image, found.text] == pytest.approx(
            found.itc_cosine + similarity, abs=1e-4
        )
    kept = tasks.search_features(images)
    np.testing.assert_allclose(tasks.similarity_of_features(*kept, texts), tasks.similarity(images, texts), atol=1e-6)
    monkeypatch.setattr(matching, "MATCHED_TOGETHER", 1)  # texts are read in parts
    np.testing.assert_allclose(tasks.similarity(images, texts), tasks.similarity_of_features(*kept, texts), atol=1e-6)
    np.testing.assert_allclose(tasks.search_texts(texts).offsets, of_texts, atol=1e-6)
    assert plain_tasks.search_features(images)[1].shape == (2, 0)  # without a consensus nothing is pooled


def save(folder: Path, number: int) -> Path:
    path = folder / f"{number}.png"
    Image.effect_noise((64, 64), 20 * number + 10).convert("RGB").save(path)
    return path
