"""Write docs/cli.md from what ``triptych --help`` and each command's ``--help`` print: ``python docs/generate_cli.py``."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import typer
from typer.testing import CliRunner

from triptych.cli import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

Results go to stdout, progress and errors to stderr. With `--json` a command prints one JSON object per result and nothing else. The exit
code is 0, or 2 for bad input, or 1 for a failure of the program; either way stderr has one line that says what to do. `TRIPTYCH_DEBUG=1`
shows where a failure arose.

A photo that cannot be read does not stop the others: `caption`, `ask` and `tag` with several photos or a folder, `index`, `find` and
`eval` name it on stderr, leave it out, write all other results, and then exit with 2. So 0 means that no photo was left out. `--strict`,
where a command has it, stops at the first such photo. `train` names such photos, too, but exits with 0 once the model is trained.

This page is generated: `python docs/generate_cli.py`.
"""
TERMINAL = {"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1"}


def commands(group: typer.Typer, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command and of every group with options of its own, in alphabetical order."""
    words = [(*prefix, name) for info in group.registered_commands if (name := info.name or command_name(info))]
    own = group.registered_callback.callback if group.registered_callback else None
    if prefix and own is not None and signature(own).parameters:
        words.append(prefix)
    for info in group.registered_groups:
        if info.typer_instance is not None:
            words += commands(info.typer_instance, (*prefix, str(info.name or info.typer_instance.info.name)))
    return sorted(words)


def command_name(info: typer.models.CommandInfo) -> str:
    return info.callback.__name__.replace("_", "-").strip("-") if info.callback else ""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for words in [(), *commands(app)]:
        result = CliRunner().invoke(app, [*words, "--help"], prog_name="triptych", env=TERMINAL, terminal_width=110)
        assert result.exit_code == 0, result.output
        title = f"## triptych {' '.join(words)}".rstrip()
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"{title}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
