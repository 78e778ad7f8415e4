"""Language models from directories of transformers', and from tensors."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_blip2 import byte_tokenizer
from tiny_decoder import LLAMA, as_transformers, random_decoder
from tiny_gguf import GGUF_CONFIG, MERGES, TEMPLATE, WORDS

from triptych.checkpoints.gguf_models import ARCHITECTURES
from triptych.checkpoints.language_models import build, load_language_model
from triptych.checkpoints.tables.language import FAMILIES, config_from_hf, part_by_part
from triptych.checkpoints.tables.vision import VISION_TABLES
from triptych.errors import InputError
from triptych.nn.cnn import ENCODERS
from triptych.nn.decoder import Decoder
from triptych.text.byte_level import TEXT_SPLITS
from triptych.text.tokenizer import TextTokenizer


def test_part_by_part() -> None:
    parts = torch.randn(3, 4, 2, 5)  # q, k, v of 4 heads
    config = replace(LLAMA, heads=4, kv_heads=4)
    stored = parts.transpose(0, 1)
    assert torch.equal(part_by_part(stored.reshape(24, 5), config, "x"), parts.reshape(24, 5))
    assert torch.equal(part_by_part(stored[..., 0].reshape(24), config, "x"), parts[..., 0].reshape(24))
    for wrong in (torch.randn(10, 5), torch.tensor(1.0)):
        with pytest.raises(InputError, match=r"x has 10? rows"):
            part_by_part(wrong, config, "x")


def test_directory(tmp_path: Path, gguf_path: Path) -> None:
    """A model as transformers saves it, in two files, with a tokenizer.json or with vocab.json and merges.txt."""
    original = load_language_model(gguf_path)
    c, own = GGUF_CONFIG, original.decoder.state_dict()
    tensors = as_transformers(original.decoder)
    theirs = {name: tensors.pop(name) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    rest = tensors | {"model.rotary.inv_freq": torch.randn(4)}
    save_file(theirs, tmp_path / "model-00001.safetensors")
    save_file(rest, tmp_path / "model-00002.safetensors")
    config = {
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))

    lm, tokenizer, report = load_language_model(tmp_path)
    assert report.ignored == ("model.rotary.inv_freq",) and len(report.mapped) == 21
    for name, tensor in own.items():
        assert torch.equal(lm.state_dict()[name], tensor), name
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.chat(messages) == original.tokenizer.chat(messages) and tokenizer.eos_ids == {1}

    tokenizer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").unlink()
    again = TextTokenizer.from_directory(tmp_path)
    assert again.chat(messages) == tokenizer.chat(messages)
    assert again.encode("a<|im_end|>") == tokenizer.encode("a<|im_end|>") and 1 not in again.encode("a<|im_end|>")

    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 128, "head_dim": 32}))
    with pytest.raises(InputError, match="does not fit Decoder: "):
        load_language_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no usable tokenizer"):
        load_language_model(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny Llama as a directory of transformers'."""
    decoder = random_decoder(LLAMA)
    save_file(as_transformers(decoder), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_SETTINGS))
    byte_tokenizer().tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


LLAMA_SETTINGS = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def same(ours: Decoder) -> bool:
    expected = random_decoder(LLAMA).state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("shards", [1, 2])
def test_bin_files(saved: Path, shards: int) -> None:
    tensors = [*load_file(saved / "model.safetensors").items()]
    for shard in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        torch.save(dict(tensors[shard::shards]), saved / name)
    torch.save({"of the training": 1}, saved / "optimizer.bin")
    (saved / "model.safetensors").unlink()
    assert same(load_language_model(saved).decoder)
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(subprocess.run))
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        load_language_model(saved)


def test_within_another_model(saved: Path) -> None:
    """The text side of a model with pictures, under the prefixes of older and newer versions."""
    tensors = load_file(saved / "model.safetensors")
    for prefix in ("language_model.model.", "model.language_model."):
        renamed = {key.replace("model.", prefix, 1): tensor for key, tensor in tensors.items()}
        save_file(renamed | {"vision_tower.patches.weight": torch.randn(2)}, saved / "model.safetensors")
        lm, _, report = load_language_model(saved)
        assert same(lm) and report.ignored == ("vision_tower.patches.weight",)


