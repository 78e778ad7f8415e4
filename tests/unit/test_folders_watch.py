"""Photos that come into a folder while it is followed: each is described once, and only when it is complete."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from PIL import Image
from test_folders import photo

from triptych.errors import InputError
from triptych.folders import Arrivals, WatchedPhotos

pytest.importorskip("watchfiles")

PATIENCE = 60  # seconds


@pytest.fixture
def stop() -> Iterator[Event]:
    event = Event()
    yield event
    event.set()


def wait_for(condition: object, process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.02)


def test_photos_arrive_once_they_are_complete(tmp_path: Path, stop: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo(Path("in/first.png"))
    arrived: list[str] = []
    ticks: list[int] = []

    def follow() -> None:
        for names in Arrivals(["in"], recursive=True, stop=stop):
            arrived.extend(names)
            ticks.append(len(names))

    thread = Thread(target=follow)
    thread.start()
    try:
        wait_for(lambda: arrived == [str(Path("in", "first.png"))])
        photo(tmp_path / "elsewhere" / "deep" / "second.png")
        (tmp_path / "elsewhere").rename(tmp_path / "in" / "moved")  # a whole folder
        (tmp_path / "in" / "notes.txt").write_text("no photo")
        photo(tmp_path / "in" / ".hidden" / "x.png")
        wait_for(lambda: len(arrived) == 2)
        data = photo(tmp_path / "whole.png").read_bytes()
        with (tmp_path / "in" / "third.png").open("wb") as file:  # slowly
            for start in range(0, len(data), max(1, len(data) // 8)):
                file.write(data[start : start + max(1, len(data) // 8)])
                file.flush()
                count = len(ticks)
                wait_for(lambda count=count: len(ticks) > count + 1)  # type: ignore[misc]
                assert len(arrived) == 2
        wait_for(lambda: len(arrived) == 3)
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert arrived == [
        str(Path("in", *parts)) for parts in (("first.png",), ("moved", "deep", "second.png"), ("third.png",))
    ]


def test_a_folder_may_go_while_it_is_followed(tmp_path: Path, stop: Event) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    photo(kept / "a.png"), photo(gone / "b.png")
    arrived: list[str] = []
    thread = Thread(target=lambda: [arrived.extend(names) for names in Arrivals([str(kept), str(gone)], True, stop)])
    thread.start()
    try:
        wait_for(lambda: len(arrived) == 2)
        shutil.rmtree(gone)
        photo(kept / "c.png")
        wait_for(lambda: len(arrived) == 3)
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert Path(arrived[-1]).name == "c.png"


def test_what_cannot_be_followed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="follows folders"):
        Arrivals([str(photo(tmp_path / "a.png"))])
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(InputError, match=r"triptych\[watch\]"):
        Arrivals([str(tmp_path)])


def test_a_photo_that_failed_is_due_again_once_its_file_has_changed(tmp_path: Path) -> None:
    good, bad = str(photo(tmp_path / "good.png")), str(tmp_path / "bad.png")
    Path(bad).write_bytes(b"broken")
    watched = WatchedPhotos()
    assert watched.due(iter([good, bad])) == [good, bad]
    watched.add({"image": good, "caption": "red"})
    Path(bad).write_bytes(b"mended while it was read")
    watched.add({"image": bad, "error": "broken"})
    assert watched.due([good, bad]) == [bad]
    watched.add({"image": bad, "error": "broken"})
    assert watched.due([good, bad]) == [] and watched.mended == set()
    photo(Path(bad))
    assert watched.due([good, bad]) == [bad]
    watched.add({"image": bad, "caption": "red"})
    assert watched.due([good, bad]) == [] and watched.mended == {bad}


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started without
from test_folders import Toy
import triptych.tasks
triptych.tasks.load = lambda *_, **__: Toy()
from triptych.cli import main
main()
"""


def test_the_command_follows_a_folder_until_it_is_interrupted(tmp_path: Path) -> None:
    """The same journal goes on; a broken photo is tried again when it is mended; the texts are written into the photos only once."""
    folder, out = tmp_path / "in", tmp_path / "out.csv"
    photo(folder / "a.png", 1)
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    options = ["caption", str(folder), "--watch", "--out", str(out), "--write-metadata", "--existing", "overwrite"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *options],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    journal = tmp_path / "out.csv.jsonl"

    def records() -> list[dict[str, object]]:
        return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []

    wait_for(lambda: len(records()) == 1, process)
    photo(folder / "b.png", 2)
    wait_for(lambda: len(records()) == 2, process)
    (folder / "c.png").write_bytes(b"broken")
    wait_for(lambda: len(records()) == 3, process)
    Image.new("RGB", (8, 8), (3, 0, 0)).save(folder / "c.png")
    wait_for(lambda: len(records()) == 4, process)
    time.sleep(2)  # of the photos that were rewritten with their texts none comes again
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=PATIENCE)
    assert [record.get("caption") for record in records()] == ["red 1", "red 2", None, "red 3"]
    assert process.returncode == 0 and "3 described; " in said and "watching" in said  # in the end all could be read
    assert printed.splitlines() == [f"{folder / name}.png: red {n}" for n, name in enumerate("abc", 1)]
    assert len(out.read_text().splitlines()) == 4
