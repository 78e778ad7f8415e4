"""Measured commands: each runs in a process of its own, so that its time and peak memory are its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes


@dataclass(frozen=True)
class Run:
    stdout: str
    seconds: float
    peak_mb: float


def run_python(arguments: list[str], threads: int) -> Run:
    """Run this Python with ``arguments`` from the repository root, on ``threads`` threads; what fails ends the benchmark.

    A process inherits the peak memory of the one that starts it, so the caller must stay small: it must not import torch.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        stdout = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed with exit code {process.returncode}")
    return Run(stdout, seconds, usage.ru_maxrss * PEAK_UNIT / 2**20)


def processor() -> dict[str, Any]:
    """The processor's name, cores and the instructions that decide how fast integers are multiplied."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="ascii").splitlines() if info.exists() else []
    fields = {line.partition("\t")[0]: line.partition(": ")[2] for line in lines}
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    name = fields.get("model name", "unknown").strip()
    return {"name": name, "cores": os.cpu_count(), "flags": " ".join(flag for flag in known if flag in flags)}