def test_within_another_module(saved: Path) -> None:
    """A prefix that the output layer has as well."""
    tensors = load_file(saved / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    (saved / "config.json").write_text(json.dumps(LLAMA_SETTINGS | {"tie_word_embeddings": False}))
    for prefix in ("", "language_model.", "base_model.model."):
        within = {f"{prefix}{key}": tensor for key, tensor in tensors.items()}
        save_file(within | {"vision_tower.patches.weight": torch.randn(2)}, saved / "model.safetensors")
        lm, _, report = load_language_model(saved)
        assert torch.equal(lm.state_dict()["head.weight"], tensors["lm_head.weight"])
        assert report.ignored == ("vision_tower.patches.weight",)


def test_every_end_token_counts(saved: Path) -> None:
    (saved / "config.json").write_text(json.dumps(LLAMA_SETTINGS | {"eos_token_id": 3}))
    assert load_language_model(saved).tokenizer.eos_ids == {3}
    (saved / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 7, -1]}))
    (saved / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    assert load_language_model(saved).tokenizer.eos_ids == {3, 4, 7, 256}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised \(bitsandbytes\)"),
        ({"model_type": "mamba"}, "type 'mamba' are not covered"),
        ({"num_attention_heads": 5}, "heads is 5"),
    ],
)
def test_directories_that_are_refused(saved: Path, change: dict[str, object], words: str) -> None:
    (saved / "config.json").write_text(json.dumps(LLAMA_SETTINGS | change))
    with pytest.raises(InputError, match=words):
        load_language_model(saved)


def test_adapters_and_folders_without_weights_are_refused(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_language_model(saved)
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter: merge it"):
        load_language_model(saved)


def test_configs_of_older_versions() -> None:
    """Fields as earlier versions of transformers named them say the same."""
    gemma = {"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7}
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    old = config_from_hf(gemma | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "rope_local_base_freq": 1e4})
    assert old == config_from_hf(gemma | {"rope_parameters": rope})
    assert old.local_layers == (0, 1, 2, 3, 4, 6) and old.rope_factors == (8.0,) * 128 and old.heads == 8
    assert (old.rope_theta, old.local_rope_theta) == (1e6, 1e4)
    first = {name: value for name, value in LLAMA_SETTINGS.items() if name != "max_position_embeddings"}
    assert config_from_hf(first | {"max_sequence_length": 512}).max_positions == 512
    assert config_from_hf(first).max_positions == 2048
    phi = LLAMA_SETTINGS | {"model_type": "phi3", "original_max_position_embeddings": 32}
    su = {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
    config = config_from_hf(phi | {"rope_scaling": su})
    assert config.max_positions == 32 and config.rope_factors == (1.0, 2.0)
    assert config.rope_magnitude == pytest.approx((1 + math.log(2) / math.log(32)) ** 0.5)


def test_build_names_what_is_missing() -> None:
    tensors = random_decoder(LLAMA).state_dict()
    del tensors["blocks.1.ffn.up.weight"]
    with pytest.raises(InputError, match=r"file\.gguf does not fit Decoder: missing blocks\.1\.ffn\.up\.weight"):
        build(LLAMA, tensors, "file.gguf")


def test_loading_stays_light(gguf_path: Path) -> None:
    """No peer library, and none of torch's compiler, comes in with a model."""
    probe = (
        "import sys; from triptych.checkpoints.language_models import load_language_model; load_language_model(sys.argv[1]);"
        "print(*{'transformers', 'sympy', 'torch._inductor', 'jinja2'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", probe, str(gguf_path)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_page_of_models_names_what_can_be_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text(encoding="utf-8")
    tables = [part.partition("\n\n")[0] for part in page.split("|---|---|\n")[1:]]
    named = [
        {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
        for table in tables
    ]
    assert named == [FAMILIES.keys(), ARCHITECTURES.keys(), VISION_TABLES.keys()]
    splits = page.partition("splits texts as one of")[2].partition("##")[0]
    assert {*re.findall(r"`([\w-]+)`", splits)} == TEXT_SPLITS.keys()
    assert all(f"`{name}`" in page for name in ENCODERS)
