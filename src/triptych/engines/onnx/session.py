"""Opening sessions of ONNX Runtime, with one thread for each core and no busy waiting."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

from triptych.errors import TriptychError


def physical_cores() -> int:
    """The number of cores that this process may use, without hyper-threads; at most ``OMP_NUM_THREADS``."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    siblings = threads_per_core()
    cores = max(1, allowed // siblings)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdigit() and int(limit) else cores


def threads_per_core() -> int:
    """The number of hardware threads of a core on Linux; 1 elsewhere."""
    try:
        siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return 1
    first, dash, last = siblings.strip().partition("-")
    return int(last) - int(first) + 1 if dash else siblings.count(",") + 1


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
