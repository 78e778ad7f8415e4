"""JSON files over photos: Karpathy, COCO, LLaVA, lists of captions."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import fuzz, put, refused, summary
from hypothesis import given
from hypothesis import strategies as st

from triptych.data import open_dataset
from triptych.errors import InputError


def karpathy_image(name: str, split: str | None, *captions: str, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": caption, "tokens": caption.split()} for caption in captions]
    return {"filename": name, "sentences": sentences, **({"split": split} if split else {}), **more}


@pytest.mark.parametrize(
    "places",
    [
        ("train2014/a.jpg", "val2014/b.jpg"),
        ("images/train2014/a.jpg", "images/val2014/b.jpg"),
        ("a.jpg", "b.jpg"),
        ("Images/a.jpg", "Images/b.jpg"),
    ],
)
def test_karpathy(tmp_path: Path, places: tuple[str, str]) -> None:
    contents = [put(tmp_path / place) for place in places]
    images = [
        karpathy_image("a.jpg", "restval", "one.", " two", "", filepath="train2014", cocoid=7),
        karpathy_image("b.jpg", "test", filepath="val2014"),
    ]
    put(tmp_path / "dataset_coco.json", "\ufeff" + json.dumps({"dataset": "coco", "images": images}))
    photos = open_dataset(tmp_path)
    assert summary(photos) == [("a", "train", ("one.", "two")), ("b", "test", ())]
    assert photos[0].extra["cocoid"] == 7
    assert [photo.read() for photo in photos] == contents
    assert open_dataset(tmp_path / "dataset_coco.json") == photos


@pytest.mark.parametrize("layout", ["annotations/captions_{}.json", "captions_{}.json"])
@pytest.mark.parametrize("photo_folder", [".", "images"])
def test_coco(tmp_path: Path, layout: str, photo_folder: str) -> None:
    contents = []
    for number, split in enumerate(("train2017", "val2017")):
        contents.append(put(tmp_path / photo_folder / split / "000000000042.jpg"))
        coco = {
            "info": {},
            "images": [{"id": number, "file_name": "000000000042.jpg", "license": 4}],
            "annotations": [{"image_id": number, "id": i, "caption": f"{split} {i}\n"} for i in range(3)],
        }
        put(tmp_path / layout.format(split), json.dumps(coco))
    photos = open_dataset(tmp_path)
    assert summary(photos) == [
        ("0", "train", ("train2017 0", "train2017 1", "train2017 2")),
        ("1", "val", ("val2017 0", "val2017 1", "val2017 2")),
    ]
    assert photos[1].extra == {"file_name": "000000000042.jpg", "license": 4}
    assert [photo.read() for photo in photos] == contents
    assert open_dataset(tmp_path / layout.format("val2017")) == photos[1:]


def test_llava(tmp_path: Path) -> None:
    content = put(tmp_path / "coco" / "train2017" / "a.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    items = [
        {"id": "text only", "conversations": turns},
        {"id": "a", "image": "coco/train2017/a.jpg", "conversations": turns},
        {"id": "a", "image": "coco/train2017/a.jpg", "conversations": turns[::-1]},
    ]
    put(tmp_path / "llava.json", json.dumps(items))
    photos = open_dataset(tmp_path)
    assert summary(photos) == [("a", "train", ()), ("a#2", "train", ())]
    assert [photo.extra["conversations"] for photo in photos] == [turns, turns[::-1]]
    assert photos[1].read() == content


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("{\n]", ["broken JSON", "line 2"]),
        ("{}", ["neither Karpathy"]),
        ('"text"', ["neither Karpathy"]),
        ('{"images": {}}', ["images", "expected a list"]),
        ('{"images": [{"filename": "a.jpg"}, 3]}', ["images[1]"]),
        ('{"images": [{"filename": "a.jpg", "filepath": 3.5}]}', ["images[0].filepath"]),
        ('{"images": [{"filename": "a.jpg", "sentences": [3]}]}', ["images[0].sentences"]),
        ('{"images": [{"filename": "../a.jpg"}]}', ["images[0]", "not inside"]),
        ('{"images": [{"filename": "a.jpg", "split": "rest"}]}', ["images[0]", "'rest'"]),
        ('{"images": [{"filename": "a.jpg", "split": "val"}, {"filename": "b.jpg"}]}', ["b.jpg", "no split"]),
        ('{"images": [{"filename": "a.jpg"}, {"filename": "a.jpg"}]}', ["'a'", "already"]),
        ('{"images": [], "annotations": []}', ["without a photo"]),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1}]}',
            ["annotations[0]", "no caption"],
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            ["image '2'"],
        ),
        ('{"images": [{"id": [1], "file_name": "a.jpg"}], "annotations": []}', ["images[0].id"]),
        ('[{"id": 1}]', ["[0].image"]),
        ('[{"id": 1, "image": "a.jpg"}]', ["[0].conversations"]),
        ('[{"id": 1, "image": "a.jpg", "conversations": [{"from": "human"}]}]', ["'value'"]),
        ('[{"id": 1, "image": ["a.jpg"], "conversations": []}]', ["[0].image"]),
    ],
)
def test_broken_json_files_are_refused(tmp_path: Path, value: str, parts: list[str]) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    put(tmp_path / "data.json", value)
    refused(tmp_path / "data.json", *parts)


annotation_values = st.recursive(
    st.none() | st.integers(0, 2) | st.sampled_from(["a.jpg", "b.jpg", "train", "x", ""]) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "image", "conversations", "from", "value", "filename", "filepath", "split", "sentences", "raw"]
            ),
            inner,
            max_size=4,
        )
        | st.fixed_dictionaries({"images": inner}, optional={"annotations": inner})
    ),
    max_leaves=12,
)


@fuzz
@given(annotation_values)
def test_no_json_file_fails_otherwise(tmp_path: Path, value: Any) -> None:
    put(tmp_path / "a.jpg", b"a")
    put(tmp_path / "data.json", json.dumps(value))
    try:
        photos = open_dataset(tmp_path / "data.json")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert photos


# As people have them


def test_karpathys_tokens_without_raw_sentences(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    sentences = [{"tokens": ["a", "dog"]}, {"tokens": ["two", "dogs"], "raw": ""}, {"tokens": ["x"], "raw": "A pup."}]
    put(tmp_path / "dataset.json", json.dumps({"images": [{"filename": "a.jpg", "sentences": sentences}]}))
    assert open_dataset(tmp_path)[0].captions == ("a dog", "two dogs", "A pup.")


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["x/1.jpg", "y/2.jpg"], ["1", "2"]),
        (["x/1.jpg", "y/1.jpg", "y/2.jpg"], ["x/1", "y/1", "y/2"]),
        (["x/1.jpg", "x/1.png"], ["x/1.jpg", "x/1.png"]),
        (["1.jpg", "1.png"], ["1.jpg", "1.png"]),
    ],
)
@pytest.mark.parametrize("with_filepath", [False, True])
def test_karpathys_ids_are_as_short_as_they_can_be(
    tmp_path: Path, names: list[str], ids: list[str], with_filepath: bool
) -> None:
    images = []
    for name in names:
        put(tmp_path / name)
        folder, _, bare = name.rpartition("/")
        images.append({"filename": bare, "filepath": folder} if with_filepath and folder else {"filename": name})
    put(tmp_path / "dataset.json", json.dumps({"images": images}))
    assert [photo.id for photo in open_dataset(tmp_path)] == ids


def coco(*photos: tuple[int, str, list[str]]) -> str:
    return json.dumps(
        {
            "images": [{"id": number, "file_name": name} for number, name, _ in photos],
            "annotations": [{"image_id": n, "caption": text} for n, _, texts in photos for text in texts],
        }
    )


def test_ids_of_coco_that_start_anew_in_each_file(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        put(tmp_path / name)
    put(tmp_path / "captions_train.json", coco((1, "a.jpg", ["a"]), (2, "b.jpg", ["b"])))
    put(tmp_path / "captions_val.json", coco((1, "c.jpg", ["c"])))
    assert summary(open_dataset(tmp_path)) == [
        ("captions_train/1", "train", ("a",)),
        ("captions_train/2", "train", ("b",)),
        ("captions_val/1", "val", ("c",)),
    ]
    put(tmp_path / "captions_val.json", coco((7, "c.jpg", ["c"])))
    assert [photo.id for photo in open_dataset(tmp_path)] == ["1", "2", "7"]


def test_two_files_of_captions_of_the_same_photos(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "captions_one.json", coco((1, "a.jpg", ["a"])))
    put(tmp_path / "captions_two.json", coco((1, "a.jpg", ["b"])))
    assert summary(open_dataset(tmp_path)) == [("1", "train", ("a", "b"))]
    (tmp_path / "captions_two.json").rename(tmp_path / "captions_val.json")
    refused(tmp_path, "a.jpg", "second file", "split")


def test_files_named_after_splits(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        put(tmp_path / name)
    rows = {"train": [{"image": "a.jpg", "caption": ["a", "b"]}], "val": [{"image": "b.jpg", "caption": "c", "id": 3}]}
    for split, items in rows.items():
        put(tmp_path / "annotations" / f"flickr30k_{split}.json", json.dumps(items))
    assert summary(open_dataset(tmp_path)) == [("a.jpg", "train", ("a", "b")), ("3", "val", ("c",))]
    put(tmp_path / "annotations" / "other.json", json.dumps(rows["train"]))
    refused(tmp_path, "3 JSON files", "name the one to read")
    assert summary(open_dataset(tmp_path / "annotations" / "other.json")) == [("a.jpg", "train", ("a", "b"))]
