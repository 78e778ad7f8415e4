"""Files are written whole or not at all."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from triptych.errors import InputError, TriptychError
from triptych.io.files import json_bytes, replacement, sha256_of_file, write_file


@pytest.mark.parametrize("fsync", [False, True])
def test_bytes_text_and_a_function(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "a.txt"

    def write(file: BinaryIO) -> None:
        file.write(b"one ")
        file.write(b"two")

    for content, expected in ((b"\0\xff", b"\0\xff"), ("한글\r\n", "한글\r\n".encode()), (write, b"one two")):
        write_file(path, content, fsync=fsync)  # type: ignore[arg-type]
        assert path.read_bytes() == expected
        assert [*tmp_path.iterdir()] == [path]
    assert sha256_of_file(path) == hashlib.sha256(b"one two").hexdigest()


def test_json_keeps_letters_and_the_bytes_of_names() -> None:
    assert json_bytes({"name": "여우"}) == '{"name": "여우"}'.encode()
    assert json.loads(json_bytes({"name": "caf\udce9"}).decode()) == {"name": "caf\udce9"}


def test_what_fails_half_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_file(path, b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_file(path, fail)
    with pytest.raises(KeyError), replacement(path) as beside:
        beside.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_path_for_writers_that_need_one(tmp_path: Path) -> None:
    with replacement(tmp_path / "a.bin") as beside, replacement(tmp_path / "b.bin") as other:
        assert beside.parent == tmp_path and beside != other
        beside.write_bytes(b"a")
        other.write_bytes(b"b")
        assert not (tmp_path / "a.bin").exists()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.bin": b"a", "b.bin": b"b"}


def test_a_link_is_kept_and_its_target_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"new"


@pytest.mark.parametrize(("number", "says"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "Permission denied")])
def test_what_the_machine_refuses(tmp_path: Path, number: int, says: str) -> None:
    def refuse(file: BinaryIO) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(TriptychError, match=says) as caught:
        write_file(tmp_path / "a.txt", refuse)
    assert not isinstance(caught.value, InputError)
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'a.txt'}: ")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="create it first"):
        write_file(tmp_path / "absent" / "a.txt", b"")
    with pytest.raises(InputError, match="it is a folder; name a file"):
        write_file(tmp_path, b"")
