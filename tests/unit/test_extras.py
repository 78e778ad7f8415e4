"""Packages that are extras: the commands that need none of them, and the one line of those that do."""

import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from test_onnx_opening import own_home, photo, saved  # noqa: F401  (fixtures)
from without_torch import run_commands

from triptych.extras import MissingExtraError, importing, torch_installed
from triptych.io.images import load_image

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_a_missing_package_names_its_extra() -> None:
    line = r"^drawing needs no_such_package: pip install 'triptych\[torch\]'$"
    with pytest.raises(MissingExtraError, match=line), importing("torch", "drawing"):
        import no_such_package  # noqa: F401


def test_a_module_of_our_own_that_is_missing_is_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"triptych\.no_such_module"), importing("torch", "drawing"):
        import triptych.no_such_module  # noqa: F401


def test_torch_is_looked_for_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_installed()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not torch_installed()


def test_the_project_lists_torch_in_its_extras_alone() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    assert not [name for name in project["dependencies"] if name.startswith("torch")]
    assert project["optional-dependencies"]["torch"] == ["torch>=2.10"]
    assert "triptych[torch]" in project["optional-dependencies"]["train"]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    load_image(photo()).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_commands_that_need_torch_say_so_in_one_line(saved: Path, tmp_path: Path, picture: str) -> None:  # noqa: F811
    tutorial, published = tmp_path / "BEST.pth.tar", tmp_path / "published"
    tutorial.write_bytes(b"x")
    published.mkdir()
    (published / "config.json").write_text('{"model_type": "blip-2"}')
    needs = {
        "conversion": ["convert", str(tutorial), str(tmp_path / "new")],
        "export": ["export", str(saved), str(tmp_path / "new")],
        "an estimate": ["info", str(saved), "--estimate"],
        f"{published}, a published checkpoint,": ["caption", picture, "--model", str(published)],
        f"{saved} on this engine": ["caption", picture, "--model", str(saved), "--precision", "bf16"],
        "training": ["train", "sat", "--data", str(tmp_path), "--run", str(tmp_path / "run")],
    }
    for use, ended in zip(needs, run_commands(list(needs.values())), strict=True):
        extra = "train" if use == "training" else "torch"
        assert ended == (1, "", f"triptych: {use} needs torch: pip install 'triptych[{extra}]'\n")


def test_commands_that_need_no_torch(saved: Path, tmp_path: Path, picture: str) -> None:  # noqa: F811
    figure = tmp_path / "where.png"
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(picture, folder)
    commands = [
        ["--help"],
        ["info", str(saved)],
        ["caption", picture, "--model", str(saved)],
        ["caption", str(folder), "--model", str(saved), "--out", str(tmp_path / "out.csv")],
        ["explain", picture, "--model", str(saved), "--out", str(figure)],
    ]
    for command, ended in zip(commands, run_commands(commands), strict=True):
        assert not ended.code, (command, ended)
    assert figure.stat().st_size


def test_without_onnxruntime_and_torch_one_line_says_what_to_install(saved: Path, picture: str) -> None:  # noqa: F811
    (ended,) = run_commands([["caption", picture, "--model", str(saved)]], "torch,onnxruntime")
    assert ended.code == 1 and not ended.out
    line = "onnxruntime is not installed: pip install onnxruntime; torch would run it: pip install 'triptych[torch]'"
    assert ended.err == f"triptych: {line}\n"
