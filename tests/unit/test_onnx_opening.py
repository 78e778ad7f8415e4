"""Checkpoints opened with ONNX Runtime: graphs on disk, what is refused, what falls back on torch, and that torch stays away."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from triptych.checkpoints.config import Card, CheckpointConfig, EncoderSpec
from triptych.checkpoints.locate import load_config
from triptych.engines.choice import open_onnx
from triptych.engines.onnx import cache
from triptych.engines.onnx.cache import KEPT_FOLDERS, graphs_folder, open_embeddings, save_embeddings
from triptych.engines.onnx.matrix import quantize8
from triptych.engines.onnx.opening import open_engine
from triptych.errors import InputError, TriptychError
from triptych.io.images import load_image
from triptych.models.sat import SatModel, load_sat, sat_search, save_sat
from triptych.nn.cnn import EfficientNetLite
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.tasks import load
from triptych.text.vocabulary import SPECIALS, WordVocabulary

WORDS = WordVocabulary((*SPECIALS, *"abcdefg"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Show, Attend and Tell of random weights that holds its encoder."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "hidden_dim": 32, "attention_dim": 32}
    encoder = EfficientNetLite(cut=22, image_size=64)
    model = ShowAttendTell(ShowAttendTellConfig(len(WORDS), 1280, **sizes), encoder)
    spec = EncoderSpec(encoder.name, stored=True, image_size=64, cut=22)
    config = CheckpointConfig(system="sat", model=model.config, encoder=spec)
    directory = tmp_path_factory.mktemp("saved") / "sat"
    save_sat(directory, SatModel(model.eval(), WORDS, sat_search(max_new_tokens=5), config), Card())
    return directory


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "engines"


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_a_terminal_is_told_that_graphs_are_built(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    open_engine(saved)
    assert capsys.readouterr().err == "triptych: the graphs of sat are built once, in a few seconds\n"
    open_engine(saved)
    open_engine(saved, "fp32")
    assert capsys.readouterr().err.count("graphs") == 1  # of the other precision


def test_both_engines_write_the_same(saved: Path) -> None:
    ours, theirs = load(saved, precision="fp32"), load(saved, device="cpu")
    assert type(ours.engine).__name__ == "OnnxSat" and type(theirs.engine).__name__ == "TorchSat"
    for settings in ({}, {"beams": 3}, {"temperature": 1.0, "seed": 3}):
        a, b = ours.caption(photo(), **settings), theirs.caption(photo(), **settings)
        assert a.text == b.text and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    a, b = ours.caption(photo(), explain=True), theirs.caption(photo(), explain=True)
    np.testing.assert_allclose(a.evidence.maps, b.evidence.maps, atol=1e-4)
    assert ours.engine.photos == theirs.engine.photos
    pixels = np.zeros((1, 3, 64, 64), np.float32)
    np.testing.assert_allclose(
        ours.engine.pooled(ours.engine.encode(pixels)), theirs.engine.pooled(theirs.engine.encode(pixels)), atol=1e-4
    )
    info = ours.info()
    assert info["precision"] == "fp32" and info["parameters_trained"] == theirs.info()["parameters_trained"]


def test_graphs_are_built_once(saved: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_engine(saved, "int8")
    (folder,) = own_home.iterdir()
    assert first.opened.folder == folder
    monkeypatch.setitem(sys.modules, "onnx", None)  # what is there needs no builder
    assert open_engine(saved, "int8").opened.folder == folder
    assert open_engine(saved, "int8").read(first.encode(np.zeros((1, 3, 64, 64), np.float32))).shape == (1, 4, 1280)


def test_a_folder_belongs_to_a_checkpoint_a_precision_and_this_code(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(saved)
    keys = {cache.content_key(config, precision) for precision in ("fp32", "int8", "int4")}
    assert len(keys) == 3
    other = CheckpointConfig(system="sat", model={}, encoder=config.encoder, files=config.files)
    assert cache.content_key(other, "fp32") not in keys
    described = msgspec.structs.replace(config, card=Card(name="another"))
    assert cache.content_key(described, "fp32") in keys
    monkeypatch.setattr(cache, "CODE", "another version")
    assert cache.content_key(config, "fp32") not in keys


def test_a_build_that_fails_leaves_nothing(saved: Path, own_home: Path) -> None:
    config = load_config(saved)

    def fail(folder: Path) -> None:
        (folder / "half.data").write_bytes(b"x")
        raise InputError("no")

    with pytest.raises(InputError):
        graphs_folder(config, "fp32", fail)
    assert not list(own_home.iterdir())

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(TriptychError, match=r"disk is full.*TRIPTYCH_HOME names another folder"):
        graphs_folder(config, "fp32", full)


def test_two_processes_may_build_at_once(saved: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one renames its folder just before this one."""
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        shutil.copytree(path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    folder = graphs_folder(load_config(saved), "fp32", lambda new: cache.write_manifest(new, {}))
    assert [path.name for path in own_home.iterdir()] == [folder.name]


def test_old_folders_are_forgotten(saved: Path, own_home: Path) -> None:
    own_home.mkdir(parents=True)
    graphs = [f"sat-int8-{n:024x}" for n in range(KEPT_FOLDERS + 3)]
    for n, name in enumerate([*graphs, "mine"]):
        (own_home / name).mkdir()
        os.utime(own_home / name, (n, n))
    (own_home / ".new-interrupted").mkdir()
    os.utime(own_home / ".new-interrupted", (0, 0))
    (own_home / ".new-growing").mkdir()
    open_engine(saved, "int8")
    left = {path.name for path in own_home.iterdir()}
    assert left >= {graphs[-1], ".new-growing", "mine"} and left.isdisjoint({graphs[3], ".new-interrupted"})
    assert len(left) == KEPT_FOLDERS + 2


def test_folders_in_use_stay(saved: Path, own_home: Path) -> None:
    own_home.mkdir(parents=True)
    for n in range(KEPT_FOLDERS + 3):
        (own_home / f"sat-int8-{n:024x}").mkdir()
    open_engine(saved, "int8")
    assert len(list(own_home.iterdir())) == KEPT_FOLDERS + 4


def test_embeddings_are_mapped(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)
    save_embeddings(tmp_path, "plain", values)
    save_embeddings(tmp_path, "blocks", quantize8(values))
    ids = np.array([[3, 3], [9, 0]])
    np.testing.assert_array_equal(open_embeddings(tmp_path, "plain")(ids), values[ids])
    np.testing.assert_allclose(open_embeddings(tmp_path, "blocks")(ids), quantize8(values).dense()[ids], rtol=1e-6)


def test_damaged_files_are_refused_though_the_graphs_are_there(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    open_engine(copy, "int8")
    damaged = bytearray((copy / "triptych.safetensors").read_bytes())
    damaged[-1] ^= 0xFF
    (copy / "triptych.safetensors").write_bytes(damaged)
    with pytest.raises(InputError, match=r"triptych\.safetensors is damaged"):
        open_engine(copy, "int8")


def test_what_is_not_covered_falls_back_on_torch_with_one_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_sat(saved)
    hard = ShowAttendTellConfig(**(vars(model.config.model) | {"attention": "hard"}))
    model.model.config = model.model.decoder.config = hard
    save_sat(tmp_path / "hard", model, Card())
    loaded = load(tmp_path / "hard")
    assert type(loaded.engine).__name__ == "TorchSat"
    error = capsys.readouterr().err
    assert error == "triptych: ONNX Runtime does not cover hard attention; torch is used instead, which is slower\n"


def test_without_onnxruntime_torch_takes_over_with_one_line(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("triptych.engines.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert open_onnx(saved, None) is None
    assert capsys.readouterr().err.startswith("triptych: onnxruntime is not installed: pip install onnxruntime; torch")


def test_a_graph_that_the_runtime_refuses_falls_back_on_torch_with_one_line(
    saved: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (open_engine(saved, "int8").opened.folder / "step.onnx").write_bytes(b"no graph")
    loaded = load(saved, precision="int8")
    assert type(loaded.engine).__name__ == "TorchSat"
    error = capsys.readouterr().err
    assert error.startswith("triptych: ONNX Runtime 1.") and error.count("\n") == 1
    assert "step.onnx" in error and error.endswith("; torch is used instead, which is slower\n")


def test_an_unknown_precision_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match="'int2', expected one of fp32, int8, int4"):
        load(saved, precision="int2")


def test_a_caption_without_torch(saved: Path, tmp_path: Path) -> None:
    """Neither when graphs are built nor afterwards, when the package that builds them is not needed either."""
    load_image(photo()).save(tmp_path / "photo.png")
    code = (
        "import sys; from triptych.tasks import load; "
        f"print(load({str(saved)!r}).caption({str(tmp_path / 'photo.png')!r}).text, {{'torch', 'onnx'}} & {{*sys.modules}})"
    )
    for imported in ("{'onnx'}", "set()"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip().endswith(imported), (done.stdout, done.stderr)
