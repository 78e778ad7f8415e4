"""The application and its kinds of commands: the order of the commands in the help, ``--version``, and no empty values."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from triptych.errors import InputError

COMMAND_ORDER = (
    *("caption", "ask", "compare", "match", "tag", "explain", "complete", "chat", "index", "find", "serve", "mcp"),
    *("demo", "info", "train", "eval", "convert", "export", "average", "push", "cache"),
)
MAY_BE_EMPTY = ("prompt", "prefix", "suffix")


class Command(TyperCommand):
    """A command that takes no empty values, except as texts: an empty path would be the folder in which it runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises InputError: a value is empty."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            values = given.get(str(parameter.name))
            if "" in (values if isinstance(values, list | tuple) else [values]) and parameter.name not in MAY_BE_EMPTY:
                option = max(parameter.opts, key=len)
                name = option if option.startswith("-") else (parameter.metavar or option).strip("[].")
                raise InputError(f"{name} is empty: give a value (a variable of the shell may not be set)")
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands; its name alone prints its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


class Commands(Group):
    """All commands, the most used first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMAND_ORDER.index)


class Application(typer.Typer):
    """A Typer whose commands are ``Command`` and whose group is ``Group``, or the one that is given as ``cls``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"cls": Group} | settings))

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=Command, **settings)


app = Application(
    name="triptych",
    cls=Commands,
    help="Show, Attend and Tell, Flamingo and BLIP-2: caption, question, compare, match and search photos offline, "
    "and see where the model looked.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"triptych {version('triptych')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """The options of all commands."""
