"""METEOR (Denkowski and Lavie, 2014) by its authors' Java program, version 1.5, carried by `pycocoevalcap`."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

import numpy as np
from numpy.typing import NDArray

from triptych.errors import TriptychError
from triptych.metrics.cider import check_tokens


def meteor(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], timeout: float = 600
) -> tuple[float, NDArray[np.float64]] | None:
    """METEOR of the whole set and of each candidate, [len(candidates)], 0..1; None without Java or `pycocoevalcap`.

    Raises InputError for texts in the place of tokens, TriptychError if the Java process fails or takes more than `timeout` seconds.
    """
    for candidate, texts in zip(candidates, references, strict=True):
        for tokens in (candidate, *texts):
            check_tokens(tokens)
    java, package = shutil.which("java"), find_spec("pycocoevalcap")
    if java is None or package is None or not package.submodule_search_locations:
        return None
    command = [java, "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    folder = Path(package.submodule_search_locations[0]) / "meteor"
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        timer = Timer(timeout, process.kill)
        timer.start()
        try:
            return _converse(process, candidates, references)
        except (OSError, ValueError) as error:
            process.kill()
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"no valid answer within {timeout:g} s"]
            raise TriptychError(
                f"METEOR's Java process failed: {lines[-1]}; check that `java -version` works"
            ) from error
        finally:
            timer.cancel()


def _converse(
    process: subprocess.Popen[str], candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, NDArray[np.float64]]:
    assert process.stdin is not None
    assert process.stdout is not None

    def say(*fields: str) -> None:
        assert process.stdin is not None
        process.stdin.write(" ||| ".join(fields) + "\n")
        process.stdin.flush()

    statistics = []
    for candidate, refs in zip(candidates, references, strict=True):
        say(
            "SCORE",
            *(" ".join(reference).replace("|||", "") for reference in refs),
            " ".join(candidate).replace("|||", ""),
        )
        statistics.append(process.stdout.readline().strip())
    say("EVAL", *statistics)
    each = [float(process.stdout.readline()) for _ in statistics]
    return float(process.stdout.readline()), np.array(each)
