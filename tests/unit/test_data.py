"""Each format of data sets, made small here, and what must be refused in them."""

import io
import json
import pickle
import random
import tarfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.data import Photo, open_dataset
from triptych.errors import InputError

RANDOM = random.Random(0)

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(suffix: str = "jpg") -> bytes:
    file = io.BytesIO()
    colour = tuple(RANDOM.randrange(256) for _ in range(3))
    Image.new("RGB", (RANDOM.randint(3, 9), RANDOM.randint(3, 9)), colour).save(
        file, {"jpg": "JPEG"}.get(suffix, suffix)
    )
    return file.getvalue()


def put(path: Path, content: bytes | str | None = None) -> bytes:
    """Write ``content`` (a new picture, if it is not given) to ``path``."""
    content = picture() if content is None else content
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def put_tar(path: Path, members: Mapping[str, bytes | str]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(path: Path, *parts: str, split: str | None = None) -> None:
    """Opening ``path`` fails with one line that holds all ``parts``."""
    with pytest.raises(InputError) as error:
        open_dataset(path, split)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def summary(photos: list[Photo]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(photo.id, photo.split, photo.captions) for photo in photos]


# WebDataset shards


def test_shards_keep_order_bytes_captions_and_the_rest(tmp_path: Path) -> None:
    pictures = {key: picture() for key in "dcba"}
    put_tar(
        tmp_path / "train-000000.tar",
        {
            "d.jpg": pictures["d"],
            "d.json": json.dumps(
                {"id": "d", "split": "train", "captions": [" a dog ", "", None, "더 큰 개"], "width": 7}
            ),
            "./c.png": pictures["c"],
            "./c.txt": "\ufeffone\n\n two \r\n",
        },
    )
    put_tar(tmp_path / "train-000001.tar", {"sub/b.JPEG": pictures["b"], "sub/b.cls": "3"})
    put_tar(tmp_path / "dev-000000.tar", {"a.webp": pictures["a"], "a.json": '{"caption": "one only"}'})
    photos = open_dataset(tmp_path)
    assert summary(photos) == [
        ("a", "val", ("one only",)),
        ("d", "train", ("a dog", "더 큰 개")),
        ("c", "train", ("one", "two")),
        ("sub/b", "train", ()),
    ]
    assert photos[1].extra == {"width": 7}
    assert [photo.read() for photo in photos] == [pictures[key] for key in "adcb"]
    assert photos[1].name == f"{tmp_path / 'train-000000.tar'}: d"
    assert summary(open_dataset(tmp_path / "dev-000000.tar")) == [("a", "val", ("one only",))]


def test_photos_travel_to_other_processes(tmp_path: Path) -> None:
    contents = [picture() for _ in range(5)]
    put_tar(tmp_path / "photos-000000.tar", {f"{i}.jpg": content for i, content in enumerate(contents)})
    photos = open_dataset(tmp_path)
    assert pickle.loads(pickle.dumps(photos)) == photos
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(Photo.read, photos)) == contents


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000000.tar", "train"),
        ("flickr8k-val-000012.tar", "val"),
        ("test2017-00.tar", "test"),
        ("validation.tar", "val"),
        ("photos-000000.tar", "train"),
        ("festival-000000.tar", "train"),
    ],
)
def test_the_split_is_in_the_name_of_a_shard(tmp_path: Path, name: str, split: str) -> None:
    put_tar(tmp_path / name, {"a.jpg": picture()})
    assert [photo.split for photo in open_dataset(tmp_path)] == [split]


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        ({"a.jpg": b"", "a.json": "{"}, ["a.json", "broken JSON"]),
        ({"a.jpg": b"", "a.json": "[]"}, ["a.json", "expected an object"]),
        ({"a.jpg": b"", "a.json": '{"captions": [3]}'}, ["a.json", "must be text"]),
        ({"a.jpg": b"", "a.json": '{"id": true}'}, ["a", "True"]),
        ({"a.jpg": b"", "a.txt": b"fine\n\xff"}, ["a.txt", "line 2", "UTF-8"]),
        ({"a.jpg": b"", "b.json": "{}", "c.txt": ""}, ["no photo for 'b'", "1 others"]),
        ({"a.jpg": b"", "a.png": b""}, ["a.png", "second photo"]),
        ({"a.jpg": b"", "b.jpg": b"", "b.json": '{"id": "a"}'}, ["'a'", "already"]),
        ({"a.jpg": b"", "a.json": '{"split": "test"}'}, ["a", "test or train"]),
        ({"a.jpg": b"", "a.json": '{"split": "mine"}'}, ["a", "'mine'", "known are train"]),
        ({"notes.md": "no photos"}, ["without a photo"]),
    ],
)
def test_broken_shards_are_refused(tmp_path: Path, members: dict[str, bytes | str], parts: list[str]) -> None:
    put_tar(tmp_path / "train-000000.tar", members)
    refused(tmp_path, "train-000000.tar" if "without" not in parts[0] else "", *parts)


