"""The shipped models on both engines: the same texts, answers and matches, and no torch on the fast path."""

from pathlib import Path

import numpy as np
import pytest
from without_torch import run_commands

import triptych
from triptych.data import Photo, open_dataset
from triptych.demo import EXAMPLES

pytestmark = pytest.mark.parts
DOG = EXAMPLES / "dog.jpg"


@pytest.fixture(scope="module")
def photos(flickr8k: Path) -> list[Photo]:
    return [photo for photo in open_dataset(flickr8k, "val") if photo.captions][:5]


@pytest.mark.data
@pytest.mark.parametrize("name", ["sat", "flamingo", "blip2"])
def test_captions_of_validation_photos_agree(name: str, photos: list[Photo]) -> None:
    """In fp32 all of them, to the fourth digit; quantised nearly all."""
    pictures = [photo.image() for photo in photos]
    reference = triptych.load(name, device="cpu").caption(pictures)
    exact = triptych.load(name, precision="fp32").caption(pictures)
    quick = triptych.load(name).caption(pictures)
    assert [a.text for a in exact] == [a.text for a in reference]
    np.testing.assert_allclose([a.logprob for a in exact], [a.logprob for a in reference], atol=1e-3)
    same = [(a, b) for a, b in zip(quick, reference, strict=True) if a.text == b.text]
    assert len(same) >= 3
    np.testing.assert_allclose([a.logprob for a, _ in same], [b.logprob for _, b in same], atol=0.5)


def test_commands_need_no_torch() -> None:
    commands = [
        ["caption", str(DOG), "--model", "sat"],
        ["ask", str(DOG), "--question", "What animal is in the photo?"],
        ["compare", str(DOG), str(EXAMPLES / "riders.jpg"), "--question", "Which photo shows a dog?"],
        ["match", "--image", str(DOG), "--text", "a dog"],
        ["chat", str(DOG)],
        ["complete", "--image", str(DOG), "--shot", f"{DOG}=a dax"],
    ]
    load_once = "from functools import cache; from triptych import tasks; tasks.load = cache(tasks.load)"
    for command, ended in zip(commands, run_commands(commands, before=load_once), strict=True):
        assert ended.code == 0 and ended.out.strip(), (command, ended.err)


def test_a_library_is_made_and_searched_without_torch(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").write_bytes(DOG.read_bytes())
    library = str(tmp_path / "library")
    commands = [["index", str(tmp_path / "photos"), "--library", library], ["find", "a dog", "--library", library]]
    assert [ended.code for ended in run_commands(commands)] == [0, 0]


def test_where_flamingo_and_blip2_looked_needs_torch(tmp_path: Path) -> None:
    out = str(tmp_path / "where.html")
    question = ["--question", "What is it?", "--out", out]
    commands = [["explain", str(DOG), "--model", name, *question] for name in ("flamingo", "blip2")]
    line = "triptych: showing where this model looked needs torch: pip install 'triptych[torch]'\n"
    assert run_commands(commands) == [(1, "", line)] * 2


def test_the_demo_needs_no_torch(tmp_path: Path) -> None:
    few = "from triptych import demo; photos = demo.bundled_photos()[:7]; demo.bundled_photos = lambda: photos"
    (ended,) = run_commands([["demo", "--out", str(tmp_path)]], before=few)
    assert ended.code == 0 and "pip install 'triptych[torch]'" in ended.out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("BLIP-2</h3>") > 7 and page.count('class="word"') > 50
