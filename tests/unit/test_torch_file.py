"""PyTorch's files: read lazily, whatever lies beside the tensors, and nothing of theirs is run."""

import argparse
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.checkpoints.torch_file import StoredTensor, TorchFile
from triptych.checkpoints.weight_files import open_file
from triptych.errors import InputError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in right)


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def saved(path: Path, content: object, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_state_dict_is_found(tmp_path: Path, zipped: bool, wrap: Any) -> None:
    state = OrderedDict(w=torch.randn(3, 4).half(), n=torch.arange(3), e=torch.zeros(0, 2), b=torch.randn(2).bfloat16())
    state["view"] = torch.arange(12.0).view(3, 4).T[1:]
    state["tied"] = state["w"]
    store = open_file(saved(tmp_path / "x.pth", wrap(state), zipped))
    assert same(store, state)
    layouts = {name: (x.shape, x.dtype) for name, x in state.items()}
    assert {name: (x.shape, x.dtype) for name, x in store.layouts().items()} == layouts


@FORMATS
def test_modules_and_what_lies_beside_them(tmp_path: Path, zipped: bool) -> None:
    """Trainings save a whole DataParallel, their options, scores and paths."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    content = {
        "decoder": nn.DataParallel(module),
        "optimizer": torch.optim.Adam(module.parameters()),
        "args": argparse.Namespace(lr=1e-3),
        "bleu-4": np.float64(0.2),
        "array": np.arange(3),
        "path": Path("a/b"),
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "own": Evil(dict, [("a", 1)]),
    }
    file = TorchFile(saved(tmp_path / "x.pth.tar", content, zipped))
    assert same(file.state(file.content["decoder"]), module.state_dict())


def test_prefixes_of_what_ran_the_model_are_left_out(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {
        "module._orig_mod.a.w": torch.ones(1),
        "_orig_mod.module.module.b": torch.ones(2),
        "layers.0._checkpoint_wrapped_module._fsdp_wrapped_module.c": torch.ones(3),
        "module": torch.ones(4),
    }
    save_file(weights, tmp_path / "x.safetensors")
    for path in (saved(tmp_path / "x.pth", weights), tmp_path / "x.safetensors"):
        state = open_file(path)
        assert {name: len(state[name]) for name in state} == {"a.w": 1, "b": 2, "layers.0.c": 3, "module": 4}


@FORMATS
@pytest.mark.parametrize(
    "call", [(os.mkdir, "made"), (eval, "__import__('os').mkdir('made')"), (torch.load, "x.pth")], ids=str
)
def test_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, call: tuple[Any, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "x.pth", {"w": torch.ones(1), "evil": Evil(*call)}, zipped)
    with pytest.raises(InputError, match=rf"asks for [\w.]+\.{call[0].__name__}, which is refused"):
        TorchFile(path)
    assert not (tmp_path / "made").exists()


def harmless(folder: str) -> None:
    Path(folder).mkdir()


@FORMATS
def test_a_function_of_the_users_own_is_not_run_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "x.pth", {"w": torch.ones(1), "own": Evil(harmless, "made")}, zipped)
    assert same(open_file(path), {"w": torch.ones(1)})
    assert not (tmp_path / "made").exists()


def test_a_tensor_must_have_its_bytes(tmp_path: Path) -> None:
    store = open_file(saved(tmp_path / "x.pth", {"w": torch.zeros(1).expand(10**6, 10**6)}))
    for read in (store.__getitem__, lambda name: store.layout(name)):
        with pytest.raises(InputError, match="without the bytes for it"):
            read("w")
    file = TorchFile(saved(tmp_path / "y.pth", {"w": torch.zeros(4), "n": torch.zeros(100)}))
    key = file.content["w"].storage
    for stored in (
        StoredTensor(key, 1 << 20, torch.float32, 0, (8,), (1,)),  # the file's storage is shorter than the pickle says
        StoredTensor(key, 4, torch.float32, 1, (4,), (1,)),
        StoredTensor(key, 4, torch.float32, -1, (1,), (1,)),
        StoredTensor(key, 4, torch.float32, 0, (2, 2), (1,)),
        StoredTensor("none", 4, torch.float32, 0, (4,), (1,)),
    ):
        with pytest.raises(InputError, match="without the bytes for it"):
            file.read(stored)


def test_the_tensors_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI publishes CLIP as TorchScript: its code is left alone."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))).half()
    torch.jit.save(torch.jit.script(module), tmp_path / "ViT-B-32.pt")
    monkeypatch.setattr(torch.jit, "load", None)
    assert same(open_file(tmp_path / "ViT-B-32.pt"), module.state_dict())


def test_other_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10_000_000))
    cases = {
        tmp_path / "x.pth": "is compressed",
        saved(tmp_path / "list.pth", [1, 2]): "holds no state dict",
        saved(
            tmp_path / "optimizer.pth", {"optimizer": {}, "epoch": 3}
        ): r"holds no state dict.*it holds optimizer, epoch",
    }
    for name, content, message in (
        ("lfs.bin", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("page.bin", b"<!DOCTYPE html><html>", "a web page"),
        ("empty.safetensors", b"", "is empty"),
        ("model.bin", b"GGUF\3\0\0\0", "GGUF.*--lm"),
        ("weights.h5", b"\x89HDF\r\n", "HDF5"),
        ("photo.pth", b"\x89PNG\r\n", "is not a PyTorch file"),
    ):
        (tmp_path / name).write_bytes(content)
        cases[tmp_path / name] = message
    for path, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            open_file(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A file of an old layout, and a zipped one."""
    path, content = tmp_path_factory.mktemp("whole") / "whole.pth", {"w": torch.zeros(3, 4), "m": nn.Linear(2, 2)}
    return saved(path, content, False).read_bytes(), saved(path, content, True).read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_damaged_files_give_tensors_or_one_line(
    whole_files: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, zipped: bool
) -> None:
    path, content = tmp_path_factory.getbasetemp() / "fuzz.pth", bytearray(whole_files[zipped])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for tensor in open_file(path).values():
            assert tensor.nbytes <= len(content)
    except InputError as error:
        assert "\n" not in str(error)
