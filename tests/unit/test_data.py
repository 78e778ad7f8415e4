"""What holds for data sets of all formats, and the real ones."""

import io
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from datasets_on_disk import RANDOM, lines, picture, put, put_tar, refused, summary
from PIL import Image

from triptych.data import open_dataset


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent", "no such file or folder")
    put(tmp_path / "a.jpg")
    for path in (tmp_path, tmp_path / "a.jpg"):
        refused(path, "metadata.csv", "train-000000.tar", "dataset_*.json", "captions_*.json", "LLaVA")
    put(tmp_path / "x.json", "{}")
    put(tmp_path / "y.json", "{}")
    refused(tmp_path, "2 JSON files of no known format", "x.json, y.json")


def test_metadata_come_before_json_and_json_before_shards(tmp_path: Path) -> None:
    put(tmp_path / "c.jpg")
    put_tar(tmp_path / "train-000000.tar", {"a.jpg": picture()})
    assert [photo.id for photo in open_dataset(tmp_path)] == ["a"]
    put(tmp_path / "dataset_x.json", json.dumps({"images": [{"filename": "c.jpg"}]}))
    assert [photo.id for photo in open_dataset(tmp_path)] == ["c"]
    put(tmp_path / "metadata.csv", "file_name\nc.jpg\n")
    assert [photo.id for photo in open_dataset(tmp_path)] == ["c.jpg"]


@pytest.mark.parametrize("archive", ["images.tar", "photos.zip", "photos.tar.gz"])
def test_an_archive_beside_metadata(tmp_path: Path, archive: str) -> None:
    put_tar(tmp_path / archive, {"a.jpg": picture()})
    put(tmp_path / "metadata.csv", "file_name,caption\na.jpg,a dog\n")
    refused(tmp_path, "a.jpg", "not there", f"if {archive} holds it, unpack that there first")
    put(tmp_path / "a.jpg")
    assert summary(open_dataset(tmp_path)) == [("a.jpg", "train", ("a dog",))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset-metadata.json", {"id": "me/photos", "title": "Photos", "licenses": [{"name": "CC0"}]}),
        ("dataset_info.json", {"features": {"image": {"_type": "Image"}}, "splits": {}}),
        ("dataset_infos.json", {"default": {}}),
        ("0000_stats.json", {"count": 4, "images": 4}),
        ("croissant.json", {"@context": {}, "distribution": []}),
        ("instances_val2017.json", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"bbox": []}]}),
        ("labels.json", ["dog", "cat"]),
        ("broken.json", None),
    ],
)
def test_other_json_files_are_skipped(tmp_path: Path, name: str, content: object) -> None:
    put(tmp_path / name, "{" if content is None else json.dumps(content))
    put_tar(tmp_path / "train-000000.tar", {"a.jpg": picture()})
    assert [photo.id for photo in open_dataset(tmp_path)] == ["a"]
    put(tmp_path / "c.jpg")
    captions = {
        "images": [{"id": 1, "file_name": "c.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a cat"}],
    }
    put(tmp_path / "captions_train.json", json.dumps(captions))
    assert summary(open_dataset(tmp_path)) == [("1", "train", ("a cat",))]
    (tmp_path / "captions_train.json").rename(tmp_path / "data.json")
    assert summary(open_dataset(tmp_path)) == [("1", "train", ("a cat",))]


def test_a_broken_json_file_is_named_where_nothing_else_can_be_read(tmp_path: Path) -> None:
    put(tmp_path / "data.json", "{")
    refused(tmp_path, "data.json", "broken JSON")


def test_links_that_the_user_made_are_followed(tmp_path: Path) -> None:
    """A snapshot of a hub: every file is a link to a blob; and a linked folder of photos."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    (snapshot / "train").mkdir(parents=True)
    contents = [put(blobs / "1"), put(blobs / "2"), put(tmp_path / "elsewhere" / "c.jpg")]
    put(blobs / "3", lines({"file_name": "train/a.jpg", "text": "a"}, {"file_name": "train/b.jpg", "text": "b"}))
    for name, blob in (("train/a.jpg", "1"), ("train/b.jpg", "2"), ("metadata.jsonl", "3")):
        (snapshot / name).symlink_to(blobs / blob)
    assert [photo.read() for photo in open_dataset(snapshot, "train")] == contents[:2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos").symlink_to(tmp_path / "elsewhere")
    put(tmp_path / "mine" / "metadata.csv", "file_name,caption\nphotos/c.jpg,c\n")
    assert [photo.read() for photo in open_dataset(tmp_path / "mine")] == contents[2:]
    put_tar(blobs / "4", {"a.jpg": contents[0]})
    (tmp_path / "mine" / "train-00000-of-00001.tar").symlink_to(blobs / "4")
    assert open_dataset(tmp_path / "mine" / "train-00000-of-00001.tar")[0].read() == contents[0]


def test_photos_without_a_split_beside_others_are_refused(tmp_path: Path) -> None:
    put_tar(tmp_path / "test-000000.tar", {"a.jpg": picture()})
    put_tar(tmp_path / "more-000000.tar", {"b.jpg": picture(), "c.jpg": picture()})
    refused(tmp_path, "more-000000.tar: b", "no split", "1 others", split="test")


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    put_tar(tmp_path / "train-000000.tar", {"a.jpg": picture(), "b.jpg": picture()})
    put_tar(tmp_path / "test-000000.tar", {"c.jpg": picture()})
    refused(tmp_path, "'dev'", "train (2 photos), test (1 photos)", split="dev")
    refused(tmp_path, "'nonsense'", split="nonsense")


def test_a_dataset_without_splits_is_all_for_training(tmp_path: Path) -> None:
    put_tar(tmp_path / "photos-000000.tar", {"a.jpg": picture(), "b.jpg": picture()})
    assert [photo.split for photo in open_dataset(tmp_path, "train")] == ["train", "train"]
    refused(tmp_path, "train (2 photos)", split="val")


# Real photos


@pytest.mark.data
def test_flickr8k(flickr8k: Path) -> None:
    started = time.process_time()
    photos = open_dataset(flickr8k)
    assert time.process_time() - started < 2
    assert Counter(photo.split for photo in photos) == {"train": 6000, "val": 1000, "test": 500}
    assert {len(photo.captions) for photo in photos} == {5}
    assert open_dataset(flickr8k, "val") == [photo for photo in photos if photo.split == "val"]
    for photo in RANDOM.sample(photos, 20):
        image = Image.open(io.BytesIO(photo.read()))
        assert image.size == (photo.extra["width"], photo.extra["height"]) == (224, 224)
        assert photo.extra["file_name"] == f"{photo.id}.jpg"
        image.load()


@pytest.mark.data
def test_coco_mini(coco_mini: Path) -> None:
    photos = open_dataset(coco_mini)
    for split, counts in {
        "train": (166, 132, 120, 44, 63),
        "val": (41, 35, 27, 7, 10),
        "test": (118, 97, 79, 27, 43),
    }.items():
        part = [photo for photo in photos if photo.split == split]
        questions = [question for photo in part for question in photo.extra.get("vqa", [])]
        having = [sum(key in photo.extra for photo in part) for key in ("objects", "vqa")]
        assert (len(part), sum(bool(photo.captions) for photo in part), *having, len(questions)) == counts
    for photo in photos:
        assert Image.open(io.BytesIO(photo.read())).size == (photo.extra["width"], photo.extra["height"])
