"""The README's commands and Python, run as written in the folder of the bundled photos."""

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
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    return tmp_path / "examples"


def commands(page: str, heading: str) -> list[tuple[str, str]]:
    """(command, the output that its comment promises) of a section's shell block."""
    block = page.split(heading)[1].split("```sh\n")[1].split("```")[0].replace("\\\n", "")
    return [(line.split(" #")[0].strip(), line.partition(" # ")[2].strip()) for line in block.splitlines()]


def run(arguments: list[str], folder: Path) -> str:
    finished = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_there_are_five_of_each() -> None:
    assert len(commands(README, "## From the shell")) == 5
    assert len(re.findall(r"^(?:sat|flamingo|blip2|\[match)\b(?!,).*$", python_block(), re.MULTILINE)) == 5


def python_block() -> str:
    return README.split("## From Python")[1].split("```python\n")[1].split("```")[0]


@pytest.mark.parts
@pytest.mark.parametrize(("line", "output"), commands(README, "## From the shell"))
def test_command(line: str, output: str, folder: Path) -> None:
    program, *arguments = shlex.split(line)
    assert program == "triptych"
    printed = run(["-m", program, *arguments], folder)
    assert printed.strip() == output if output else printed


@pytest.mark.parts
def test_python(folder: Path) -> None:
    probe = 'print(sat.caption("bmx.jpg", explain=True).evidence.maps.shape[1:])'
    assert run(["-c", f"{python_block()}\n{probe}"], folder).splitlines()[-1] == "(1, 14, 14)"


def test_the_korean_readme_has_the_commands_of_the_english_one() -> None:
    assert [line for line, _ in commands(KOREAN, "## 사용법")] == [
        line for line, _ in commands(README, "## From the shell")
    ]
