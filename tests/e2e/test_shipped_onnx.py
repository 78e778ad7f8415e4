"""The shipped models on both engines: the same texts, answers and matches, and no torch on the fast path."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from without_torch import Ended, run_commands

import triptych
from triptych.data import Photo, open_dataset
from triptych.demo import EXAMPLES

pytestmark = pytest.mark.parts
DOG = EXAMPLES / "dog.jpg"
DEMO_PHOTOS = ("baseball.jpg", "dog.jpg")


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


LOAD_ONCE = """
from functools import cache
from triptych import tasks
load = cache(tasks.load)
tasks.load = lambda model="sat", device=None, precision=None: load(model, device, precision)
"""
FEW_PHOTOS = """
from triptych import demo
photos = demo.bundled_photos()
demo.bundled_photos = lambda: [photo for photo in photos if photo["file"] in {FILES}]
demo.QUESTIONS, demo.PAIRS, demo.CHAT_QUESTIONS = demo.QUESTIONS[1:], demo.PAIRS[:1], demo.CHAT_QUESTIONS[:1]
demo.GROUPS = (({FILES}, demo.GROUPS[1][1]),)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without-torch")
    (folder / "photos").mkdir()
    shutil.copy(DOG, folder / "photos")
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Ended]:
    """How commands end in one process without torch, which loads each model once."""
    library, out = str(folder / "library"), str(folder / "where.html")
    commands = {
        "caption": ["caption", str(DOG), "--model", "sat"],
        "ask": ["ask", str(DOG), "--question", "What animal is in the photo?"],
        "compare": ["compare", str(DOG), str(EXAMPLES / "riders.jpg"), "--question", "Which photo shows a dog?"],
        "match": ["match", "--image", str(DOG), "--text", "a dog"],
        "chat": ["chat", str(DOG)],
        "complete": ["complete", "--image", str(DOG), "--shot", f"{DOG}=a dax"],
        "index": ["index", str(folder / "photos"), "--library", library],
        "find": ["find", "a dog", "--library", library],
        **{
            f"explain {name}": ["explain", str(DOG), "--model", name, "--question", "What is it?", "--out", out]
            for name in ("flamingo", "blip2")
        },
        "demo": ["demo", "--out", str(folder / "demo")],
    }
    few_photos = FEW_PHOTOS.replace("{FILES}", repr(DEMO_PHOTOS))
    results = run_commands(list(commands.values()), before=LOAD_ONCE + few_photos)
    return dict(zip(commands, results, strict=True))


@pytest.mark.parametrize("command", ["caption", "ask", "compare", "match", "chat", "complete", "index", "find"])
def test_a_command_needs_no_torch(command: str, ended: dict[str, Ended]) -> None:
    assert ended[command].code == 0 and ended[command].out.strip(), ended[command].err


@pytest.mark.parametrize("name", ["flamingo", "blip2"])
def test_where_flamingo_and_blip2_looked_needs_torch(name: str, ended: dict[str, Ended]) -> None:
    line = "triptych: showing where this model looked needs torch: pip install 'triptych[torch]'\n"
    assert ended[f"explain {name}"] == (1, "", line)


def test_the_demo_needs_no_torch(folder: Path, ended: dict[str, Ended]) -> None:
    assert ended["demo"].code == 0 and "pip install 'triptych[torch]'" in ended["demo"].out
    page = (folder / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("BLIP-2</h3>") > len(DEMO_PHOTOS) and page.count('class="word"') > 10
