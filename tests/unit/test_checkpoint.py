"""Checkpoints: what comes back, what is refused, and what a crash leaves."""

import json
import os
import struct
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from triptych.checkpoints import format as checkpoint
from triptych.checkpoints.config import CheckpointConfig, EncoderSpec
from triptych.checkpoints.format import (
    load_checkpoint,
    save_checkpoint,
    sha256_of,
)
from triptych.checkpoints.place import load_strict
from triptych.checkpoints.store import TensorStore, load_tensors
from triptych.checkpoints.torch_file import TorchFile
from triptych.errors import InputError, TriptychError

CONFIG = CheckpointConfig(system="sat", model={"width": 5}, encoder=EncoderSpec("tiny", stored=True))
WIDER = msgspec.structs.replace(CONFIG, model={"width": 6})


def some_tensors() -> dict[str, Tensor]:
    return {"b.weight": torch.randn(5, 4), "a.bias": torch.randn(7), "steps": torch.randint(9, ())}


def everything(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# Saving


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = some_tensors()
    tensors["transposed"] = torch.randn(3, 6).T
    tensors["tied"] = tensors["a.bias"]
    save_checkpoint(tmp_path / "new" / "m", config=CONFIG, tensors=tensors, extra_files={"vocab.json": '["가"]'})
    config, loaded = load_checkpoint(tmp_path / "new" / "m")
    assert same(loaded, tensors)
    assert msgspec.structs.replace(config, triptych="unknown", files={}) == CONFIG
    assert json.loads((tmp_path / "new" / "m" / "config.json").read_text())["format"] == 2
    assert json.loads((tmp_path / "new" / "m" / "vocab.json").read_text(encoding="utf-8")) == ["가"]
    assert set(everything(tmp_path)) == {f"new/m/{n}" for n in ("config.json", "triptych.safetensors", "vocab.json")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_small_and_read_as_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"w": torch.randn(100, 100).to(dtype), "q": torch.randint(-128, 127, (9,), dtype=torch.int8)}
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=tensors)
    assert (tmp_path / "m" / "triptych.safetensors").stat().st_size < 21_000
    loaded = load_tensors(tmp_path / "m" / "triptych.safetensors")
    assert same(loaded, {"w": tensors["w"].float(), "q": tensors["q"]})
    assert loaded["w"].dtype == torch.float32
    assert loaded["q"].dtype == torch.int8


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=some_tensors(), extra_files={"vocab.json": "{}"})
    tensors = some_tensors()
    save_checkpoint(tmp_path / "m", config=WIDER, tensors=tensors)
    config, loaded = load_checkpoint(tmp_path / "m")
    assert config.model["width"] == 6
    assert same(loaded, tensors)
    assert set(everything(tmp_path)) == {"m/config.json", "m/triptych.safetensors"}


def test_a_save_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=some_tensors())
    (tmp_path / "latest").symlink_to("m")
    tensors = some_tensors()
    save_checkpoint(tmp_path / "latest", config=CONFIG, tensors=tensors)
    assert (tmp_path / "latest").is_symlink()
    assert same(load_checkpoint(tmp_path / "m")[1], tensors)


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_failed_rename_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, error: BaseException
) -> None:
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=some_tensors())
    before = everything(tmp_path)
    rename, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == fails_at:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(TriptychError if isinstance(error, OSError) else KeyboardInterrupt):
        save_checkpoint(tmp_path / "m", config=CONFIG, tensors=some_tensors())
    assert len(calls) >= fails_at
    assert everything(tmp_path) == before
    load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("dies_before", ["writing", "first rename", "second rename", "deleting the old"])
