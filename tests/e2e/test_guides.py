"""The commands and the Python of the documentation, run as they are written, in the folder of the bundled photos.

A block fenced as ``sh`` or ``python`` runs; one fenced as ``bash`` needs files of the reader's and does not. A block fenced as ``text``
behind it is what it prints, but for the digits of its scores.
"""

import contextlib
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

import triptych
from triptych import tasks
from triptych.cli import app
from triptych.demo import EXAMPLES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["quick-start.md", "lecture.md", *sorted(f"guides/{path.name}" for path in (DOCS / "guides").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.parts


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, text, output or "") of the blocks that run; a command that is broken over several lines is one line."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        (language, re.sub(r"\\\n\s*", "", block) if language == "sh" else block, output)
        for language, block, output in BLOCK.findall(text)
    ]


@pytest.fixture(scope="module")
def load_once() -> Iterator[None]:
    """Each model is loaded once for all pages."""
    load = tasks.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "load", cache(load))
        yield


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder)
    monkeypatch.chdir(folder)
    return folder


def run(line: str) -> str:
    """What one command prints; text that is piped into it is typed."""
    before, _, command = line.rpartition(" | ")
    typed = re.sub(r"\\n", "\n", shlex.split(before)[1]) if before else None
    program, *arguments = shlex.split(command, comments=True)
    assert program == "triptych"
    result = CliRunner().invoke(app, arguments, input=typed, catch_exceptions=False)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.stdout


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page: str, photos: Path, load_once: None) -> None:
    names: dict[str, object] = {}  # the Python blocks of a page go on from one another
    for language, text, output in blocks(page):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if language == "python":
                exec(compile(text, page, "exec"), names)
            else:
                print("".join(map(run, text.splitlines())), end="")
        if output:
            assert without_digits(out.getvalue().replace(str(photos), "/photos")) == without_digits(output)


def without_digits(text: str) -> str:
    """A text whose scores have no digits and whose recipes are left out: those depend on the processor, and these are long."""
    lines = (re.sub(r'"recipe": {.*}}', '"recipe": {...}', line) for line in text.splitlines())
    return "\n".join(re.sub(r"\d+\.\d+", "#", line) for line in lines)


def test_the_names_of_the_lecture_are_bound(photos: Path, load_once: None) -> None:
    """Made-up names, taken from one example of each: the claim that the page makes."""
    flamingo = triptych.load("flamingo", device="cpu")
    drawings = photos / "drawings"
    shots = [(drawings / "horse-noto.png", "a dax"), (drawings / "owl-noto.png", "a blicket")]
    answer = flamingo.complete(drawings / "horse-openmoji.png", shots, "This is", ["a dax", "a blicket"])
    assert answer.text == "a dax"
