"""Examples from a folder, picked by their pictures: the most similar last, the picture itself never."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import Result, run  # noqa: F401  (a fixture)
from test_evaluate_fewshot import Seer, data_set
from tiny_flamingo import flamingo_tasks

from triptych.data import open_dataset
from triptych.data.examples import read_examples
from triptych.errors import InputError
from triptych.evaluate.captioning import captions_by_nearest, example_index
from triptych.evaluate.fewshot import fewshot_metrics
from triptych.tasks.answer import Answer
from triptych.tasks.examples import ExampleIndex

Run = Callable[..., Result]


def shade(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, 255 - level, 0))


class Eye:
    """Features are the mean colour."""

    name = "eye"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def pooled(self, images: Sequence[Any]) -> Any:
        self.batches.append(len(images))
        return np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images])


def test_the_nearest_come_last_and_few_pictures_are_in_memory() -> None:
    eye, done = Eye(), list[int]()
    examples = [(partial(shade, level), str(level)) for level in range(0, 200, 10)]
    index = ExampleIndex(eye, examples, done.append)  # type: ignore[arg-type]
    assert [text for _, text in index.nearest(shade(52), 3)] in (["40", "60", "50"], ["60", "40", "50"])
    assert max(eye.batches) <= 8 and sum(done) == 20
    for count in (0, 21):
        with pytest.raises(InputError, match="of 20"):
            index.nearest(shade(52), count)
    with pytest.raises(InputError, match="no examples"):
        ExampleIndex(eye, [])  # type: ignore[arg-type]


def test_examples_are_text_files_beside_photos_or_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b", "a", "c"):
        shade(10).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a dax\n in  the hall")
    (folder / "b.txt").write_text("a blicket")
    read = read_examples(folder)
    assert [text for _, text in read] == ["a dax in the hall", "a blicket"] and read[0][0]().size == (8, 8)
    (folder / "a.png.txt").write_text("another dax")  # as sidecars of photos that differ only in the suffix are called
    assert [text for _, text in read_examples(folder)] == ["another dax", "a blicket"]
    for content, message in (("  \n", "is empty"), ("x" * (1 << 17), "too large")):
        (folder / "c.txt").write_text(content)
        with pytest.raises(InputError, match=message):
            read_examples(folder)
    (folder / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_examples(folder)

    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for i, split in enumerate(("train", "train", "test")):
        shade(i).save(data / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "caption": f"photo {i}", "split": split})
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [text for _, text in read_examples(data)] == ["photo 0", "photo 1"]  # not what is tested on


def test_complete_takes_the_nearest_of_a_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    tasks = flamingo_tasks(max_positions=1000)
    monkeypatch.setattr("triptych.tasks.load", lambda *_, **__: tasks)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    given: list[list[str]] = []
    complete = tasks.complete

    def watch(image: Any, shots: Any, *others: Any, **settings: Any) -> Answer:
        given.append([text for _, text in shots])
        return complete(image, shots, *others, **settings)

    monkeypatch.setattr(tasks, "complete", watch)
    base = ("complete", "--image", tmp_path / "b.png", "--examples", tmp_path)
    assert run(*base, "--nearest", 1).code == 0 and run(*base, "--json").code == 0
    assert len(given[0]) == 1 and sorted(given[1]) == ["a a", "a c"]  # the picture is no example of itself
    assert given[0][-1] == given[1][-1]
    assert "of 3" not in run(*base, "--nearest", 9).err
    for arguments, reason in (
        (("--shot", f"{tmp_path / 'a.png'}=a dax"), "not with both"),
        (("--similar", 1), "not with both"),
    ):
        refused = run(*base, *arguments)
        assert refused.code == 2 and reason in refused.err
    refused = run("complete", "--image", tmp_path / "b.png", "--nearest", 2)
    assert refused.code == 2 and "--examples" in refused.err


def test_captions_after_the_nearest_examples(tmp_path: Path) -> None:
    rows = []
    for i, (level, split) in enumerate(((0, "train"), (120, "train"), (250, "train"), (10, "test"), (240, "test"))):
        shade(level).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "caption": f"level {level}", "split": split})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))

    class Copier(Eye):
        def caption(self, image: Any, shots: Any, **settings: Any) -> Answer:
            return Answer(shots[-1][1], "eye", 0.0, (), ())

    index = example_index(Copier(), open_dataset(tmp_path, "train"))  # type: ignore[arg-type]
    texts = captions_by_nearest(Copier(), open_dataset(tmp_path, "test"), index, 2, {})  # type: ignore[arg-type]
    assert sorted(texts.values()) == ["level 0", "level 250"]


def test_new_names_with_the_nearest_examples(tmp_path: Path) -> None:
    """Photos of a kind are alike: of the pool, only those of the question's kind are kept, twice the number for each name."""
    photos = [["a man on a beach"] * 3] * 7 + [["a dog in the snow"] * 3] * 7

    class NearSeer(Seer):
        def pooled(self, images: Sequence[Any]) -> Any:
            return np.stack([np.eye(2)[self.kind_of(image)] + 0.01 for image in images])

    seer = NearSeer(lambda i: int(i // 7))
    found = fewshot_metrics(seer, open_dataset(data_set(tmp_path, photos), "test"), "test", [1], 20, 0, nearest=True)
    assert found["nearest"] and found["1 examples"]["made-up names"] == 100
    assert all(len(names) == 1 for names in seer.told[:1]) and seer.asked == 3 * 20
