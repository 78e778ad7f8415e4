"""Folders: the walk, the journal, sidecars, outputs, and runs that are killed at any point."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from triptych.cli.folders import FolderOptions, describe_folder
from triptych.errors import InputError, TriptychError
from triptych.folders import (
    Journal,
    PhotoShard,
    count_photos,
    describe_photos,
    on_this_machine,
    parse_shard,
    walk_photos,
    write_output,
)
from triptych.folders.pipeline import AHEAD, PHOTO_BATCH, Description, decoded_batches
from triptych.io.images import decoded_pixels, load_image
from triptych.io.limits import MAX_PIXELS
from triptych.io.locks import only_process
from triptych.tasks import Answer

SETTINGS = {"model": "toy"}


def photo(path: Path, red: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)
    return path


def album(folder: Path, count: int) -> list[str]:
    return [str(photo(folder / f"{n:03}.png", n)) for n in range(count)]


def say_red(photos: Sequence[Image.Image]) -> list[Description]:
    """A model that says how red the first pixel is."""
    return [Description(f"red {image.getpixel((0, 0))[0]}", {"logprob": -1.0}) for image in photos]  # type: ignore[index]


def test_walk_is_sorted_and_follows_links_without_loops(tmp_path: Path) -> None:
    photo(tmp_path / "b.jpg")
    photo(tmp_path / "a" / "deep.PNG")
    photo(tmp_path / ".hidden" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("no photo")
    elsewhere = photo(tmp_path.parent / "elsewhere" / "c.png")
    (tmp_path / "linked").symlink_to(elsewhere.parent)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list(walk_photos([tmp_path])) == [str(tmp_path / "b.jpg")]
    found = [Path(name).relative_to(tmp_path).as_posix() for name in walk_photos([tmp_path], recursive=True)]
    assert found == ["b.jpg", "a/deep.PNG", "linked/c.png"]
    assert count_photos([tmp_path], recursive=True) == 3
    (tmp_path / "clip.mov").touch()
    (tmp_path / "b.jpg.original").touch()
    others: list[str] = []
    assert len(list(walk_photos([tmp_path], True, others))) == 3 and others == ["clip.mov"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--recursive"):
        count_photos([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such file or folder"):
        count_photos([tmp_path / "gone"])
    sources = [tmp_path / "a", tmp_path / "b.jpg", str(tmp_path) + "/./b.jpg", tmp_path]
    found = [Path(name).relative_to(tmp_path).as_posix() for name in walk_photos(sources, recursive=True)]
    assert found == ["a/deep.PNG", "b.jpg", "linked/c.png"] and count_photos(sources, recursive=True) == 3


def test_shards_share_the_photos(tmp_path: Path) -> None:
    """Each photo is in one shard of every count, the same whatever else is in the folder; the shards are of about one size."""
    names = album(tmp_path, 200)
    for count in (1, 2, 3, 7):
        parts = [{name for name in names if PhotoShard(number, count).has(name)} for number in range(1, count + 1)]
        assert set().union(*parts) == set(names) and sum(map(len, parts)) == 200
        assert min(map(len, parts)) > 0.35 * 200 / count
        assert [count_photos([tmp_path], shard=PhotoShard(n, count)) for n in range(1, count + 1)] == [*map(len, parts)]
    assert parse_shard("3/16") == PhotoShard(3, 16)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"):
        with pytest.raises(InputError, match="NUMBER/COUNT"):
            parse_shard(wrong)


def test_every_photo_is_described_and_failures_are_named(tmp_path: Path) -> None:
    names = album(tmp_path, 2 * PHOTO_BATCH + 3)
    Path(names[4]).write_bytes(b"not a picture")
    journal = Journal(tmp_path / "out.jsonl", SETTINGS)
    done: list[int] = []
    summary = describe_photos(names, on_this_machine(say_red), journal=journal, progress=done.append)
    records = list(journal.records())
    assert [record["image"] for record in records] == names
    assert [record.get("caption") for record in records] == [None if n == 4 else f"red {n}" for n in range(len(names))]
    assert "error" in records[4] and records[0]["model"] == "toy"
    assert (summary.described, summary.failed, sum(done)) == (len(names) - 1, 1, len(names))
    assert names[4] in summary.failures[0][1]
    strict, results = Journal(tmp_path / "strict.jsonl", SETTINGS), list[str]()
    with pytest.raises(InputError, match=r"004\.png"):
        describe_photos(
            names, on_this_machine(say_red), journal=strict, strict=True, result=lambda r: results.append(r["image"])
        )
    assert [record["image"] for record in strict.records()] == results == names[:5]


def test_a_later_run_continues_and_tries_failures_again(tmp_path: Path) -> None:
    names = album(tmp_path, PHOTO_BATCH + 2)
    Path(names[1]).write_bytes(b"not yet a picture")
    out = tmp_path / "out.jsonl"
    describe_photos(names[:5], on_this_machine(say_red), journal=Journal(out, SETTINGS))
    with out.open("ab") as file:
        file.write(b'{"image": "cut off by a ki')
    photo(Path(names[1]), 1)
    described: list[int] = []

    def counting(photos: Sequence[Image.Image]) -> list[Description]:
        described.append(len(photos))
        return say_red(photos)

    summary = describe_photos(names, on_this_machine(counting), journal=(journal := Journal(out, SETTINGS)))
    assert (sum(described), summary.skipped) == (len(names) - 4, 4)
    assert sorted(record["image"] for record in journal.records()) == names
    assert not any("error" in record for record in journal.records())


def test_a_journal_of_other_settings_or_another_file_is_refused(tmp_path: Path) -> None:
    names = album(tmp_path, 2)
    out = tmp_path / "out.jsonl"
    describe_photos(names, on_this_machine(say_red), journal=Journal(out, SETTINGS))
    before = out.read_bytes()
    with pytest.raises(InputError, match="with model 'toy', and this run is with model 'other'"):
        Journal(out, {"model": "other"})
    with pytest.raises(InputError, match="without beams, and this run is with beams 2"):
        Journal(out, SETTINGS | {"beams": 2})
    with pytest.raises(InputError, match="with model 'toy', and this run is without model"):
        Journal(out, {})
    assert out.read_bytes() == before
    assert len(Journal(out, {"model": "other"}, replacing={"run": 1})) == 0
    mine = tmp_path / "mine.jsonl"
    for line in ('{"my": "data"}', '{"image": 5}', '["image"]', "5", "shopping list", '{"my": "da'):
        for content in (f"{line}\n", line):
            mine.write_text(content)
            with pytest.raises(InputError, match="line 1: not a result of an earlier run"):
                Journal(mine, SETTINGS)
            assert mine.read_text() == content
    mine.write_text('{"image": "a.jpg", "caption": "mine"}')
    with pytest.raises(InputError, match="without model, and this run is with model 'toy'"):
        Journal(mine, SETTINGS)
    assert mine.read_text() == '{"image": "a.jpg", "caption": "mine"}'
    with pytest.raises(InputError, match="no folder"):
        Journal(tmp_path / "gone" / "out.jsonl", SETTINGS)


def test_an_interrupted_record_is_cut_off_and_a_whole_one_is_kept(tmp_path: Path) -> None:
    """Wherever the writing of the last record stopped, and if only the line feed is missing."""
    out = tmp_path / "out.jsonl"
    first, last = (f'{{"image": "{name}.jpg", "caption": "a cat", "model": "toy"}}' for name in "ab")
    for length in range(len(last) + 1):
        out.write_text(f"{first}\n{last[:length]}")
        Journal(out, SETTINGS)
        assert out.read_text() == (f"{first}\n{last}\n" if length == len(last) else f"{first}\n")


def test_one_run_at_a_time_writes_to_a_journal(tmp_path: Path) -> None:
    names = album(tmp_path / "album", 3)
    options = FolderOptions(out=tmp_path / "out.csv")

    def describe() -> None:
        describe_folder([str(tmp_path / "album")], lambda: say_red, SETTINGS, options)

    with only_process(tmp_path / "out.csv.jsonl", ""), pytest.raises(TriptychError, match="another run is writing"):
        describe()
    describe()
    assert len((tmp_path / "out.csv.jsonl").read_text().splitlines()) == len(names)
    assert {path.name for path in tmp_path.iterdir()} == {"album", "out.csv", "out.csv.jsonl"}
    with only_process(tmp_path / "gone" / "out.jsonl", ""):
        assert not (tmp_path / "gone").exists()


def test_few_photos_are_decoded_ahead(tmp_path: Path) -> None:
    taken = 0

    def names() -> object:
        nonlocal taken
        for name in album(tmp_path, 10 * PHOTO_BATCH):
            taken += 1
            yield name

    batches = decoded_batches(names())  # type: ignore[arg-type]
    next(batches)
    assert taken <= (AHEAD + 2) * PHOTO_BATCH + 1


def test_few_pixels_are_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are those of many small photos, or of few large ones."""
    monkeypatch.setattr("triptych.folders.pipeline.BATCH_PIXELS", 640)
    sides, decoded = (8, 8, 16, 24, 24, 40, 8, 8), list[str]()
    names = [str(tmp_path / f"{n}.png") for n in range(len(sides))]
    for name, side in zip(names, sides, strict=True):
        Image.new("RGB", (side, side)).save(name)

    def decode(name: str) -> Image.Image:
        decoded.append(name)
        return load_image(name)

    monkeypatch.setattr("triptych.folders.pipeline.decode_photo", decode)
    sizes = []
    for batch in decoded_batches(iter(names)):
        sizes.append([photo.width for _, photo in batch if isinstance(photo, Image.Image)])
        ahead = [sides[names.index(name)] ** 2 for name in decoded[sum(map(len, sizes)) :]]
        assert sum(ahead) <= max(640, *ahead, 0)
    assert sizes == [[8, 8, 16], [24], [24], [40], [8, 8]]
    jpeg = tmp_path / "large.jpg"
    Image.new("RGB", (4096, 2048)).save(jpeg)
    assert decoded_pixels(str(jpeg)) == 8 * decoded_pixels(str(jpeg), 512) * 0.5 == 4096 * 2048
    assert decoded_pixels(str(tmp_path / "gone.jpg")) == decoded_pixels(str(tmp_path)) == MAX_PIXELS


