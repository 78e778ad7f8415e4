"""The photos of a run: several data sets, splits kept apart, damaged photos left out, figures of each data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from triptych.checkpoints.locate import BUNDLED, load_config
from triptych.convert.push import figures_of
from triptych.data import Photo
from triptych.errors import InputError
from triptych.nn.cnn import ConvNet
from triptych.train import data as train_data
from triptych.train.data import FeatureReader, PhotoSet, TrainingData, open_sources, validate_each
from triptych.train.features import JoinedFeatures, StoredFeatures
from triptych.train.recipe import LoopSettings
from triptych.train.sources import Sources


class TinyNet(ConvNet):
    name, dim, image_size, grid = "tiny", 4, 8, (4, 4)

    def __init__(self) -> None:
        super().__init__([nn.Conv2d(3, 4, 2, 2)])


def folder(path: Path, splits: dict[str, int], caption: str = "a dog") -> Path:
    """A data set with so many photos of each split."""
    path.mkdir(parents=True)
    rows = ["file_name,split,caption"]
    for split, count in splits.items():
        for i in range(count):
            Image.new("RGB", (9, 12), (20 * i, 11 * len(caption), len(split))).save(path / f"{split}{i}.png")
            rows.append(f"{split}{i}.png,{split},{caption} {i}")
    (path / "metadata.csv").write_text("\n".join(rows))
    return path


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return (
        folder(tmp_path / "dogs", {"train": 4, "val": 2, "test": 2}),
        folder(tmp_path / "cats", {"train": 3, "val": 1, "test": 1}, "a horse"),
    )


def test_splits_of_several_data_sets_stay_apart_and_ids_name_theirs(sets: tuple[Path, Path]) -> None:
    dogs, cats = open_sources(Sources(sets))
    assert (dogs.name, len(dogs.train), len(dogs.validation)) == ("dogs", 4, 2)
    assert (cats.name, len(cats.train), len(cats.validation)) == ("cats", 3, 1)
    ids = [photo.id for each in (dogs, cats) for photo in (*each.train, *each.validation)]
    assert len(set(ids)) == 10 and all(i.startswith(("dogs/train", "dogs/val", "cats/train", "cats/val")) for i in ids)
    [alone] = open_sources(Sources(sets[:1]))
    assert alone.train[0].id == "train0.png"


def test_without_a_validation_split_every_tenth_photo_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [split] = open_sources(Sources((folder(tmp_path / "all", {"train": 12}),)))
    assert [photo.id for photo in split.validation] == ["train0.png", "train10.png"] and len(split.train) == 10
    assert "every tenth photo (2) is held out" in capsys.readouterr().err
    with pytest.raises(InputError, match="0 photos to train on and 1 to validate"):
        open_sources(Sources((folder(tmp_path / "one", {"train": 1}),)))


def test_beside_a_data_set_with_a_validation_split_all_photos_of_another_are_learnt(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    more = folder(tmp_path / "more", {"train": 12})
    dogs, further = open_sources(Sources((sets[0], more)))
    assert len(dogs.validation) == 2 and len(further.train) == 12 and not further.validation


@pytest.mark.parametrize(
    ("data", "shares", "message"),
    [
        ((), (), "name one with --data"),
        (("a", "b"), (1.0,), "2 data sets but 1 shares"),
        (("a", "b"), (1.0, 0.0), "--data-share 0.0, expected a number above 0"),
        (("a",), (float("nan"),), "expected a number above 0"),
    ],
)
def test_shares_belong_to_data_sets(data: tuple[str, ...], shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sources(tuple(map(Path, data)), shares)


def test_data_sets_that_are_called_alike_are_numbered(tmp_path: Path) -> None:
    paths = tuple(folder(tmp_path / name / "photos", {"train": 12}) for name in "ab")
    assert Sources(paths).names == ["photos", "photos-2"]


def test_features_are_kept_for_each_data_set(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_data, "home", lambda: tmp_path / "home")
    encoder = TinyNet().eval()
    sources = Sources(sets, (3.0, 1.0))
    reader = FeatureReader(encoder, strict=False)
    data = reader.training_data(open_sources(sources), sources, 1)
    assert [len(each.photos) for each in data.validation] == [1, 1]
    assert data.mix.sizes == (4, 3) and data.mix.shares == (3.0, 1.0) and len(data.features) == 7
    assert len(list((tmp_path / "home" / "features").iterdir())) == 4
    pixels = data.photos[5].image().resize((8, 8))
    found = data.features[[5], [0]]
    assert torch.equal(found, data.train[1].features[[1], [0]]) and pixels.size == (8, 8)
    folders = {path.name for path in (tmp_path / "home" / "features").iterdir()}
    FeatureReader(encoder, strict=False).training_data(open_sources(Sources(sets[1:])), Sources(sets[1:]), 1)
    assert {
        path.name for path in (tmp_path / "home" / "features").iterdir()
    } == folders  # the same, whatever is beside it


def test_a_damaged_photo_is_named_left_out_and_counted(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_data, "home", lambda: tmp_path / "home")
    (sets[0] / "train1.png").write_bytes(b"not a picture")
    (sets[0] / "val0.png").write_bytes((sets[0] / "val0.png").read_bytes()[:40])
    sources, encoder = Sources(sets[:1]), TinyNet().eval()
    for _ in range(2):  # computed, and from the cache
        reader = FeatureReader(encoder, strict=False)
        data = reader.training_data(open_sources(sources), sources, None)
        assert [photo.id for photo in data.photos] == ["train0.png", "train2.png", "train3.png"]
        assert [photo.id for photo in data.validation[0].photos] == ["val1.png"]
        other = TrainingData([data.validation[0]], data.validation)
        assert len(data.features) == 3 and not torch.equal(data.features[[1], [0]], other.features[[0], [0]])
        reader.report()
        said = capsys.readouterr().err
        assert "left out" in said and "train1.png" in said and "val0.png" in said
        assert "2 photos were left out as damaged" in said
    expected = encoder.trunk(train_data_pixels(data.photos[1], encoder))
    torch.testing.assert_close(data.features[[1], [0]], expected, atol=0.03, rtol=0.03)
    with pytest.raises(InputError, match=r"train1\.png"):
        FeatureReader(encoder, strict=True).training_data(open_sources(sources), sources, None)


def train_data_pixels(photo: Photo, encoder: ConvNet) -> torch.Tensor:
    from triptych.io.images import pixel_values

    return pixel_values(photo.image(), encoder.pixels)[None]


def test_a_data_set_of_damaged_photos_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_data, "home", lambda: tmp_path / "home")
    path = folder(tmp_path / "broken", {"train": 2, "val": 1})
    for name in ("train0.png", "train1.png"):
        (path / name).write_bytes(b"?")
    sources = Sources((path,))
    with pytest.raises(InputError, match="none of the 2 photos can be read"):
        FeatureReader(TinyNet().eval(), strict=False).training_data(open_sources(sources), sources, None)


def photo_set(name: str, count: int) -> PhotoSet:
    photos = [Photo(f"{name}/{i}", "val", ("a dog",), {}, Path("none")) for i in range(count)]
    return PhotoSet(name, photos, StoredFeatures(np.zeros((count, 2, 1, 1, 1), np.float16)))


def test_the_mean_of_the_data_sets_figures_decides() -> None:
    sets = [photo_set("dogs", 2), photo_set("cats", 1)]
    figures = {"dogs": {"CIDEr-D": 0.6, "accuracy": 50.0}, "cats": {"CIDEr-D": 0.2}}
    found = validate_each(sets, lambda each: figures[each.name])
    assert found == pytest.approx({"CIDEr-D": 0.4, "dogs/CIDEr-D": 0.6, "dogs/accuracy": 50.0, "cats/CIDEr-D": 0.2})
    assert validate_each(sets[1:], lambda each: figures[each.name]) == {"CIDEr-D": 0.2}


def test_the_card_names_the_data_sets() -> None:
    sets = [photo_set("dogs", 2), photo_set("cats", 1)]
    card = TrainingData(sets, sets, (2.0, 1.0)).card(LoopSettings(epochs=7), {"epoch": 1})
    assert card.data == "dogs + cats" and card.photos == 3 and card.validation == {"epoch": 1}
    assert card.recipe["epochs"] == 7  # type: ignore[index, call-overload]
    assert card.notes == {"photos_of": {"dogs": 2, "cats": 1}, "shares": {"dogs": 2.0, "cats": 1.0}}
    assert TrainingData(sets[:1], sets[:1]).card(LoopSettings(), {}).notes == {}


def test_cards_have_the_metrics_of_captions_in_percent() -> None:
    sets = [photo_set("dogs", 2)]
    record = {"epoch": 1, "CIDEr-D": 0.5719, "dogs/BLEU-4": 0.2, "text-to-image R@1": 31.0, "gates": 0.3}
    card = TrainingData(sets, sets).card(LoopSettings(), record)
    assert card.validation == {**record, "CIDEr-D": 57.19, "dogs/BLEU-4": 20.0}


@pytest.mark.parametrize("name", ["sat", "flamingo", "blip2"])
def test_shipped_cards_have_the_metrics_of_captions_in_percent(name: str) -> None:
    card = load_config(BUNDLED / name).card
    figures = [*figures_of(card.validation or {}), *figures_of(card.test or {})]
    captions = {what: value for what, value in figures if "CIDEr" in what or "BLEU" in what}
    assert len(captions) >= 4 and all(10 < value < 100 for value in captions.values()), captions


def test_joined_features_know_their_number() -> None:
    joined = JoinedFeatures(photo_set("a", 2).features, photo_set("b", 1).features)
    assert len(joined) == 3
    with pytest.raises(IndexError):
        joined[[3], [0]]


def test_captions_that_a_model_wrote_stand_beside_those_of_people(sets: tuple[Path, Path], tmp_path: Path) -> None:
    lines = [
        '{"id": "train0.png", "caption": "a brown dog", "references": []}',
        '{"id": "train0.png", "caption": "a  brown dog"}',
    ]
    lines += ['{"id": "cats/train1.png", "caption": "a mare"}', '{"id": "val0.png", "caption": "nothing"}']
    (tmp_path / "written.jsonl").write_text("\n".join(lines))
    dogs, cats = open_sources(Sources(sets, written=(tmp_path / "written.jsonl",)))
    assert dogs.train[0].written == ("a brown dog",) and dogs.train[0].captions == ("a dog 0",)
    assert [photo.written for photo in cats.train] == [("a brown dog",), ("a mare",), ()]
    assert not any(photo.written for each in (dogs, cats) for photo in each.validation)
    [alone] = open_sources(Sources(sets[1:], written=(tmp_path / "written.jsonl",)))
    assert alone.train[0].written == ("a brown dog",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "line 1: expected an object with id and caption"),
        ('{"id": "x", "caption": "y"}', "none of its ids is a training photo"),
    ],
)
def test_written_captions_belong_to_training_photos(
    sets: tuple[Path, Path], tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "written.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        open_sources(Sources(sets, written=(tmp_path / "written.jsonl",)))