def test_a_killed_save_leaves_one_whole_checkpoint_and_the_next_save_clears_up(
    tmp_path: Path, dies_before: str
) -> None:
    old = some_tensors()
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=old)
    point = ["writing", "first rename", "second rename", "deleting the old"].index(dies_before)
    child = os.fork()
    if child == 0:  # dies as by kill -9: no handler, no clean-up
        renames = iter(range(1, 9))
        rename = Path.replace
        if point == 0:
            checkpoint._write_config = lambda *_: os._exit(9)  # type: ignore[assignment]
        if point == 3:
            checkpoint.shutil.rmtree = lambda path, **_: os._exit(9) if Path(path).name == ".m.old" else None  # type: ignore[assignment,func-returns-value]
        Path.replace = lambda self, to: os._exit(9) if next(renames) == point else rename(self, to)  # type: ignore[method-assign,assignment,return-value]
        save_checkpoint(tmp_path / "m", config=WIDER, tensors=old)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / "m").exists() == (dies_before != "second rename")
    config, loaded = load_checkpoint(tmp_path / "m")
    assert config.model["width"] == (6 if dies_before == "deleting the old" else 5)
    assert same(loaded, old)
    tensors = some_tensors()
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=tensors)
    assert same(load_checkpoint(tmp_path / "m")[1], tensors)
    assert set(everything(tmp_path)) == {"m/config.json", "m/triptych.safetensors"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=some_tensors())
    before = everything(tmp_path)
    write = checkpoint.write_tensors

    def on_full_disk(path: Path, tensors: TensorStore) -> None:
        write(path, tensors)
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    monkeypatch.setattr(checkpoint, "write_tensors", on_full_disk)
    with pytest.raises(TriptychError, match=r"cannot save .*m: the disk is full"):
        save_checkpoint(tmp_path / "m", config=CONFIG, tensors=some_tensors())
    assert everything(tmp_path) == before
    with pytest.raises(TriptychError, match=r"cannot save .*m: File exists$"):
        save_checkpoint(tmp_path / "m" / "config.json" / "m", config=CONFIG, tensors=some_tensors())


def test_a_save_deletes_nothing_that_is_not_a_checkpoint(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=some_tensors())
    (tmp_path / "m" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = everything(tmp_path)
    for target in (photos, tmp_path / "m", tmp_path / "file"):
        with pytest.raises(InputError, match=target.name):
            save_checkpoint(target, config=CONFIG, tensors=some_tensors())
    assert everything(tmp_path) == before
    save_checkpoint(tmp_path / "empty", config=CONFIG, tensors=some_tensors())
    load_checkpoint(tmp_path / "empty")


def test_a_diverged_training_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TriptychError, match=r"b\.weight.*not finite"):
        save_checkpoint(
            tmp_path / "m", config=CONFIG, tensors=some_tensors() | {"b.weight": torch.tensor([1.0, torch.nan])}
        )
    assert not list(tmp_path.iterdir())


# Loading


def test_files_of_two_checkpoints_are_not_taken_for_one(tmp_path: Path) -> None:
    for name in ("m", "n"):
        save_checkpoint(
            tmp_path / name, config=CONFIG, tensors=some_tensors(), extra_files={"vocab.json": f'["{name}"]'}
        )
    for file in ("triptych.safetensors", "vocab.json"):
        original = (tmp_path / "m" / file).read_bytes()
        (tmp_path / "m" / file).write_bytes((tmp_path / "n" / file).read_bytes())
        with pytest.raises(InputError, match=rf"m/{file} is damaged or of another checkpoint"):
            load_checkpoint(tmp_path / "m")
        (tmp_path / "m" / file).unlink()
        with pytest.raises(InputError, match=rf"cannot read .*m/{file}"):
            load_checkpoint(tmp_path / "m")
        (tmp_path / "m" / file).write_bytes(original)
    load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensors = {"good": torch.randn(4), "bad": torch.randn(4, 4).to(dtype)}
    tensors["bad"][2, 3] = value
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x\.safetensors: the tensor bad has values that are not finite"):
        load_tensors(tmp_path / "x.safetensors")


def test_tensors_of_odd_shapes_are_read_and_of_odd_dtypes_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "yes": torch.tensor([True])}
    save_file(tensors, path)
    assert same(load_tensors(path), tensors)
    save_file({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(InputError, match="unsupported dtype F8_E4M3"):
        load_tensors(path)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        for read in (load_tensors, TorchFile):
            with pytest.raises(InputError, match=str(path)):
                read(Path(path))


VALID = save({"w": torch.randn(3, 4), "h": torch.randn(5).half(), "i": torch.arange(6)})


def header(fields: object, body: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + body


def flipped(bits: list[int]) -> bytes:
    data = bytearray(VALID)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


NUMBERS = st.integers(0, 2**64)
HEADERS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "F8_E5M2", "C64", "F4", "?"]),
        "shape": st.lists(NUMBERS, max_size=6),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
    }
)
HOSTILE = st.one_of(
    st.binary(max_size=300),
    st.lists(st.integers(0, len(VALID) * 8 - 1), min_size=1, max_size=4).map(flipped),
    st.integers(0, len(VALID) - 1).map(lambda length: VALID[:length]),
    NUMBERS.map(lambda length: struct.pack("<Q", length % 2**64) + VALID[8:]),
    st.dictionaries(st.text(max_size=5), HEADERS, max_size=3).map(lambda fields: header(fields, bytes(64))),
)


