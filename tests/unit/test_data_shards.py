"""WebDataset shards, whole and broken."""

import json
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from datasets_on_disk import fuzz, picture, put, put_tar, refused, summary
from hypothesis import given
from hypothesis import strategies as st

from triptych.data import Photo, open_dataset
from triptych.errors import InputError


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
        ("test-00000-of-00004.tar", "test"),
        ("val_0001.tar", "val"),
        ("my.dev.0.tar", "val"),
        ("my-test-photos-0.tar", "train"),
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


# Shards as people have them


def test_dots_in_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contents = [picture() for _ in range(5)]
    members = {
        "v1.2_b.jpg": contents[0],
        "v1.2_b.txt": "one",
        "v1.2_c.JPG": contents[1],
        "x.y/z.0.5.png": contents[2],
        "x.y/z.0.5.json": '{"caption": "two"}',
        "d.jpg": contents[3],
        "d.json": '{"text": "three"}',
        "d.mask.png": contents[4],  # another picture of the photo d, as WebDataset has it
        "d.boxes.json": "[1]",
        "d.cls": "3",
        "._d.jpg": b"of another system",
        "README.md": "about",
    }
    put_tar(tmp_path / "train-0.tar", members)
    photos = open_dataset(tmp_path)
    assert summary(photos) == [
        ("v1.2_b", "train", ("one",)),
        ("v1.2_c", "train", ()),
        ("x.y/z.0.5", "train", ("two",)),
        ("d", "train", ("three",)),
    ]
    assert [photo.read() for photo in photos] == contents[:4]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'train-0.tar'}: 4 files left out") and "d.cls" in message


def test_a_dotted_name_beside_its_first_part(tmp_path: Path) -> None:
    members = {"v1.jpg": picture(), "v1.2.jpg": picture(), "v1.2.txt": "a dog", "v1.3.jpg": picture()}
    put_tar(tmp_path / "a.tar", members)
    assert [(photo.id, photo.captions) for photo in open_dataset(tmp_path)] == [("v1", ()), ("v1.2", ("a dog",))]


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "gif", "bmp", "tiff", "heic", "avif"])
def test_pictures_of_every_suffix(tmp_path: Path, suffix: str) -> None:
    put_tar(tmp_path / "a.tar", {f"a.{suffix}": picture(), "a.txt": "one"})
    assert summary(open_dataset(tmp_path)) == [("a", "train", ("one",))]


@pytest.mark.parametrize("field", ["caption", "captions", "text", "Text", "description", "sentences"])
def test_fields_of_captions(tmp_path: Path, field: str) -> None:
    put_tar(tmp_path / "a.tar", {"a.jpg": picture(), "a.json": json.dumps({field: "one", "width": 4})})
    (photo,) = open_dataset(tmp_path)
    assert photo.captions == ("one",) and photo.extra == {"width": 4}


def test_keys_that_start_anew_in_each_shard(tmp_path: Path) -> None:
    contents = {name: picture() for name in ("train-0", "train-1", "val-0")}
    for name, content in contents.items():
        put_tar(tmp_path / f"{name}.tar", {"0.jpg": content, "0.txt": name})
    photos = open_dataset(tmp_path)
    assert summary(photos) == [(f"{name}/0", name[:-2], (name,)) for name in contents]
    assert [photo.read() for photo in photos] == [*contents.values()]
    assert [photo.id for photo in open_dataset(tmp_path / "val-0.tar")] == ["0"]
