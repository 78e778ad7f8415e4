"""The tensor store: read one at a time, translated on the way, written one at a time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych.checkpoints.place import fill, load_strict, unallocated
from triptych.checkpoints.store import (
    DerivedStore,
    JoinedStore,
    MemoryStore,
    Recipe,
    SafetensorsFile,
    TensorStore,
    renamed,
    shaped,
    write_tensors,
)
from triptych.checkpoints.tables.keys import translated
from triptych.checkpoints.weight_files import open_folder
from triptych.errors import InputError, TriptychError


class Counting(MemoryStore):
    """Notes what is read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return super().__getitem__(name)


TENSORS = {
    "w": torch.randn(3, 4).half(),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "b": torch.randn(5).bfloat16(),
    "yes": torch.tensor([True, False]),
    "int8": torch.arange(-3, 4, dtype=torch.int8),
    "view": torch.randn(4, 3).T,
}


def test_what_is_written_is_read_by_the_library_and_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, MemoryStore(TENSORS))
    library, ours = load_file(path), SafetensorsFile(path)
    assert list(ours) == list(TENSORS)
    for name, tensor in TENSORS.items():
        for other in (library[name], ours[name], ours.layout(name).new_tensor(0)):
            assert other.dtype == tensor.dtype
        assert torch.equal(library[name], tensor) and torch.equal(ours[name], tensor)
        assert ours.layout(name).shape == tensor.shape and ours.layout(name).is_meta
    with pytest.raises(TriptychError, match="b has values that are not finite"):
        write_tensors(path, MemoryStore({"b": torch.tensor([torch.nan])}))


def test_a_fused_tensor_is_read_once_and_layouts_read_nothing() -> None:
    store = Counting({"visual.transformer.resblocks.0.attn.in_proj_weight": torch.randn(12, 4), "x": torch.ones(1)})
    qkv = tuple(f"attention.{x}.weight" for x in ("query", "key", "value"))
    ours, ignored = translated(store, {"visual.transformer.resblocks.*.attn.in_proj_weight": qkv})
    assert {name: x.shape for name, x in ours.layouts().items()} == dict.fromkeys(qkv, (4, 4))
    assert (store.read, ignored) == ([], ("x",))
    assert torch.equal(torch.cat([ours[name] for name in qkv]), next(iter(store.tensors.values())))
    assert store.read == ["visual.transformer.resblocks.0.attn.in_proj_weight"]


def test_tied_tensors_must_be_the_same() -> None:
    table = {"a": "ours", "b": "ours"}
    same = translated({"a.weight": torch.ones(2), "b.weight": torch.ones(2)}, table)[0]
    assert torch.equal(same["ours.weight"], torch.ones(2))
    other = translated({"a.weight": torch.ones(2), "b.weight": torch.zeros(2)}, table)[0]
    with pytest.raises(InputError, match=r"several tensors stand for ours\.weight, which should be tied"):
        other["ours.weight"]


def test_modules_without_memory_are_filled_one_tensor_at_a_time() -> None:
    source = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).state_dict()
    with unallocated():
        module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert all(x.is_meta for x in module.state_dict().values())
    store = Counting(dict(source))
    with pytest.raises(InputError, match=r"missing 0\.bias"):
        fill(module, {k: v for k, v in source.items() if k != "0.bias"})
    fill(module, store, dtype=torch.bfloat16)
    assert sorted(store.read) == sorted(source)
    for name, tensor in module.state_dict().items():
        expected = source[name].bfloat16() if source[name].is_floating_point() else source[name]
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype
    kept = nn.ModuleDict({"lm": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    frozen = kept["lm"].weight
    report = fill(kept, {"head.weight": torch.ones(1, 2), "head.bias": torch.ones(1)}, optional_prefixes=("lm.",))
    assert kept["lm"].weight is frozen and report.missing == ("lm.weight", "lm.bias")
    load_strict(kept, renamed(MemoryStore(kept.state_dict()), {name: name for name in kept.state_dict()}))


def shard(folder: Path, suffix: str, tensors: dict[str, Tensor]) -> Path:
    """A folder with two shards and their index."""
    folder.mkdir()
    whole = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    places = {}
    for i, name in enumerate(tensors):
        file = f"{whole.removesuffix(suffix)[:-1]}-0000{i % 2 + 1}-of-00002.{suffix}"
        places[name] = file
    for file in sorted(set(places.values())):
        part = {name: x.contiguous() for name, x in tensors.items() if places[name] == file}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_by_their_index(tmp_path: Path, suffix: str) -> None:
    folder = shard(tmp_path / "m", suffix, TENSORS)
    store = open_folder(folder)
    assert store.keys() == TENSORS.keys() and all(torch.equal(store[name], x) for name, x in TENSORS.items())
    (folder / "stray.safetensors").write_bytes(b"not read")
    open_folder(folder)
    index = next(folder.glob("*.index.json"))
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"lost": places["w"]}}))
    with pytest.raises(InputError, match="names lost, which is in none of its files"):
        open_folder(folder)
    (folder / places["w"]).unlink()
    with pytest.raises(InputError, match=f"has no {places['w']}, which its index names: download the missing"):
        open_folder(folder)
    index.write_text(json.dumps({"weight_map": {"w": "../x"}}))
    with pytest.raises(InputError, match=r"names '\.\./x', which is no file beside it"):
        open_folder(folder)
    index.write_text(json.dumps({"weight_map": {"w": 3}}))
    with pytest.raises(InputError, match="does not say which files"):
        open_folder(folder)


def test_folders_without_weights_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        open_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="an adapter: merge it"):
        open_folder(tmp_path)


def test_the_later_of_two_stores_wins() -> None:
    first, second = MemoryStore({"a": torch.zeros(1), "b": torch.zeros(1)}), MemoryStore({"b": torch.ones(2)})
    joined: TensorStore = JoinedStore([first, second])
    assert joined["b"].shape == joined.layout("b").shape == (2,)
    doubled = DerivedStore(
        joined, {"c": Recipe(("a", "b"), torch.cat, lambda x: shaped(x[0], [len(x[0]) + len(x[1])]))}
    )
    assert doubled.layout("c").shape == doubled["c"].shape == (3,) and len(doubled) == 1
