"""Runs over a folder that are killed at random points and continued, as the command line makes them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_folders import album

from triptych.folders import Journal

# Starts the run again and again in a child process and kills it: at a random time after the journal has grown.
KILLED_RUNS = """
import os, random, signal, sys, time
from pathlib import Path
from triptych.cli.folders import FolderOptions, describe_folder
from triptych.folders.outputs import journal_path
from triptych.folders.pipeline import Description

folder, out, existing, kills = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def describe(photos):
    time.sleep(0.002 * len(photos))
    return [Description(f"red {image.getpixel((0, 0))[0]}", {}) for image in photos]

def has_ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

def size():
    return journal.stat().st_size if journal.exists() else -1

journal, rng, killed = journal_path(out), random.Random(0), 0
while True:
    before = size()
    child = os.fork()
    if not child:
        options = FolderOptions(out=out, sidecar=["txt"], existing=existing)
        describe_folder([folder], lambda: describe, {"model": "toy"}, options)
        os._exit(0)
    if killed < kills:
        while size() in (-1, before) and not has_ended(child):
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        if killed and size() < before - 200:  # an unfinished line is cut off, no more
            sys.exit("the run started over")
        killed += 1
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    if status != -signal.SIGKILL:
        sys.exit(status)
print(killed)
"""


def run(folder: Path, out: Path, existing: str, kills: int) -> int:
    """Complete the run over ``folder``; returns how often it was killed."""
    arguments = [str(folder), str(out), existing, str(kills)]
    finished = subprocess.run([sys.executable, "-c", KILLED_RUNS, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout)


@pytest.mark.parametrize(
    ("existing", "suffix", "texts"),
    [
        ("skip", "jsonl", "red {}"),
        ("overwrite", "jsonl", "red {}"),
        ("append", "csv", "holiday red {}"),
        ("prepend", "csv", "red {} holiday"),
    ],
)
def test_killed_at_random_points_no_photo_is_lost_or_repeated(
    tmp_path: Path, existing: str, suffix: str, texts: str
) -> None:
    names = album(tmp_path / "album", 180)
    out = tmp_path / f"out.{suffix}"
    if existing != "skip":  # results and sidecars of an earlier run, which ended
        run(tmp_path / "album", out, "skip", 0)
        for name in names:
            Path(name).with_suffix(".txt").write_text("holiday\n")
    assert run(tmp_path / "album", out, existing, 20) >= 5
    journal = tmp_path / ("out.jsonl" if suffix == "jsonl" else "out.csv.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    if suffix == "csv":
        with out.open(newline="") as file:
            assert [row["image"] for row in csv.DictReader(file)] == names
    assert [record["image"] for record in records] == names
    assert all(record["caption"] == f"red {n}" for n, record in enumerate(records))
    assert [Path(name).with_suffix(".txt").read_text() for name in names] == [
        f"{texts.format(n)}\n" for n in range(len(names))
    ]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_run_that_replaces_results_continues_only_its_own(tmp_path: Path) -> None:
    out, settings = tmp_path / "out.jsonl", {"model": "toy"}

    def opened(run: dict[str, int] | None) -> Journal:
        return Journal(out, settings, replacing=run)

    opened(None).append([{"image": "a"}])
    opened({"run": 1}).append([{"image": "b"}])
    assert [record["image"] for record in opened({"run": 1}).records()] == ["b"]  # interrupted: continued
    assert "b" in opened({"run": 1})
    assert len(opened({"run": 2})) == 0  # another one starts over
    opened({"run": 2}).append([{"image": "c"}])
    assert "c" in opened(None)  # a run that skips results keeps them; after it nothing is unfinished
    assert len(opened({"run": 2})) == 0
    journal = opened({"run": 2})
    journal.append([{"image": "d"}])
    journal.finish()
    assert len(opened({"run": 2})) == 0
    out.unlink()
    assert len(opened({"run": 2})) == 0