def test_a_link_in_a_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    refused(tmp_path, "a.jpg", "not a plain file")


@pytest.mark.parametrize("keep", [100, 512 + 50, 1024 + 512, 1024 + 512 + 100])
def test_a_shard_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    shard = tmp_path / "train-000000.tar"
    put_tar(shard, {"a.jpg": bytes(700), "b.jpg": bytes(700)})
    shard.write_bytes(shard.read_bytes()[:keep])
    refused(tmp_path, "train-000000.tar", "not a whole")


def test_a_broken_header_does_not_end_a_shard_unnoticed(tmp_path: Path) -> None:
    shard = tmp_path / "train-000000.tar"
    put_tar(shard, {f"{i}.jpg": picture() for i in range(5)})
    offset = open_dataset(tmp_path)[3].offset
    content = bytearray(shard.read_bytes())
    content[offset - 500] ^= 1
    shard.write_bytes(content)
    refused(tmp_path, "train-000000.tar", "neither a header nor the end")


@pytest.mark.parametrize("size", [2**80, -512, -1024])
def test_a_hostile_size_in_a_header_is_refused(tmp_path: Path, size: int) -> None:
    hostile = tarfile.TarInfo("other.bin")
    hostile.size = size
    first = tarfile.TarInfo("a.jpg")
    put(tmp_path / "train-0.tar", first.tobuf() + hostile.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(tmp_path, "train-0.tar", "not a whole")


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    refused(tmp_path, "uncompressed")


def test_a_shard_that_shrank_is_noticed_when_read(tmp_path: Path) -> None:
    put_tar(tmp_path / "a.tar", {"a.jpg": picture()})
    photo = open_dataset(tmp_path)[0]
    put(tmp_path / "a.tar", b"short")
    with pytest.raises(InputError, match="cut short"):
        photo.read()
    (tmp_path / "a.tar").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        photo.read()


@fuzz
@given(st.lists(st.tuples(st.integers(0, 10239), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_shard_never_fails_otherwise(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    shard = tmp_path / "train-000000.tar"
    put_tar(shard, {"a.jpg": b"a" * 600, "a.json": '{"captions": ["one"]}', "b.jpg": b"b" * 600})
    content = bytearray(shard.read_bytes())
    for place, value in damage:
        content[place] = value
    shard.write_bytes(content)
    try:
        photos = open_dataset(tmp_path)
        assert photos
        for photo in photos:
            photo.read()
    except InputError as error:
        assert "\n" not in str(error)


# A folder with metadata


def test_csv_metadata(tmp_path: Path) -> None:
    contents = [put(tmp_path / name) for name in ("a.jpg", "b.png", "c.jpg")]
    rows = [
        "file_name,caption,place",
        'a.jpg,"a dog, running",here',
        "b.png,,",
        "a.jpg,a brown dog,here",
        'c.jpg,"two\nlines",',
    ]
    put(tmp_path / "metadata.csv", "\ufeff" + "\r\n".join(rows))
    put(tmp_path / "unlisted.jpg")
    photos = open_dataset(tmp_path)
    assert summary(photos) == [
        ("a.jpg", "train", ("a dog, running", "a brown dog")),
        ("b.png", "train", ()),
        ("c.jpg", "train", ("two\nlines",)),
    ]
    assert photos[0].extra == {"place": "here"}
    assert [photo.read() for photo in photos] == contents
    assert photos[0].name == str(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ({"caption": "a cat"}, ("a cat",)),
        ({"captions": ["a cat", " ", "a tom "]}, ("a cat", "a tom")),
        ({"text": "a cat"}, ("a cat",)),
        ({"caption": None, "text": "a\u2028cat"}, ("a\u2028cat",)),
        ({}, ()),
    ],
)
def test_jsonl_metadata(tmp_path: Path, row: dict[str, Any], captions: tuple[str, ...]) -> None:
    put(tmp_path / "sub" / "a.jpg")
    put(
        tmp_path / "metadata.jsonl",
        "\ufeff" + json.dumps({"file_name": "sub/a.jpg", **row}, ensure_ascii=False) + "\r\n\n",
    )
    assert summary(open_dataset(tmp_path)) == [("sub/a.jpg", "train", captions)]


def test_several_captions_in_a_csv_cell(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "metadata.csv", 'file_name,captions\na.jpg,"[""a cat"", ""a tom""]"\n')
    assert open_dataset(tmp_path)[0].captions == ("a cat", "a tom")


def test_splits_are_sub_folders_or_a_column(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "validation/b.jpg", "test/c.jpg", "d.jpg"):
        put(tmp_path / name)
    put(tmp_path / "train" / "metadata.jsonl", lines({"file_name": "a.jpg", "text": "a"}))
    put(tmp_path / "validation" / "metadata.csv", "file_name,text\nb.jpg,b\n")
    put(
        tmp_path / "metadata.jsonl",
        lines({"file_name": "test/c.jpg", "text": "c"}, {"file_name": "d.jpg", "text": "d", "split": "Dev"}),
    )
    photos = open_dataset(tmp_path)
    assert sorted(summary(photos)) == [
        ("d.jpg", "val", ("d",)),
        ("test/c.jpg", "test", ("c",)),
        ("train/a.jpg", "train", ("a",)),
        ("validation/b.jpg", "val", ("b",)),
    ]
    assert {photo.id for photo in open_dataset(tmp_path, "dev")} == {"d.jpg", "validation/b.jpg"}
    assert {photo.id for photo in open_dataset(tmp_path, "train")} == {"train/a.jpg"}


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("metadata.jsonl", '{"file_name": "a.jpg"}\n\n{"file_name": \n', ["line 3", "broken JSON"]),
        ("metadata.jsonl", '{"file_name": "a.jpg"}\n[1]', ["line 2", "[1]"]),
        ("metadata.jsonl", '{"file": "a.jpg"}', ["line 1", "no file_name"]),
        ("metadata.jsonl", '{"file_name": ["a.jpg"]}', ["line 1", "file_name"]),
        ("metadata.jsonl", '{"file_name": "a.jpg", "caption": {"en": "a"}}', ["line 1", "must be text"]),
        ("metadata.jsonl", '{"file_name": "a.jpg", "caption": "\\ud800"}', ["line 1", "surrogate"]),
        ("metadata.jsonl", '{"file_name": "a.jpg", "n": ' + "9" * 5000 + "}", ["line 1"]),
        ("metadata.jsonl", '{"file_name": "a.jpg", "split": "all"}', ["line 1", "'all'"]),
        ("metadata.jsonl", lines({"file_name": "a.jpg", "n": 1}, {"file_name": "a.jpg", "n": 2}), ["line 2", "a.jpg"]),
        (
            "metadata.jsonl",
            lines({"file_name": "a.jpg", "id": "x"}, {"file_name": "b.jpg", "id": "x"}),
            ["line 2", "'x'"],
        ),
        ("metadata.jsonl", "[" * 200_000, ["line 1"]),
        ("metadata.csv", "file_name,caption\na.jpg,one, two\n", ["line 2", "2 columns", "quotes"]),
        ("metadata.csv", "file_name,caption\na.jpg\n", ["line 2", "2 columns"]),
        ("metadata.csv", 'file_name,caption\na.jpg,"one\n', ["line 2", "broken CSV"]),
        ("metadata.csv", "name,caption\na.jpg,one\n", ["line 2", "no file_name"]),
        ("metadata.csv", "file_name,captions\na.jpg,[one\n", ["line 2", "broken JSON"]),
        ("metadata.csv", "file_name,caption\n,one\n", ["line 2", "file_name"]),
        ("metadata.csv", "file_name,caption\n", ["without a photo"]),
        ("metadata.csv", "", ["without a photo"]),
    ],
)
def test_broken_metadata_are_refused(tmp_path: Path, name: str, text: str, parts: list[str]) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    put(tmp_path / name, text)
    refused(tmp_path, *parts, name if parts[0].startswith("line") else str(tmp_path))


def test_metadata_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "metadata.csv", b"file_name,caption\na.jpg,caf\xe9\n")
    refused(tmp_path, "metadata.csv", "line 2", "UTF-8")


def test_two_metadata_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "metadata.csv", "")
    put(tmp_path / "metadata.jsonl", "")
    refused(tmp_path, "both metadata.csv and metadata.jsonl")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/hostname", "sub/../../secret.jpg", "link.jpg", "linked/secret.jpg", "a\0b", "."]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret.jpg")
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (photos / "linked").symlink_to(tmp_path)
    put(photos / "metadata.jsonl", lines({"file_name": name}))
    refused(photos, "metadata.jsonl: line 1", "not inside")


