"""Folders on a Ray cluster: Ray Data hands blocks of photos to a pool of workers, each of which opens the model once.

    names -> windows -> blocks -> workers: decode, describe, sidecars -> records -> this process: journal

This process lists the photos and writes the journal. So each photo is in the journal once, whatever happens to the workers, and a run
that is killed continues like any other. The names of one window are in memory. All machines must see the photos under the same path and
have this package installed.

When a worker dies, Ray starts another one for the same block. A block that ``ATTEMPTS`` workers have died at is divided into its
photos; a photo that as many have died at is recorded as a failure.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from triptych.cluster import error_line, ray_cluster, room_for_workers
from triptych.errors import InputError, TriptychError
from triptych.extras import importing
from triptych.folders.pipeline import PHOTO_BATCH, Describe, described_batches
from triptych.folders.sidecars import Sidecars

WINDOW = 1 << 18  # photos whose names are in memory; each window starts new workers
PHOTO_BLOCK = 64  # photos in a block, at most
BLOCKS_PER_WORKER = 4  # at least, for small folders, so that all workers end at about the same time
ATTEMPTS = 2  # workers that may die at a block


@dataclass(frozen=True)
class OnRay:
    """A ``Runner`` that describes photos on the cluster at ``RAY_ADDRESS``, on this machine's, or on one started for the run.

    ``open_describe``: called once in each worker to load the model; must be picklable. ``gpus``: of each worker.

    Raises MissingExtraError: Ray is not installed.
    """

    open_describe: Callable[[], Describe]
    gpus: int = 0

    def __post_init__(self) -> None:
        with importing("cluster", "--runner ray"):
            import pyarrow  # noqa: F401
            import ray.data
        ray.data.DataContext.get_current().enable_progress_bars = False
        for handler in logging.getLogger("ray.data").handlers:
            if handler.name == "console":
                handler.setLevel(logging.CRITICAL)  # its errors are raised, too

    def __call__(self, names: Iterator[str], sidecars: Sidecars) -> Iterator[list[dict[str, Any]]]:
        """The records of all photos, each once, in batches, as they come.

        Raises InputError, TriptychError: a worker cannot open the model, does not see the folder, or cannot write (its disk is full).
        """
        with ray_cluster():
            cpus, room = room_for_workers(self.gpus)
            workers = max(1, room)  # a cluster without room may grow
            while window := list(islice(names, WINDOW)):
                size = min(PHOTO_BLOCK, max(PHOTO_BATCH, len(window) // (BLOCKS_PER_WORKER * workers)))
                for block in (size, 1):
                    window = yield from self.describe_window(window, sidecars, block, cpus, workers)
                reason = f"{ATTEMPTS} workers ended while they described it; see Ray's logs"
                yield [{"image": name, "error": f"{name}: {reason}"} for name in window]

    def describe_window(
        self, names: Sequence[str], sidecars: Sidecars, block: int, cpus: int, workers: int
    ) -> Generator[list[dict[str, Any]], None, list[str]]:
        """Yields the records of photos in batches; returns the photos of blocks that too many workers died at."""
        import pyarrow
        import ray.data

        if not names:
            return []
        parts = [names[first : first + block] for first in range(0, len(names), block)]
        tables = [pyarrow.table({"name": pyarrow.array(map(os.fsencode, part), pyarrow.binary())}) for part in parts]
        attempts = ray.remote(num_cpus=0)(Attempts).remote()
        pool = ray.data.ActorPoolStrategy(min_size=1, initial_size=min(workers, len(parts)))
        described = ray.data.from_arrow(tables).map_batches(
            PhotoWorker,
            fn_constructor_args=(self.open_describe, sidecars, str(Path.cwd()), attempts),
            batch_size=None,
            compute=pool,
            num_cpus=cpus,
            num_gpus=self.gpus or None,
        )
        pending = dict.fromkeys(names, True)
        try:
            for batch in described.iter_batches(batch_size=None, batch_format="pyarrow"):
                records = [read_record(text) for text in batch["record"].to_pylist()]
                new = [record for record in records if pending.pop(record["image"], None)]
                yield new
        except ray.exceptions.RayError as error:
            raise TriptychError(f"the workers of the cluster failed: {error_line(error)}") from None
        return list(pending)


class PhotoWorker:
    """A worker: opens the model once, then describes blocks. A failure that other workers would have, too, is returned as a record."""

    def __init__(self, open_describe: Callable[[], Describe], sidecars: Sidecars, folder: str, attempts: Any) -> None:
        self.sidecars, self.attempts = sidecars, attempts
        self.failure: TriptychError | None = None
        try:
            os.chdir(folder)  # paths are relative to where the run was started
            self.describe = open_describe()
        except OSError as error:
            self.failure = InputError(
                f"{folder}: the machine {os.uname().nodename} of the cluster cannot open it ({error.strerror}); mount it there"
            )
        except TriptychError as error:
            self.failure = error

    def __call__(self, block: dict[str, Sequence[Any]]) -> dict[str, list[str]]:
        """``name`` (bytes) of each photo -> ``record`` (JSON) of each, or none if the block was tried too often."""
        names = [os.fsdecode(name) for name in block["name"]]
        if self.failure is not None:
            return written_records([failure_record(self.failure)])
        import ray

        if ray.get(self.attempts.count.remote(names[0])) > ATTEMPTS:
            return written_records([])
        try:
            batches = described_batches(self.describe, iter(names), self.sidecars)
            return written_records([record for batch in batches for record in batch])
        except TriptychError as error:
            return written_records([failure_record(error)])
        except Exception:  # this process may be in an invalid state; Ray starts a new one
            traceback.print_exc()
            os._exit(1)


class Attempts:
    """An actor that counts how many workers have started on each block."""

    def __init__(self) -> None:
        self.counts = Counter[str]()

    def count(self, block: str) -> int:
        self.counts[block] += 1
        return self.counts[block]


def failure_record(error: TriptychError) -> dict[str, Any]:
    return {"failure": str(error), "of_input": isinstance(error, InputError)}


def written_records(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    return {"record": [json.dumps(record) for record in records]}


def read_record(text: str) -> dict[str, Any]:
    """Raises InputError, TriptychError: the failure that the worker returned."""
    record: dict[str, Any] = json.loads(text)
    if "failure" in record:
        raise (InputError if record["of_input"] else TriptychError)(record["failure"])
    return record
