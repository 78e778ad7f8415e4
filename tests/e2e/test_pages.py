"""The commands and the Python of the README and the documentation, run as they are written, in the folder of the bundled photos.

A block fenced as ``sh`` or ``python`` runs; one fenced as ``bash`` needs files of the reader's and does not. A block fenced as ``text``
behind it is what it prints, but for the digits of its scores. A command that several pages have runs once.
"""

import contextlib
import io
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.demo import EXAMPLES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")
PAGES = ["quick-start.md", "lecture.md", *sorted(f"guides/{path.name}" for path in (DOCS / "guides").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, text, output or "") of the blocks that run; a command that is broken over several lines is one line."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        (language, one_line_each(block) if language == "sh" else block, output)
        for language, block, output in BLOCK.findall(text)
    ]


def one_line_each(commands: str) -> str:
    return re.sub(r"\\\n\s*", "", commands)


def readme_commands(page: str, heading: str) -> list[tuple[str, str]]:
    """(command, the output that its comment promises) of a section's shell block."""
    block = one_line_each(page.split(heading)[1].split("```sh\n")[1].split("```")[0])
    return [(line.split(" #")[0].strip(), line.partition(" # ")[2].strip()) for line in block.splitlines()]


def readme_python() -> str:
    return README.split("## From Python")[1].split("```python\n")[1].split("```")[0]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder)
    monkeypatch.chdir(folder)
    return folder


@cache  # it prints the same for all pages
def run(line: str) -> str:
    """What one command prints, with ``/photos`` for this folder; text that is piped into it is typed."""
    before, _, command = line.rpartition(" | ")
    typed = re.sub(r"\\n", "\n", shlex.split(before)[1]) if before else None
    program, *arguments = shlex.split(command, comments=True)
    assert program == "triptych"
    result = CliRunner().invoke(app, arguments, input=typed, catch_exceptions=False)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.stdout.replace(str(Path.cwd()), "/photos")


def test_there_are_five_of_each() -> None:
    assert len(readme_commands(README, "## From the shell")) == 5
    assert len(re.findall(r"^(?:sat|flamingo|blip2|\[match)\b(?!,).*$", readme_python(), re.MULTILINE)) == 5


@pytest.mark.parts
@pytest.mark.parametrize(("line", "output"), readme_commands(README, "## From the shell"))
def test_command_of_the_readme(line: str, output: str, photos: Path, load_once: None) -> None:
    printed = run(line)
    assert printed.strip() == output if output else printed


@pytest.mark.parts
def test_python_of_the_readme(photos: Path, load_once: None) -> None:
    probe = 'shape = sat.caption("bmx.jpg", explain=True).evidence.maps.shape[1:]'
    names: dict[str, object] = {}
    exec(compile(f"{readme_python()}\n{probe}", "README.md", "exec"), names)
    assert names["shape"] == (1, 14, 14)


def test_the_korean_readme_has_the_commands_of_the_english_one() -> None:
    assert [line for line, _ in readme_commands(KOREAN, "## 사용법")] == [
        line for line, _ in readme_commands(README, "## From the shell")
    ]


@pytest.mark.parts
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
            assert without_digits(out.getvalue()) == without_digits(output)


def without_digits(text: str) -> str:
    """A text whose scores have no digits and whose recipes are left out: those depend on the processor, and these are long."""
    lines = (re.sub(r'"recipe": {.*}}', '"recipe": {...}', line) for line in text.splitlines())
    return "\n".join(re.sub(r"\d+\.\d+", "#", line) for line in lines)