def test_a_dataset_may_itself_lie_behind_a_link(tmp_path: Path) -> None:
    content = put(tmp_path / "there" / "a.jpg")
    put(tmp_path / "there" / "metadata.jsonl", lines({"file_name": "a.jpg"}))
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert open_dataset(tmp_path / "here")[0].read() == content


def test_missing_photos_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    names = ["a.jpg", "folder.jpg", "c.jpg", "d" * 300 + ".jpg"]
    put(tmp_path / "metadata.jsonl", lines(*({"file_name": name} for name in names)))
    refused(tmp_path, "folder.jpg", "not there", "2 others")


def test_only_the_photos_of_the_split_must_be_there(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    rows = ({"file_name": "a.jpg", "split": "val"}, {"file_name": "b.jpg", "split": "train"})
    put(tmp_path / "metadata.jsonl", lines(*rows))
    assert [photo.id for photo in open_dataset(tmp_path, "val")] == ["a.jpg"]
    refused(tmp_path, "b.jpg", split="train")


def test_a_file_too_large_for_a_photo_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.data.photos.MAX_BYTES", 10)
    put(tmp_path / "a.jpg", b"x" * 11)
    put(tmp_path / "b.jpg", b"x" * 10)
    put(tmp_path / "metadata.jsonl", lines({"file_name": "a.jpg"}, {"file_name": "b.jpg"}))
    large, small = open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"a\.jpg"):
        large.read()
    assert small.read() == b"x" * 10


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("a.jpg"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["file_name", "caption", "captions", "text", "split", "id", "x"])
messy_lines = st.lists(
    st.dictionaries(fields, json_values).map(json.dumps) | json_values.map(json.dumps) | st.text(max_size=30),
    max_size=5,
).map("\n".join)


