"""What files and the network may not do: the last lines of the server's threat model (docs/security.md)."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from triptych.checkpoints.gguf import read_gguf
from triptych.checkpoints.store import SafetensorsFile
from triptych.checkpoints.weight_files import open_file
from triptych.engines.onnx.session import open_session
from triptych.errors import InputError

NO_SOCKETS = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("a socket was opened")
class Refused(socket.socket):
    __init__ = refuse
socket.socket, socket.create_connection, socket.getaddrinfo = Refused, refuse, refuse
from triptych.cli import main
sys.argv = ["triptych", *sys.argv[1:]]
main()
"""


def test_26_the_command_line_opens_no_socket(tmp_path: Path) -> None:
    photo = Path(__file__).parents[2] / "src" / "triptych" / "examples" / "dog.jpg"
    command = [sys.executable, "-c", NO_SOCKETS, "caption", str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_27_sparse_tensors_are_refused(tmp_path: Path) -> None:
    """A few bytes could ask for terabytes once they are made dense."""
    big = torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.tensor([1.0]), (1 << 20,) * 2, check_invariants=True)
    torch.save({"a": big, "b": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(InputError):
        store = open_file(tmp_path / "x.pt")
        dict(store.items())


def test_27_a_pickle_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "made"),)

    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(InputError):
        dict(open_file(tmp_path / "x.pt").items())
    assert not (tmp_path / "made").exists()


def safetensors(entries: str | dict[str, object], data: bytes) -> bytes:
    header = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(start: int, end: int, shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


HEADERS = {
    "overlap": safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "twice the same bytes": safetensors({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "hole": safetensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "bytes behind": safetensors({"a": entry(0, 4)}, bytes(12)),
    "beyond the end": safetensors({"a": entry(0, 16)}, bytes(12)),
    "count of 2^63": safetensors({"a": entry(0, 4, [2**63, 0])}, bytes(4)),
    "negative": safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, bytes(4)),
    "name twice": safetensors(f'{{"a": {json.dumps(entry(0, 4))}, "a": {json.dumps(entry(0, 4))}}}', bytes(4)),
    "nested arrays": safetensors('{"a": ' + "[" * 5000 + "]" * 5000 + "}", bytes(4)),
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_28_safetensors_headers(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(InputError) as refused:
        SafetensorsFile(tmp_path / "x.safetensors")
    assert "\n" not in str(refused.value)


def gguf_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf() -> bytes:
    """A whole small file: one text of metadata, one array, one tensor."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    metadata = gguf_string(b"general.architecture") + struct.pack("<I", 8) + gguf_string(b"llama")
    metadata += gguf_string(b"a.list") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 1, 2)
    tensor = gguf_string(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)
    whole = head + metadata + tensor
    return whole + bytes(-len(whole) % 32) + np.arange(4, dtype="<f4").tobytes()


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["safetensors", "gguf"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    word=st.none() | st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([2**63, 2**64 - 1, 2**32, 0])),
    keep=st.floats(0, 1),
)
def test_28_damaged_headers_give_tensors_or_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    changes: list[tuple[float, int]],
    word: tuple[float, int] | None,
    keep: float,
) -> None:
    data = bytearray(gguf() if kind == "gguf" else safetensors({"a": entry(0, 8), "b": entry(8, 12)}, bytes(12)))
    for place, value in changes:
        data[int(place * len(data))] = value
    if word is not None:
        place = int(word[0] * (len(data) - 8))
        data[place : place + 8] = struct.pack("<Q", word[1])
    path = tmp_path_factory.mktemp("header") / f"x.{kind}"
    path.write_bytes(data[: int(keep * len(data)) + 1])
    try:
        if kind == "gguf":
            read_gguf(path)
        else:
            dict(SafetensorsFile(path).items())
    except InputError as error:
        assert "\n" not in str(error)


def test_29_onnx_data_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Graphs are built on this machine; should one be exchanged, it reads no other file."""
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "graph").mkdir()
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "graph" / "g.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match=r"(?i)external|escapes|outside|path"):
        open_session(tmp_path / "graph" / "g.onnx")