@pytest.mark.parametrize("suffix", ["csv", "parquet", "html"])
def test_outputs(tmp_path: Path, suffix: str) -> None:
    records = [
        {"image": str(tmp_path / "a&b.png"), "caption": 'a "red" <photo>', "logprob": -9.0, "model": "toy"},
        {"image": str(tmp_path / "c.png"), "error": "c.png: not a picture"},
    ]
    out = tmp_path / f"out.{suffix}"
    write_output(out, lambda: iter(records))
    if suffix == "csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["caption"] for row in rows] == ['a "red" <photo>', ""] and rows[1]["error"] == records[1]["error"]
    elif suffix == "parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(out).to_pylist()
        assert table[0]["caption"] == records[0]["caption"] and table[0]["logprob"] == -9.0
        assert table[1]["caption"] is None
    else:
        page = out.read_text()
        assert 'alt="a &#34;red&#34; &lt;photo&gt;"' in page and 'src="a%26b.png"' in page
        assert page.count("<strong>review") == 1 and "not a picture" in page
        assert "2 photos, 1 to review, 1 not read" in " ".join(page.split())
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


class Toy:
    """A captioner and answerer for the command line."""

    def search(self, **settings: object) -> None: ...

    def caption(self, photos: Sequence[Image.Image], **settings: object) -> list[Answer]:
        return [Answer(text, "toy", -1.0, (), ()) for text, *_ in say_red(photos)]

    def ask(
        self, photos: Sequence[list[Image.Image]], questions: Sequence[str], choices: object = None
    ) -> list[Answer]:
        return [
            Answer(f"{q} {red}", "toy", -1.0, (), ())
            for ((red, *_),), q in zip(map(say_red, photos), questions, strict=True)
        ]


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    from triptych.cli import main

    monkeypatch.setattr("triptych.tasks.load", lambda *_, **__: Toy())
    monkeypatch.setattr("triptych.tasks.load_answerer", lambda *_, **__: Toy())
    monkeypatch.setattr(sys, "argv", ["triptych", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    album(tmp_path / "a", 3)
    album(tmp_path / "a" / "b", 1)
    folder, out = str(tmp_path / "a"), tmp_path / "out.jsonl"
    code, printed, said = run(capsys, monkeypatch, "caption", folder, "--json")
    records = [json.loads(line) for line in printed.splitlines()]
    assert code == 0, said
    assert [record["caption"] for record in records] == ["red 0", "red 1", "red 2"]
    assert set(records[0]) == {"image", "model", "caption", "logprob", "seconds"}
    code, printed, said = run(capsys, monkeypatch, "caption", folder, "--out", str(out), "--sidecar", "txt", "-r")
    assert (code, printed) == (0, "") and "4 described" in said and len(out.read_text().splitlines()) == 4
    assert (tmp_path / "a" / "b" / "000.txt").read_text() == "red 0\n"
    code, _, said = run(capsys, monkeypatch, "caption", folder, "--out", str(out), "-r")
    assert code == 0 and "0 described, 4 done before" in said
    shards = [tmp_path / f"part-{n}.jsonl" for n in (1, 2)]
    for n, part in enumerate(shards, 1):
        assert run(capsys, monkeypatch, "caption", folder, "-r", "--shard", f"{n}/2", "--out", str(part))[0] == 0
    lines = [json.loads(line)["image"] for part in shards for line in part.read_text().splitlines()]
    assert sorted(lines) == sorted(walk_photos([folder], recursive=True))
    (tmp_path / "a" / "003.png").write_bytes(b"no picture")
    code, _, said = run(capsys, monkeypatch, "caption", folder, "--out", str(out), "--strict")
    assert code == 2 and "003.png" in said
    assert run(capsys, monkeypatch, "caption", folder, "--out", str(out), "--explain", str(tmp_path))[0] == 2
    assert run(capsys, monkeypatch, "caption", folder, "--out", str(tmp_path / "out.pdf"))[0] == 2


def test_answers_have_a_field_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the results of an earlier version, which called them captions."""
    names = album(tmp_path / "a", 3)
    ask, answers = ("ask", str(tmp_path / "a"), "-q", "How?"), tmp_path / "answers.csv"
    old = {"image": names[0], "caption": "early", "logprob": -1.0, "seconds": 0.1, "model": "blip2", "question": "How?"}
    journal = tmp_path / "answers.csv.jsonl"
    journal.write_text(json.dumps(old) + "\n")
    code, _, said = run(capsys, monkeypatch, *ask, "--out", str(answers), "--sidecar", "json", "--sidecar", "txt")
    assert code == 0 and "2 described, 1 done before" in said
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["answer"] for record in records] == ["early", "How? red 1", "How? red 2"]
    assert not any("caption" in record for record in records)
    with answers.open(newline="") as file:
        assert next((row["answer"], row["caption"]) for row in csv.DictReader(file)) == ("early", "")
    assert json.loads((tmp_path / "a" / "001.json").read_text())["answer"] == "How? red 1"
    assert (tmp_path / "a" / "000.txt").read_text() == "early\n"
    page = tmp_path / "page.html"
    assert run(capsys, monkeypatch, *ask, "--out", str(page))[0] == 0 and 'alt="How? red 2"' in page.read_text()
    code, printed, _ = run(capsys, monkeypatch, *ask, "--json")
    assert code == 0 and [json.loads(line)["answer"] for line in printed.splitlines()][2] == "How? red 2"