@fuzz
@given(
    st.sampled_from(["metadata.csv", "metadata.jsonl"]),
    st.binary(max_size=60)
    | messy_lines.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.text(alphabet='file_name,caption\n\r"a.jpg[]\0 ').map(lambda text: ("file_name,captions\n" + text).encode()),
)
def test_no_metadata_fail_otherwise(tmp_path: Path, name: str, content: bytes) -> None:
    put(tmp_path / "a.jpg", b"a")
    for other in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / other).unlink(missing_ok=True)
    put(tmp_path / name, content)
    try:
        photos = open_dataset(tmp_path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert {photo.read() for photo in photos} == {b"a"}


# One JSON file over photos


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


# What holds for all


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent", "no such file or folder")
    put(tmp_path / "a.jpg")
    for path in (tmp_path, tmp_path / "a.jpg"):
        refused(path, "metadata.csv", "train-000000.tar", "dataset_*.json", "captions_*.json", "LLaVA")
    put(tmp_path / "x.json", "{}")
    put(tmp_path / "y.json", "{}")
    refused(tmp_path, "2 JSON files", "x.json, y.json")


def test_tar_shards_come_before_metadata_and_metadata_before_json(tmp_path: Path) -> None:
    put(tmp_path / "c.jpg")
    put(tmp_path / "dataset_x.json", json.dumps({"images": [{"filename": "c.jpg"}]}))
    assert [photo.id for photo in open_dataset(tmp_path)] == ["c"]
    put(tmp_path / "metadata.csv", "file_name\nc.jpg\n")
    assert [photo.id for photo in open_dataset(tmp_path)] == ["c.jpg"]
    put_tar(tmp_path / "train-000000.tar", {"a.jpg": picture()})
    assert [photo.id for photo in open_dataset(tmp_path)] == ["a"]


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
