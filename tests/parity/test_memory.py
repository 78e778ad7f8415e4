"""Memory: kept while converting and loading, predicted, refused with the numbers. Weights are hashed once."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_blip2_transformers import LM_SIZES, QUERIES, byte_tokenizer, image_processor, parts
from torch import Tensor
from typer.testing import CliRunner

from triptych.checkpoints import locate
from triptych.checkpoints.locate import check_files, load_config
from triptych.checkpoints.store import TensorStore, write_tensors
from triptych.cli import app
from triptych.convert.checkpoint import convert_checkpoint
from triptych.errors import InputError
from triptych.models import memory
from triptych.models.memory import StoredWeights, bytes_needed, choose_dtype, estimate, weights_in

MEASURE = """
import re, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
def print_peak():
    status = Path("/proc/self/status")  # ru_maxrss may be that of the process that started this one
    own = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else None
    print("peak", 1024 * (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
{work}
print_peak()
"""
CONVERT = "from triptych.convert.checkpoint import convert_checkpoint; convert_checkpoint(*map(Path, sys.argv[1:]))"
LOAD = "from triptych.models.blip2 import load_blip2; load_blip2(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))"
BESIDES = 500_000_000


def peaks(work: str, *arguments: object) -> list[int]:
    """Bytes of memory at the peak of a process so far, wherever ``work`` calls ``print_peak``, and at its end."""
    command = [sys.executable, "-c", MEASURE.format(work=work), *map(str, arguments)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("peak ")]


def peak(work: str, *arguments: object) -> int:
    """Bytes of memory at the peak of a process that does ``work``."""
    return peaks(work, *arguments)[-1]


class Constant(TensorStore):
    """Tensors of these layouts, in fp16, made when they are asked for."""

    def __init__(self, layouts: dict[str, Tensor]) -> None:
        self.layouts_ = layouts

    @property
    def names(self) -> Collection[str]:
        return self.layouts_

    def layout(self, name: str) -> Tensor:
        return torch.empty(self.layouts_[name].shape, dtype=torch.float16, device="meta")

    def __getitem__(self, name: str) -> Tensor:
        return torch.full(self.layouts_[name].shape, 0.01, dtype=torch.float16)


def save_published(folder: Path, config: Any, tokenizer: Any, shards: int) -> int:
    """A BLIP-2 of this config in shards of fp16, as transformers saves it; returns how many parameters it has."""
    with torch.device("meta"):
        layouts = transformers.Blip2ForConditionalGeneration(config).state_dict()
    layouts.pop("language_model.lm_head.weight")
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.save_pretrained(folder)
    transformers.Blip2Processor(image_processor(), tokenizer, num_query_tokens=QUERIES).save_pretrained(folder)
    names = sorted(layouts)
    files = {f"model-0000{i + 1}-of-0000{shards}.safetensors": names[i::shards] for i in range(shards)}
    for file, keys in files.items():
        write_tensors(folder / file, Constant({key: layouts[key] for key in keys}))
    places = {key: file for file, keys in files.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sum(layout.numel() for layout in layouts.values())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP-2 over an OPT of 150 million parameters in two shards."""
    folder, tokenizer = tmp_path_factory.mktemp("published"), byte_tokenizer()
    text = LM_SIZES | {"hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 12, "num_attention_heads": 8}
    text |= {"word_embed_proj_dim": 1024, "vocab_size": len(tokenizer), "eos_token_id": 2}
    save_published(folder, transformers.Blip2Config(**parts(transformers.OPTConfig(**text), None)), tokenizer, 2)
    return folder


@pytest.fixture(scope="module")
def checkpoint(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("ours") / "blip2"
    convert_checkpoint(published, target)
    return target


def test_converting_takes_no_more_than_a_shard(published: Path, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in published.glob("*.safetensors"))
    assert largest > 140_000_000
    assert peak(CONVERT, published, tmp_path / "ours") <= 1.3 * largest + BESIDES
    stored = (tmp_path / "ours" / "triptych.safetensors").stat().st_size
    assert stored == pytest.approx(sum(path.stat().st_size for path in published.glob("*.safetensors")), rel=0.01)


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4)])
def test_loading_takes_the_weights_and_little_more(checkpoint: Path, dtype: str, width: int) -> None:
    weights = (checkpoint / "triptych.safetensors").stat().st_size // 2 * width
    taken = peak(LOAD, checkpoint, dtype)
    assert taken <= 1.15 * weights + BESIDES
    assert taken == pytest.approx(bytes_needed(weights_in(checkpoint), getattr(torch, dtype)), rel=0.1)


def test_what_does_not_fit_is_refused_with_the_numbers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    count = estimate(checkpoint, cpu)["parameters"]
    assert 150e6 < count < 160e6
    for gigabytes, precision, expected in (
        (9.0, None, torch.float32),
        (0.8, None, torch.bfloat16),
        (0.8, "fp16", torch.float16),
    ):
        monkeypatch.setattr(memory, "bytes_available", lambda device, free=gigabytes: int(free * 1e9))
        assert choose_dtype(checkpoint, precision, cpu) == expected
    with pytest.raises(
        InputError, match=r"needs 0\.9 GB of memory in fp32, and 0\.8 GB are free; bf16 needs about half"
    ):
        choose_dtype(checkpoint, "fp32", cpu)
    monkeypatch.setattr(memory, "bytes_available", lambda device: 500_000_000)
    with pytest.raises(InputError, match=r"needs 0\.6 GB of memory in bf16, and 0\.5 GB are free: free some"):
        choose_dtype(checkpoint, None, cpu)
    monkeypatch.setattr(memory, "bytes_available", lambda device: None)
    assert choose_dtype(checkpoint, None, cpu) == torch.float32


def test_what_the_prediction_counts() -> None:
    """The weights in their new width; the largest tensor once more where it is cast; a language model of its own file in fp32 first."""
    runtime = bytes_needed(StoredWeights(0, 0, 0, 0, torch.float16), torch.float16)
    weights = StoredWeights(1000, 0, 600, 500, torch.float16)
    assert bytes_needed(weights, torch.float16) == runtime + 2000
    assert bytes_needed(weights, torch.bfloat16) == runtime + 2500
    assert bytes_needed(weights, torch.float32) == runtime + 4500
    assert bytes_needed(weights, torch.int8) == runtime + 1900  # the language model's 600 in a byte, the rest in two
    assert bytes_needed(weights._replace(outside=900), torch.float16) == runtime + 3600


@pytest.mark.parametrize("name", ["checkpoint", "published"])
def test_the_command_that_predicts(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published folder is not converted for it."""
    folder, home = request.getfixturevalue(name), tmp_path / "home"
    monkeypatch.setenv("TRIPTYCH_HOME", str(home))
    ended = CliRunner().invoke(app, ["info", str(folder), "--estimate", "--json"], catch_exceptions=False)
    record = json.loads(ended.stdout)
    assert 150e6 < record["parameters"] < 160e6 and not (home / "converted").exists()
    assert record["needed_gb"]["fp32"] == pytest.approx(record["parameters"] * 4 / 1e9 + 0.32, abs=0.02)
    assert record["available_gb"] > 0 and record["precision"] in ("fp32", "bf16", None)


def test_weights_are_hashed_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path))
    hashed: list[str] = []
    original = locate.sha256_of_file
    monkeypatch.setattr(locate, "sha256_of_file", lambda path: hashed.append(path.name) or original(path))
    weights = checkpoint / "triptych.safetensors"
    for _ in range(2):
        check_files(checkpoint, load_config(checkpoint))
    assert hashed.count("triptych.safetensors") == 1
    os.utime(weights, (1, 1))
    check_files(checkpoint, load_config(checkpoint))
    assert hashed.count("triptych.safetensors") == 2
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7b")
    with pytest.raises(InputError, match="is damaged or of another checkpoint"):
        check_files(checkpoint, load_config(checkpoint))
