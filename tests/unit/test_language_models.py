"""Language models from directories of transformers', and from tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_decoder import LLAMA, random_decoder
from tiny_gguf import GGUF_CONFIG, MERGES, TEMPLATE, WORDS, write_gguf

from triptych.checkpoints.language_models import build, from_directory, from_gguf
from triptych.checkpoints.tables.language import part_by_part
from triptych.errors import InputError
from triptych.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, random_decoder(GGUF_CONFIG))
    return path


def test_part_by_part() -> None:
    parts = torch.randn(3, 4, 2, 5)  # q, k, v of 4 heads
    stored = parts.transpose(0, 1)
    assert torch.equal(part_by_part(stored.reshape(24, 5), 4, "x"), parts.reshape(24, 5))
    assert torch.equal(part_by_part(stored[..., 0].reshape(24), 4, "x"), parts[..., 0].reshape(24))
    for wrong in (torch.randn(10, 5), torch.tensor(1.0)):
        with pytest.raises(InputError, match=r"x has 10? rows"):
            part_by_part(wrong, 4, "x")


def test_directory(tmp_path: Path, gguf_path: Path) -> None:
    """A model as transformers saves it, in two files, with a tokenizer.json or with vocab.json and merges.txt."""
    original = from_gguf(gguf_path)
    c, own = GGUF_CONFIG, original.decoder.state_dict()
    theirs = {
        "model.embed_tokens.weight": own["embedding.weight"].contiguous(),
        "lm_head.weight": own["head.weight"].contiguous(),
    }
    rest = {"model.norm.weight": own["final_norm.weight"], "model.rotary.inv_freq": torch.randn(4)}
    for i in range(c.layers):
        block, layer = f"blocks.{i}", f"model.layers.{i}"
        q, k, v = own[f"{block}.attention.qkv.weight"].split([64, 32, 32])
        rest |= {f"{layer}.self_attn.{n}_proj.weight": t for n, t in (("q", q), ("k", k), ("v", v))}
        rest[f"{layer}.self_attn.o_proj.weight"] = own[f"{block}.attention.out.weight"]
        gate, up = own[f"{block}.ffn.up.weight"].chunk(2)
        rest |= {f"{layer}.mlp.gate_proj.weight": gate, f"{layer}.mlp.up_proj.weight": up}
        rest[f"{layer}.mlp.down_proj.weight"] = own[f"{block}.ffn.down.weight"]
        rest[f"{layer}.input_layernorm.weight"] = own[f"{block}.attention_norm.weight"]
        rest[f"{layer}.post_attention_layernorm.weight"] = own[f"{block}.ffn_norm.weight"]
    save_file(theirs, tmp_path / "model-00001.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in rest.items()}, tmp_path / "model-00002.safetensors")
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

    lm, tokenizer, report = from_directory(tmp_path)
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
    with pytest.raises(InputError, match="does not fit its own config"):
        from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no usable tokenizer"):
        from_directory(tmp_path)


def test_build_names_what_is_missing() -> None:
    tensors = random_decoder(LLAMA).state_dict()
    del tensors["blocks.1.ffn.up.weight"]
    with pytest.raises(InputError, match=r"file\.gguf does not fit its own config: .*blocks\.1\.ffn\.up\.weight"):
        build(LLAMA, tensors, "file.gguf")


def test_loading_stays_light(gguf_path: Path) -> None:
    """No peer library, and none of torch's compiler, comes in with a model."""
    probe = (
        "import sys; from triptych.checkpoints.language_models import load_language_model; load_language_model(sys.argv[1]);"
        "print(*{'transformers', 'sympy', 'torch._inductor', 'jinja2'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", probe, str(gguf_path)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
