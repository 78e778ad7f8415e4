"""What is kept on disk to save time: listed, deleted, and replaced when a published model's files change."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from triptych.checkpoints.cache import bytes_of, delete_cached, list_cache
from triptych.cli import main
from triptych.convert.opening import find_checkpoint
from triptych.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose conversions hold one byte."""

    def convert(source: Path, target: Path, *given: Any, **parts: Any) -> None:
        target.mkdir()
        (target / "weights").write_bytes(b"x")

    monkeypatch.setattr("triptych.convert.checkpoint.convert_checkpoint", convert)
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def published(folder: Path, content: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    return folder


def snapshot(cache: Path, commit: str) -> Path:
    """A commit of a model in the hub's cache, which main is then."""
    model = cache / "models--some--blip2"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / "main").write_text(commit)
    published(model / "snapshots" / commit, json.dumps({"of": commit}))
    return model


def test_a_conversion_of_earlier_files_is_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = published(tmp_path / "a" / "blip2"), published(tmp_path / "b" / "blip2")
    first, second = find_checkpoint(one), find_checkpoint(other)
    assert first.is_dir() and second.is_dir() and first.name.startswith("blip2-")
    capsys.readouterr()
    (one / "config.json").write_text('{"model_type": "blip-2"}')
    third = find_checkpoint(one)
    assert third.is_dir() and second.is_dir() and not first.exists()
    assert f"deleted the conversion of its earlier files, {first.name}" in capsys.readouterr().err
    assert find_checkpoint(one) == third and capsys.readouterr().err == ""


def test_a_new_commit_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another revision that was asked for by its name, or a snapshot by its path, stays."""
    model = snapshot(tmp_path / "hub", "old")
    monkeypatch.setattr(
        "triptych.checkpoints.hub.fetch_model",
        lambda name: model / "snapshots" / ("old" if "@" in name else (model / "refs" / "main").read_text()),
    )
    old = find_checkpoint(model)
    assert old.name.startswith("some--blip2-") and find_checkpoint("some/blip2") == old
    snapshot(tmp_path / "hub", "new")
    new = find_checkpoint("some/blip2")
    assert new.is_dir() and not old.exists() and find_checkpoint(model) == new
    tagged = find_checkpoint("some/blip2@v1")
    assert tagged != new and find_checkpoint(model / "snapshots" / "old") == tagged
    snapshot(tmp_path / "hub", "newer")
    assert find_checkpoint(model) != new and tagged.is_dir() and not new.exists()


def test_only_what_killed_processes_left_is_deleted_after_a_day(tmp_path: Path, home: Path) -> None:
    name = f"blip2-{8 * '0'}-{16 * 'a'}"
    left = {f"{name}.17", f".{name}.17.new", f".{name}.old"}
    kept = {"my-blip2", f"{name}.bak", "notes.new", f"my-{name}.17.old"}
    for folder in left | kept:
        (home / "converted" / folder).mkdir(parents=True)
        os.utime(home / "converted" / folder, (1, 1))
    (home / "converted" / f"{name}.18").mkdir()  # by a process that runs
    made = find_checkpoint(published(tmp_path / "blip2"))
    assert {path.name for path in made.parent.iterdir()} == kept | {f"{name}.18", made.name}


def test_the_command(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = find_checkpoint(published(tmp_path / "blip2"))
    (home / "parts" / "encoder").mkdir(parents=True)
    (home / "parts" / "encoder" / "weights").write_bytes(bytes(2_500_000))
    (home / "hashes").mkdir()

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["triptych", "cache", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out or err

    capsys.readouterr()
    name = f"converted/{target.name}"
    assert json.loads(run("--json")[1]) == {"folder": str(home), "bytes": {name: 1, "parts/encoder": 2_500_000}}
    assert "parts/encoder" in run()[1] and "2.5" in run()[1]
    code, message = run("--delete", name, "--delete", "engine")
    assert code == 2 and "is called 'engine': `triptych cache` lists" in message and target.is_dir()
    assert run("--delete", "converted") == (0, f"deleted {name}\n")
    assert [*list_cache()] == ["parts/encoder"] and run("--delete", "converted") == (0, "nothing to delete\n")


def test_names_are_no_paths(tmp_path: Path, home: Path) -> None:
    outside = published(tmp_path / "mine")
    for name in ("../mine", "converted/../../mine", str(outside), "", "."):
        with pytest.raises(InputError, match="nothing in"):
            delete_cached([name])
    (home / "converted").mkdir(parents=True)
    (home / "converted" / "link").symlink_to(outside)
    assert bytes_of(home / "converted" / "link") >= 0 and delete_cached(["converted/link"]) == ["converted/link"]
    assert (outside / "config.json").is_file()
