"""A connection to Ray, and what its machines have room for. Ray is an extra: only functions that need it import it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from triptych.errors import TriptychError

WORKER_CPUS = 2  # as many as one process uses well


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A connection to the cluster at ``RAY_ADDRESS``, to the one that runs on this machine, or to one started here for as long.

    A connection that is open already is used and stays open.

    Raises TriptychError: the cluster cannot be reached or started.
    """
    import ray

    connected = ray.is_initialized()
    try:
        if not connected:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds
        where = os.environ.get("RAY_ADDRESS")
        what = f"cannot {f'reach Ray at {where}' if where else 'start Ray'}"
        raise TriptychError(f"{what}: {error_line(error)}") from None
    try:
        yield
    finally:
        if not connected:
            ray.shutdown()


def room_for_workers(gpus: int = 0, wanted: int = 1) -> tuple[int, int]:
    """The processors of each worker, and how many such workers the cluster has room for now.

    Args:
        gpus: of each worker.
        wanted: workers; they get one processor each where there is no room for all with ``WORKER_CPUS``.
    """
    import ray

    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]

    def room(cpus: int) -> int:
        limits = [(machine.get("CPU", 0) // cpus, machine.get("GPU", 0) // (gpus or 1)) for machine in machines]
        return sum(int(min(limit) if gpus else limit[0]) for limit in limits)

    cpus = WORKER_CPUS if room(WORKER_CPUS) >= wanted else 1
    return cpus, room(cpus)


def error_line(error: BaseException) -> str:
    """The last line of an error of Ray, which is what was raised; those before it are Ray's own stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
