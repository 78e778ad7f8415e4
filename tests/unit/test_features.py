"""The feature cache: what it holds, that an interruption costs little, and when it is made anew."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from triptych.data import Photo
from triptych.data.reading import PhotoReader
from triptych.errors import InputError, TriptychError
from triptych.io.images import load_image, pixel_values
from triptych.io.pixels import PixelSpec
from triptych.nn.cnn import ConvNet
from triptych.nn.configs import ViTConfig
from triptych.nn.vit import ViT
from triptych.train import features
from triptych.train.features import cached_features, features_key


class TinyNet(ConvNet):
    name, dim, image_size, grid = "tiny", 4, 8, (4, 4)

    def __init__(self) -> None:
        super().__init__([nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 1)], cut=1)


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(path)
        made.append(Photo(str(i), "train", (), {}, path))
    return made


@pytest.fixture
def encoder() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


def test_it_holds_the_trunk_of_each_photo_and_its_mirror_image(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path
) -> None:
    found = cached_features(photos, encoder, tmp_path / "cache")
    assert len(found) == 10
    for row, photo in enumerate(photos):
        pixels = pixel_values(load_image(photo.read()), encoder.pixels)[None]
        for mirrored, picture in enumerate((pixels, pixels.flip(-1))):
            torch.testing.assert_close(found[[row], [mirrored]], encoder.trunk(picture), atol=2e-3, rtol=2e-3)
    assert not torch.allclose(found[[0], [0]], found[[0], [1]])


def test_a_vision_transformer_is_all_trunk(photos: list[Photo], tmp_path: Path) -> None:
    vit = ViT(ViTConfig(8, 1, 2, 12, 4, 8, class_token=True)).eval()
    found = cached_features(photos, vit, tmp_path / "cache")
    pixels = pixel_values(load_image(photos[3].read()), vit.pixels)[None]
    torch.testing.assert_close(found[[3], [0]], vit.trunk(pixels), atol=4e-3, rtol=4e-3)
    assert found[[3], [0]].shape == (1, 5, 8)


def test_another_vision_transformer_is_another_key(photos: list[Photo]) -> None:
    """Other weights, and the same weights with another activation or other pixels."""
    config = ViTConfig(8, 1, 2, 12, 4, 8, class_token=True)
    vit = ViT(config)
    same, cropped = ViT(config), ViT(config, PixelSpec(8, (0.5,) * 3, (0.5,) * 3, shortest_side=9))
    quick = ViT(replace(config, activation="quick_gelu"))
    keys = [features_key(photos, vit, torch.float32)]
    for other in (same, cropped, quick):
        other.load_state_dict(vit.state_dict())
        keys.append(features_key(photos, other, torch.float32))
    torch.nn.init.ones_(same.blocks[0].down.bias)
    keys.append(features_key(photos, same, torch.float32))
    assert keys[0] == keys[1] and len(set(keys[1:])) == 4


def test_features_beyond_16_bits_are_refused(photos: list[Photo], encoder: TinyNet, tmp_path: Path) -> None:
    torch.nn.init.constant_(encoder.layers[0].bias, 1e5)
    with pytest.raises(TriptychError, match="tiny has features that 16 bits cannot hold"):
        cached_features(photos, encoder, tmp_path / "cache")


def test_an_interrupted_run_goes_on(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FLUSH_EVERY", 4)
    whole = cached_features(photos, encoder, tmp_path / "whole")
    read: list[str] = []
    image = Photo.image

    def interrupted(photo: Photo) -> Image.Image:
        read.append(photo.id)
        if len(read) == 8:
            raise KeyboardInterrupt
        return image(photo)

    monkeypatch.setattr(Photo, "image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_features(photos, encoder, tmp_path / "cache")
    read.clear()
    monkeypatch.setattr(Photo, "image", lambda photo: (read.append(photo.id), image(photo))[1])
    found = cached_features(photos, encoder, tmp_path / "cache")
    assert len(read) == 6  # those after the last record of progress
    np.testing.assert_array_equal(found.maps, whole.maps)
    read.clear()
    cached_features(photos, encoder, tmp_path / "cache")
    assert not read


def test_the_key_follows_photos_weights_and_precision(photos: list[Photo], encoder: TinyNet) -> None:
    key = features_key(photos, encoder, torch.float32)
    assert key == features_key(list(photos), encoder, torch.float32)
    assert key != features_key(photos[:9], encoder, torch.float32)
    assert key != features_key(photos[::-1], encoder, torch.float32)
    assert key != features_key(photos, encoder, torch.bfloat16)
    encoder.layers[1].weight.data += 1  # after the cut: not part of what is cached
    assert key == features_key(photos, encoder, torch.float32)
    encoder.layers[0].weight.data += 1
    assert key != features_key(photos, encoder, torch.float32)


def test_the_encoder_keeps_its_precision(photos: list[Photo], encoder: TinyNet, tmp_path: Path) -> None:
    before = encoder.layers[0].weight.clone()
    cached_features(photos, encoder, tmp_path, torch.bfloat16)
    torch.testing.assert_close(encoder.layers[0].weight, before, atol=0, rtol=0)


def test_a_damaged_photo_is_named(photos: list[Photo], encoder: TinyNet, tmp_path: Path) -> None:
    photos[7].path.write_text("not a picture")
    with pytest.raises(InputError, match=r"7\.png"):
        cached_features(photos, encoder, tmp_path / "cache")


def test_a_full_disk_says_so_and_leaves_nothing(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    with pytest.raises(TriptychError, match="No space left"):
        cached_features(photos, encoder, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_photo_that_cannot_be_read_is_left_out_where_the_reader_allows_it(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path
) -> None:
    whole = cached_features(photos, encoder, tmp_path / "whole")
    photos[2].path.write_text("not a picture")
    photos[7].path.unlink()
    lines: list[str] = []
    found = cached_features(photos, encoder, tmp_path / "cache", reader=PhotoReader(notice=lines.append))
    assert list(found.rows) == [0, 1, 3, 4, 5, 6, 8, 9] and len(lines) == 2
    assert torch.equal(found[[2], [1]], whole[[3], [1]])


@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_promise_room_gets_the_bytes_written(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    whole = cached_features(photos, encoder, tmp_path / "whole")

    def refuse(*_: int) -> None:
        raise OSError(refusal, "refused")

    monkeypatch.setattr(features.os, "posix_fallocate", refuse)
    found = cached_features(photos, encoder, tmp_path / "cache")
    np.testing.assert_array_equal(found.maps, whole.maps)
    [array] = (tmp_path / "cache").rglob("maps.npy")
    assert array.stat().st_blocks * 512 >= array.stat().st_size  # no holes


def test_no_hard_link_is_needed(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(features.os, "link", refuse)
    assert len(cached_features(photos, encoder, tmp_path / "cache")) == 10


def test_another_run_that_began_at_once_keeps_its_array(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both make an array; the second to be there uses the first's, and neither loses what the other has written."""
    take_room = features.take_room

    def other_run_first(file: Path) -> None:
        monkeypatch.setattr(features, "take_room", take_room)
        cached_features(photos, encoder, tmp_path / "cache")
        take_room(file)

    monkeypatch.setattr(features, "take_room", other_run_first)
    found = cached_features(photos, encoder, tmp_path / "cache")
    np.testing.assert_array_equal(found.maps, cached_features(photos, encoder, tmp_path / "whole").maps)
    assert found.maps.any() and not list((tmp_path / "cache").glob("*.tmp"))


@pytest.mark.parametrize(("number", "room"), [(errno.ENOSPC, True), (errno.EACCES, False), (errno.EROFS, False)])
def test_room_is_spoken_of_only_where_it_is_missing(
    photos: list[Photo], encoder: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, room: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(features, "take_room", refuse)
    with pytest.raises(TriptychError) as caught:
        cached_features(photos, encoder, tmp_path / "cache")
    assert ("GiB are needed" in str(caught.value)) == room and os.strerror(number) in str(caught.value)