@settings(max_examples=400, deadline=None)
@given(HOSTILE)
def test_any_bytes_give_tensors_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        tensors = load_tensors(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert all(tensor.isfinite().all() and tensor.nbytes <= 4 * len(data) for tensor in tensors.values())


def test_a_header_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in (2**40, 2**63, 2**64 - 1, 0, len(VALID)):
        path.write_bytes(struct.pack("<Q", length) + VALID[8:])
        with pytest.raises(InputError, match="not a safetensors file, or is truncated"):
            load_tensors(path)


# Into modules


def test_strict_loading_copies_every_key() -> None:
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    report = load_strict(target, source.state_dict())
    assert same(target.state_dict(), source.state_dict())
    assert (set(report.mapped), report.missing, report.ignored) == ({"weight", "bias"}, (), ())


def test_strict_loading_names_what_does_not_fit_and_changes_nothing() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    tensors = {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(3), "2.bias": torch.randn(3)}
    with pytest.raises(InputError) as caught:
        load_strict(module, tensors, source="some/model.safetensors")
    assert str(caught.value) == (
        "some/model.safetensors does not fit Sequential: missing 1.weight; missing 1.bias; unexpected 2.bias and 1 more"
    )
    assert same(module.state_dict(), before)
    with pytest.raises(InputError, match=r"0\.weight is \(4, 3\) instead of \(3, 4\)"):
        load_strict(module, before | {"0.weight": torch.randn(4, 3)})


def test_only_the_named_prefixes_may_be_missing_or_ignored() -> None:
    module = nn.ModuleDict({"lm": nn.Linear(4, 3), "head": nn.Linear(3, 2)})
    frozen = module["lm"].weight.clone()
    tensors = {"head.weight": torch.randn(2, 3), "head.bias": torch.randn(2), "optimizer.step": torch.zeros(1)}
    report = load_strict(module, tensors, optional_prefixes=("lm.",), ignored_prefixes=("optimizer.",))
    assert set(report.mapped) == {"head.weight", "head.bias"}
    assert set(report.missing) == {"lm.weight", "lm.bias"}
    assert report.ignored == ("optimizer.step",)
    assert torch.equal(module["lm"].weight, frozen)
    assert torch.equal(module["head"].weight, tensors["head.weight"])
    with pytest.raises(InputError, match=r"unexpected optimizer\.step"):
        load_strict(module, tensors, optional_prefixes=("lm.",))


# Fingerprints


def test_the_fingerprint_sees_names_dtypes_shapes_and_every_byte_but_no_order() -> None:
    tensors = {"a": torch.randn(4, 6), "b": torch.randn(3).bfloat16(), "c": torch.tensor(True), "d": torch.zeros(0)}
    base = sha256_of(tensors)
    assert sha256_of(dict(reversed(tensors.items()))) == base
    assert sha256_of({key: tensor.clone() for key, tensor in tensors.items()}) == base
    changed = tensors["a"].clone()
    changed.view(torch.uint8)[3, 23] ^= 1
    variants = [
        tensors | {"a": changed},
        tensors | {"a": tensors["a"].reshape(6, 4)},
        tensors | {"b": tensors["b"].view(torch.float16)},
        tensors | {"d": torch.zeros(0, 2)},
        {("x" if key == "a" else key): tensor for key, tensor in tensors.items()},
    ]
    assert len({base, *map(sha256_of, variants)}) == 6
    strided = {"a": torch.randn(6, 4).T}
    assert sha256_of(strided) == sha256_of({"a": strided["a"].contiguous()})
    module = nn.Linear(3, 2)
    assert sha256_of(module) == sha256_of(module.state_dict())


def test_a_checkpoint_that_calls_its_tensors_as_before_opens(tmp_path: Path) -> None:
    """They lay in model.safetensors."""
    tensors = some_tensors()
    save_checkpoint(tmp_path / "m", config=CONFIG, tensors=tensors)
    (tmp_path / "m" / "triptych.safetensors").rename(tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["files"] = {"model.safetensors": config["files"]["triptych.safetensors"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert same(load_checkpoint(tmp_path / "m")[1], tensors)
