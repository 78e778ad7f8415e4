"""Opening sessions of ONNX Runtime, with one thread for each core and no busy waiting."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import onnxruntime as ort

from triptych.errors import TriptychError


def physical_cores() -> int:
    """The number of cores that this process may use, without hyper-threads; at most ``OMP_NUM_THREADS`` and what its container may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [max(1, allowed // threads_per_core())]
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and int(limit):
        limits.append(int(limit))
    if (share := container_processors()) is not None:
        limits.append(max(1, round(share)))
    return min(limits)


def threads_per_core(siblings: Path = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")) -> int:
    """The number of hardware threads of a core on Linux; 1 elsewhere. The file lists them, as ``0-1`` or ``0,4``."""
    try:
        ranges = [part.split("-") for part in siblings.read_text(encoding="ascii").strip().split(",")]
        return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)
    except (OSError, ValueError):
        return 1


def container_processors(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The processor time per time that the container may take (``docker run --cpus``); None = it has no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroups of version 2 and 1
        with suppress(OSError, ValueError):  # "max" and -1: no limit
            quota, period = (int(number) for file in files for number in (group / file).read_text().split())
            return quota / period if quota > 0 < period else None
    return None


class RuntimeFailedError(TriptychError):
    """ONNX Runtime refuses a graph: it is too old for it, or the file is damaged."""


def open_session(path: Path) -> ort.InferenceSession:
    """A session over a graph file; ``run`` may be called from several threads at once.

    Raises:
        RuntimeFailedError: the runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own classes, which have no common base
        reason = " ".join(str(error).split())[:200]
        raise RuntimeFailedError(f"ONNX Runtime {ort.__version__} cannot open {path}: {reason}") from error
