"""A folder of photos with metadata, and what must be refused in it."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import fuzz, lines, picture, put, put_tar, refused, summary
from hypothesis import given
from hypothesis import strategies as st

from triptych.data import open_dataset
from triptych.errors import InputError


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
    "name", ["../secret.jpg", "/etc/hostname", "sub/../../secret.jpg", "linked/../secret.jpg", "a\0b", "."]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret.jpg")
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
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


# Tables as people have them


@pytest.mark.parametrize(
    "header",
    [
        "file_name,caption",
        "file_name, caption",
        "File_Name,Caption",
        " FILE NAME ,\tCAPTION",
        "filename,description",
        "image,sentence",
        "image_name,comment",
        "file_path,raw",
        "file-name,alt text",
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_names_of_columns(tmp_path: Path, header: str, delimiter: str) -> None:
    if delimiter == "\t" and "\t" in header:
        return
    put(tmp_path / "a.jpg")
    rows = [header.replace(",", delimiter), f'a.jpg{delimiter} "a dog, running"', f"a.jpg{delimiter} a pup"]
    put(tmp_path / "metadata.csv", "\r\n".join(rows))
    assert summary(open_dataset(tmp_path)) == [("a.jpg", "train", ("a dog, running", "a pup"))]
    first, second = (name.strip() for name in header.split(","))
    put(tmp_path / "b" / "metadata.jsonl", lines({f" {first}": "a.jpg", second.upper(): "a dog"}))
    put(tmp_path / "b" / "a.jpg")
    assert summary(open_dataset(tmp_path / "b")) == [("a.jpg", "train", ("a dog",))]


@pytest.mark.parametrize("listed", ['["a cat", "a tom"]', "['a cat', 'a tom']", "['a cat', \"a tom\"]"])
@pytest.mark.parametrize("column", ["captions", "caption", "raw"])
def test_lists_in_cells(tmp_path: Path, listed: str, column: str) -> None:
    put(tmp_path / "a.jpg")
    cell = listed.replace('"', '""')
    put(tmp_path / "metadata.csv", f'file_name,{column}\na.jpg,"{cell}"\n')
    assert open_dataset(tmp_path)[0].captions == ("a cat", "a tom")


def test_a_caption_in_brackets_is_no_list(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "metadata.csv", "file_name,caption\na.jpg,[blurred] a cat\n")
    assert open_dataset(tmp_path)[0].captions == ("[blurred] a cat",)


@pytest.mark.parametrize("column", ["Beschreibung", "what_is_seen"])
def test_a_column_of_captions_that_is_not_known_is_named(tmp_path: Path, column: str) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "metadata.csv", f"file_name,{column}\na.jpg,a dog\n")
    refused(tmp_path, "line 2", f"file_name, {column}", "known are captions, caption, ")
    (tmp_path / "metadata.csv").unlink()
    put(tmp_path / "metadata.jsonl", lines({"file_name": "a.jpg", column: "a dog"}))
    refused(tmp_path, "line 1", f"file_name, {column}", "description")


def test_what_is_no_text_needs_no_captions(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    vqa = [{"question": "Is it a dog?", "answer": "no"}]
    rows = {"file_name": "a.jpg", "width": 4, "label": "cat"}, {"file_name": "a.jpg", "vqa": vqa, "by": "J. Doe"}
    for row in rows:
        put(tmp_path / "metadata.jsonl", lines(row))
        assert open_dataset(tmp_path)[0].captions == ()


@pytest.mark.parametrize(
    ("column", "numbers"),
    [
        ("", ["0", "1", "2"]),
        ("Unnamed: 0", ["0", "1", "2"]),
        ("comment_number", [" 0", " 1", "0"]),
        ("caption_id", ["17", "23", "5"]),
        ("sentid", ["0.0", "1.0", "2.0"]),
        ("id", ["1", "2", "3"]),
        ("caption_ref", ["a.jpg#0", "a.jpg#1", "b.jpg#0"]),
        ("id", ["a.jpg#0", "a.jpg#1", "b.jpg#0"]),
        ("ID", ["0", "1", "0"]),
    ],
)
def test_columns_that_number_rows_or_captions(tmp_path: Path, column: str, numbers: list[str]) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    files, captions = ["a.jpg", "a.jpg", "b.jpg"], ["one", "two", "three"]
    expected = [("a.jpg", "train", ("one", "two")), ("b.jpg", "train", ("three",))]
    rows = [",".join(row) for row in zip(numbers, files, captions, strict=True)]
    put(tmp_path / "metadata.csv", "\n".join([f"{column},file_name,caption", *rows]))
    photos = open_dataset(tmp_path)
    assert summary(photos) == expected
    assert photos[0].extra == {}
    (tmp_path / "metadata.csv").unlink()
    texts = zip(numbers, files, captions, strict=True)
    put(tmp_path / "metadata.jsonl", lines(*({column: n.strip(), "file_name": f, "text": c} for n, f, c in texts)))
    assert summary(open_dataset(tmp_path)) == expected


def test_columns_that_say_something_else_must_agree(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "metadata.csv", "file_name,caption,place\na.jpg,one,here\na.jpg,two,there\n")
    refused(tmp_path, "line 3", "a.jpg", "place")
    put(tmp_path / "metadata.csv", "file_name,caption,rating\na.jpg,one,4\na.jpg,two,4\n")
    assert open_dataset(tmp_path)[0].extra == {"rating": "4"}


@pytest.mark.parametrize("names", [("caption_1", "caption_2"), ("caption1", "caption2"), ("Text 0", "Text 1")])
def test_a_column_for_each_caption(tmp_path: Path, names: tuple[str, str]) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    put(tmp_path / "metadata.csv", f"file_name,{','.join(names)}\na.jpg,a dog,a pup\nb.jpg,,a cat\n")
    assert [photo.captions for photo in open_dataset(tmp_path)] == [("a dog", "a pup"), ("a cat",)]


@pytest.mark.parametrize(
    ("name", "header", "folder"),
    [
        ("captions.txt", "image,caption", "Images"),
        ("results.csv", "image_name| comment_number| comment", "flickr30k_images"),
        ("Metadata.CSV", "file_name,caption", "."),
        ("metadata.tsv", "file_name\tcaption", "images"),
        ("captions.csv", "filename;text", "."),
    ],
)
def test_tables_of_other_names(tmp_path: Path, name: str, header: str, folder: str) -> None:
    content = put(tmp_path / folder / "a.jpg")
    cells = ["a.jpg", *(["0"] if "number" in header else []), "a dog"]
    put(tmp_path / name, header + "\n" + next(d for d in "|;\t," if d in header).join(cells) + "\n")
    for place in (tmp_path, tmp_path / name):
        (photo,) = open_dataset(place)
        assert photo.captions == ("a dog",) and photo.read() == content


def test_tables_that_name_no_files_are_left_alone(tmp_path: Path) -> None:
    put_tar(tmp_path / "train-0.tar", {"a.jpg": picture()})
    put(tmp_path / "captions.txt", "a dog\na cat\n")
    put(tmp_path / "results.csv", "model,score\nx,1\n")
    put(tmp_path / "captions.jsonl", "{}\n")
    assert [photo.id for photo in open_dataset(tmp_path)] == ["a"]


def test_metadata_may_be_named_themselves(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "metadata.csv", "file_name,caption\na.jpg,one\n")
    assert open_dataset(tmp_path / "metadata.csv") == open_dataset(tmp_path)
