"""One data set in every format, split at random into files, columns and ids: the same photos come back."""

import csv
import io
import json
import random
from pathlib import Path

import pytest
from datasets_on_disk import lines, put, put_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data import open_dataset

captions = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6)
    .map(str.strip)
    .filter(lambda text: text and text[0] not in "[\"'"),
    min_size=1,
    max_size=3,
)
photos = st.lists(st.tuples(st.sampled_from(["train", "val", "test"]), captions), min_size=1, max_size=7)
Photos = list[tuple[str, list[str]]]


def content(i: int) -> bytes:
    return b"photo %d" % i


def write_table(folder: Path, given: Photos, rng: random.Random) -> None:
    """CSV or JSON lines: a row for each caption or for each photo, splits as folders or a column, numbers or none."""
    own_files, per_caption = rng.random() < 0.5, rng.random() < 0.6
    number, ids = rng.choice(["", "comment_number", "index", None]), rng.random() < 0.5
    kind = rng.choice(["csv", "jsonl"])
    tables: dict[Path, list[dict[str, object]]] = {}
    for i, (split, texts) in enumerate(given):
        place = folder / split if own_files else folder
        put(place / f"{i}.jpg", content(i))
        row: dict[str, object] = {"file_name": f"{i}.jpg"}
        row |= {} if own_files else {"split": split}
        row |= {"id": i if not own_files else sum(s == split for s, _ in given[:i])} if ids else {}
        rows = [row | {"caption": text} for text in texts] if per_caption else [row | {"captions": texts}]
        table = tables.setdefault(place / f"metadata.{kind}", [])
        for n, line in enumerate(rows):
            table.append(
                ({number: n if number == "comment_number" else len(table)} if number is not None else {}) | line
            )
    for path, table in tables.items():
        if kind == "jsonl":
            put(path, lines(*table))
            continue
        file = io.StringIO()
        writer = csv.DictWriter(
            file, [*table[0]], delimiter=rng.choice(",;\t"), lineterminator=rng.choice(["\n", "\r\n"])
        )
        writer.writeheader()
        for row in table:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
        put(path, file.getvalue())


def write_coco(folder: Path, given: Photos, rng: random.Random) -> None:
    restart = rng.random() < 0.5
    for split in {split for split, _ in given}:
        own = [(i, texts) for i, (other, texts) in enumerate(given) if other == split]
        for i, _ in own:
            put(folder / f"{split}2014" / f"{i}.jpg", content(i))
        numbers = {i: n if restart else i for n, (i, _) in enumerate(own)}
        record = {
            "images": [{"id": numbers[i], "file_name": f"{i}.jpg"} for i, _ in own],
            "annotations": [{"image_id": numbers[i], "caption": text} for i, texts in own for text in texts],
        }
        put(folder / rng.choice(["annotations", "."]) / f"captions_{split}2014.json", json.dumps(record))
    files = [*folder.glob("captions_*"), *folder.glob("annotations/captions_*")]
    for file in files:  # one place for all
        put(folder / "annotations" / file.name, file.read_bytes())
    for file in folder.glob("captions_*"):
        file.unlink()


def write_karpathy(folder: Path, given: Photos, rng: random.Random) -> None:
    images, names, counts = [], rng.choice(["plain", "folders"]), dict.fromkeys(("train", "val", "test"), 0)
    for i, (split, texts) in enumerate(given):
        name = f"{i}.jpg" if names == "plain" else f"{counts[split]}.jpg"
        counts[split] += 1
        place = "." if names == "plain" else split
        put(folder / place / name, content(i))
        sentences = [{"tokens": [text]} if rng.random() < 0.5 else {"raw": text, "tokens": []} for text in texts]
        images.append({"filename": name, "filepath": place, "split": split, "sentences": sentences})
    put(folder / "dataset_any.json", json.dumps({"images": images}))


def write_shards(folder: Path, given: Photos, rng: random.Random) -> None:
    restart = rng.random() < 0.5
    members: dict[str, dict[str, bytes | str]] = {}
    for i, (split, texts) in enumerate(given):
        shard = members.setdefault(f"{split}-{rng.randrange(2):05}-of-00002.tar", {})
        key = f"{len(shard) // 2}" if restart else rng.choice([f"v1.{i}", f"a/{i}", f"{i}"])
        shard[f"{key}.{rng.choice(['jpg', 'PNG', 'jfif'])}"] = content(i)
        if rng.random() < 0.5:
            shard[f"{key}.txt"] = "\n".join(texts)
        else:
            shard[f"{key}.json"] = json.dumps({rng.choice(["captions", "text"]): texts})
    for name, files in members.items():
        put_tar(folder / name, files)


def write_list(folder: Path, given: Photos, rng: random.Random) -> None:
    several = rng.random() < 0.5
    items: dict[str, list[dict[str, object]]] = {}
    for i, (split, texts) in enumerate(given):
        put(folder / "images" / f"{i}.jpg", content(i))
        rows: list[dict[str, object]] = [{"caption": text} for text in texts] if several else [{"caption": texts}]
        items.setdefault(split, []).extend({"image": f"{i}.jpg", "image_id": i} | row for row in rows)
    for split, rows in items.items():
        put(folder / f"set_{split}.json", json.dumps(rows))


@pytest.mark.parametrize("write", [write_table, write_coco, write_karpathy, write_shards, write_list])
@settings(max_examples=25, deadline=None)
@given(given=photos, seed=st.integers(0, 10**6))
def test_the_same_photos_come_back(
    tmp_path_factory: pytest.TempPathFactory, write: object, given: Photos, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    write(folder, given, random.Random(seed))  # type: ignore[operator]
    found = open_dataset(folder)
    assert {photo.read(): (photo.split, [*photo.captions]) for photo in found} == {
        content(i): (split, texts) for i, (split, texts) in enumerate(given)
    }
    assert len({photo.id for photo in found}) == len(given)
    for split in {split for split, _ in given}:
        assert open_dataset(folder, split) == [photo for photo in found if photo.split == split]
