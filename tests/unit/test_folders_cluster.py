"""Folders on a cluster: workers and runs that are killed, photos that end their worker, and failures of all workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from test_folders import album, say_red
from test_onnx_opening import own_home, saved  # noqa: F401  (fixtures)

from triptych.errors import InputError
from triptych.extras import MissingExtraError
from triptych.folders import Journal, Sidecars, describe_photos
from triptych.folders.cluster import OnRay
from triptych.folders.journal import Record
from triptych.folders.pipeline import Describe, Description

FATAL = 21  # how red the photo is that ends its worker


CLUSTER = """
import sys, ray
from local_ray import start_ray
start_ray(cpus=4)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster on this machine with room for two workers; its address."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'triptych[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), *sys.path)))  # of the workers
        import ray

        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as run:  # type: ignore[call-overload]
            address = run.stdout.readline().strip()
            ray.init(address, log_to_driver=False, logging_level="ERROR")
            yield address
            ray.shutdown()
            run.communicate()


def open_slow(pids: str, fatal: int = -1) -> Describe:
    """Says how red photos are, 20 ms each; a file in ``pids`` is named after each worker. One of ``fatal`` ends the process."""
    (Path(pids) / str(os.getpid())).touch()

    def describe(photos: Sequence[Image.Image]) -> Sequence[Description]:
        time.sleep(0.02 * len(photos))
        if any(photo.getpixel((0, 0))[0] == fatal for photo in photos):  # type: ignore[index]
            os.kill(os.getpid(), signal.SIGKILL)
        return [Description(said.text, {"pid": os.getpid()}) for said in say_red(photos)]

    return describe


def open_nothing() -> Describe:
    raise InputError("there is no such model")


@pytest.mark.usefixtures("cluster")
def test_workers_die_and_each_photo_is_there_once(tmp_path: Path) -> None:
    """One worker is killed from outside, and one photo kills its worker whenever it is tried."""
    names = album(tmp_path / "album", 64)
    Path(names[3]).write_bytes(b"not a picture")
    pids = tmp_path / "pids"
    pids.mkdir()
    killed: list[int] = []

    def kill_first(record: Record) -> None:
        if not killed and "pid" in record:
            with suppress(ProcessLookupError):  # the photo has killed it
                os.kill(record["pid"], signal.SIGKILL)
                killed.append(record["pid"])

    journal = Journal(tmp_path / "out.jsonl", {"model": "toy"})
    runner = OnRay(partial(open_slow, str(pids), FATAL))
    summary = describe_photos(names, runner, journal=journal, sidecars=Sidecars(("txt",)), result=kill_first)
    records = {record["image"]: record for record in journal.records()}
    assert killed and len(list(journal.records())) == len(records) == len(names)
    failures = {name: record["error"] for name, record in records.items() if "error" in record}
    assert set(failures) == {names[3], names[FATAL]} == {name for name, _ in summary.failures}
    assert "workers ended" in failures[names[FATAL]] and "003.png" in failures[names[3]]
    for n, name in enumerate(names):
        if name not in failures:
            assert records[name]["caption"] == f"red {n}"
            assert Path(name).with_suffix(".txt").read_text() == f"red {n}\n"
    assert len(list(pids.iterdir())) >= 3
    with pytest.raises(InputError, match="no such model"):
        describe_photos(names, OnRay(open_nothing))


def test_a_killed_run_goes_on_and_writes_what_one_machine_writes(
    cluster: str,
    saved: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    import pyarrow.parquet as pq

    names = album(tmp_path / "album", 160)
    command = [sys.executable, "-m", "triptych", "caption", "album", "--model", str(saved), "--out"]
    subprocess.run([*command, "local.parquet"], cwd=tmp_path, check=True, capture_output=True)
    on_cluster = partial(
        subprocess.Popen,
        [*command, "ray.parquet", "--engine", "ray"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": cluster},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = tmp_path / "ray.parquet.jsonl"
    with on_cluster() as run:
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.stat().st_size) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        run.kill()
    before = len(journal.read_text().splitlines())
    assert 0 < before < len(names), run.returncode
    with on_cluster() as run:
        printed, notes = run.communicate(timeout=120)
    assert (run.returncode, printed) == (0, ""), notes
    assert f"{len(names) - before} described, {before} done before" in notes
    local, ray = (
        {row["image"]: row for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist()}
        for name in ("local", "ray")
    )
    assert pq.read_metadata(tmp_path / "ray.parquet").num_rows == len(names)
    assert {name: row["caption"] for name, row in ray.items()} == {name: row["caption"] for name, row in local.items()}


def test_without_ray_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"^--runner ray needs ray.*: pip install 'triptych\[cluster\]'$"):
        OnRay(open_nothing)


@pytest.mark.parametrize(
    ("options", "message"), [(("--runner", "spark"), "local or ray"), (("--engine", "ray", "--watch"), "--watch")]
)
def test_options_that_do_not_fit(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    command = [
        sys.executable,
        "-m",
        "triptych",
        "caption",
        str(tmp_path),
        "--out",
        str(tmp_path / "out.jsonl"),
        *options,
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and message in ended.stderr and ended.stderr.count("\n") == 1
