"""The README's commands, run as written (those that need no data set of the reader's)."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.demo import EXAMPLES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader might stand: a photo, and a folder of them."""
    shutil.copy(EXAMPLES / "dog.jpg", tmp_path / "photo.jpg")
    for name, source in (("owl", "owl-noto"), ("penguin", "penguin-noto"), ("bird", "owl-openmoji")):
        shutil.copy(EXAMPLES / "drawings" / f"{source}.png", tmp_path / f"{name}.png")
    for name, source in (("a", "baseball"), ("b", "cyclist"), ("c", "tennis")):
        shutil.copy(EXAMPLES / f"{source}.jpg", tmp_path / f"{name}.jpg")
    (tmp_path / "holidays").mkdir()
    for name in ("gull", "riders"):
        shutil.copy(EXAMPLES / f"{name}.jpg", tmp_path / "holidays")
    return tmp_path


def commands() -> list[str]:
    block = README.split("## From the shell")[1].split("```sh\n")[1].split("```")[0]
    lines = [line.split(" #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if not re.search(r"DATA|BEST_checkpoint| find ", line)]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "README.ko.md",
        "docs/model-cards/sat.md",
        "docs/model-cards/blip2.md",
        "docs/model-cards/flamingo.md",
        "docs/architecture.md",
        "benchmarks/README.md",
    ],
)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (path.parent / link).exists(), link
    assert not re.search(r"\b(FIGURES|EXAMPLE|TRANSFER|WHERE|TODO)\b", text)


def test_there_are_commands_to_run() -> None:
    assert len(commands()) >= 5


@pytest.mark.parts
@pytest.mark.parametrize("line", commands())
def test_command(line: str, folder: Path) -> None:
    program, *arguments = shlex.split(line)
    assert program == "triptych"
    command = [sys.executable, "-m", program, *arguments]
    typed = "What is in the photo?\n"  # for chat
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, input=typed)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout


@pytest.mark.parts
def test_python(folder: Path) -> None:
    block = README.split("## From Python")[1].split("```python\n")[1].split("```")[0]
    code = block.split('model.caption(["a.jpg"')[0]  # the last line needs a network
    probe = "print()\nprint(answer.text, len(answer.logprobs), answer.evidence.maps.shape)"
    finished = subprocess.run([sys.executable, "-c", code + probe], cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    text, words, *shape = re.fullmatch(r"(.+\.) (\d+) \((\d+), 1, 14, 14\)", finished.stdout.splitlines()[-1]).groups()  # type: ignore[union-attr]
    assert [words] == shape
    assert len(text.split()) == int(words)


@pytest.mark.parts
def test_a_library_is_indexed_and_searched(folder: Path) -> None:
    lines = [line.split(" #")[0].strip() for line in README.splitlines() if re.match("triptych (index|find) ", line)]
    for line in lines:
        program, *arguments = shlex.split(line)
        finished = subprocess.run(
            [sys.executable, "-m", program, *arguments], cwd=folder, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
    assert "riders.jpg" in finished.stdout.splitlines()[0]
    assert (folder / "found.html").exists()
