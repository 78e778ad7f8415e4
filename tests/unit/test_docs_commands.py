"""The commands in the documentation exist, with the options that they are given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from triptych.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = ("cli.md", "lab-notebook.md")  # by a program; of the past
COMMAND = re.compile(r"(?:^|[`\s$])triptych ((?:[a-z0-9]+ ?)+)([^`\n#|]*)", re.MULTILINE)
OPTION = re.compile(r"(?<=\s)--?[a-z][\w-]*")


def options_of(words: list[str]) -> tuple[str, set[str]]:
    """The command that ``words`` begin with, and its options."""
    command, name = typer.main.get_command(app), "triptych"
    while words and (inner := getattr(command, "commands", {}).get(words[0])) is not None:
        command, name, words = inner, f"{name} {words[0]}", words[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return name, options | {"--help"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WRITTEN], ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for words, rest in COMMAND.findall(text):
        name, options = options_of(words.split())
        assert name != "triptych" or rest.startswith("-"), f"triptych {words}"
        unknown = {option for option in OPTION.findall(words + rest) if option not in options}
        assert not unknown, f"{name}: {sorted(unknown)}"
