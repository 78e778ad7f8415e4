"""The command line. Heavy modules are imported inside the commands, so that ``triptych --help`` is fast.

Results go to stdout (``--json``: one object per line), progress and errors to stderr. Exit codes: 0, 1 = a failure of the program,
2 = bad input, also when only some of the photos could not be read.
"""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOWrapper
from typing import Any

import typer

from triptych.cli import asking, captions, evaluation, library, models, prompting, serve, tagging, training
from triptych.cli.application import app
from triptych.cli.common import complain
from triptych.errors import TriptychError
from triptych.io.files import is_disk_full
from triptych.io.limits import printable

__all__ = [
    "app",
    "asking",
    "captions",
    "evaluation",
    "library",
    "main",
    "models",
    "prompting",
    "serve",
    "tagging",
    "training",
]

UsageError: type[Any] = typer.BadParameter.__mro__[1]  # click's, which newer versions of typer vendor


def open_closed_streams() -> None:
    """Open standard streams that the caller closed (``triptych chat <&-``) on the null device: empty input, dropped output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def usage_message(error: Any) -> str:
    """The line for a wrong command: what is wrong, and the command that prints the help."""
    validation = getattr(error.__cause__, "errors", None)  # pydantic's, behind newer versions of typer
    if validation is None:
        message = str(error.format_message()).rstrip(".")
    else:
        first = validation()[0]
        rule = first["msg"].partition(",")[0].replace("Input should be", "it must be")
        name = error.param.get_error_hint().replace("'", "")
        message = f"{name} is {first['input']!r}: {rule}"
    return message if error.ctx is None else f"{message} (see {error.ctx.command_path} --help)"


def failure_message(error: Exception) -> tuple[str, int]:
    """The line for an error that no command expects, and the exit code."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{printable(error.filename)}: the name is too long for a file", 2
    if isinstance(error, OSError) and is_disk_full(error):
        return "the disk is full", 1
    return f"failed: {type(error).__name__}: {error} (TRIPTYCH_DEBUG=1 shows where)", 1


def main() -> None:
    """The entry point: runs a command and turns every failure into one line and an exit code."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # the terminal's encoding may lack characters of a file's name
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False, prog_name="triptych")
    except typer.Exit as stop:
        code = stop.exit_code
    except UsageError as error:
        complain(Exception(usage_message(error)))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except TriptychError as error:
        complain(error)
        code = error.exit_code
    except Exception as error:
        if os.environ.get("TRIPTYCH_DEBUG"):
            raise
        what, code = failure_message(error)
        complain(Exception(what))
    sys.exit(code if isinstance(code, int) else 0)
