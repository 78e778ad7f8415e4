"""Commands run in a process that cannot import torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

SCRIPT = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = sys.argv[2].split(",")
sys.meta_path.insert(0, Blocker())
exec(sys.argv[3])
from triptych.cli import main
results = []
for command in json.loads(sys.argv[1]):
    sys.argv, sys.stdin = ["triptych", *command], io.StringIO("what is it?\\n")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run_commands(commands: Sequence[Sequence[str]], blocked: str = "torch", before: str = "") -> list[Ended]:
    """What each command printed, one after the other in one process; ``blocked``: packages that cannot be imported, with commas;
    ``before``: statements that run first."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands), blocked, before],
        capture_output=True,
        text=True,
        env=os.environ | {"TRIPTYCH_DEBUG": ""},
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*result) for result in json.loads(done.stdout)]
