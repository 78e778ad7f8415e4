"""Tiny OpenFlamingo checkpoints over language models as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_openflamingo import WORDS, State, bridge, tower
from tokenizers import Tokenizer

SMALL: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3}

# Of each language model: its config, where its layers lie, what its word embeddings are called
OVER = {
    "mpt": (
        transformers.MptConfig(vocab_size=WORDS, d_model=24, n_layers=4, n_heads=3, max_seq_len=64),
        "transformer.blocks",
        "transformer.wte",
    ),
    "gpt_neox": (transformers.GPTNeoXConfig(**SMALL, intermediate_size=30), "gpt_neox.layers", "gpt_neox.embed_in"),
    "llama": (transformers.LlamaConfig(**SMALL, intermediate_size=30), "model.layers", "model.embed_tokens"),
}


def lm_directory(folder: Path, lm: Any, tokenizer: Tokenizer, **settings: Any) -> Path:
    lm.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"} | settings))
    return folder


def language_model(kind: str) -> Any:
    torch.manual_seed(7)
    lm = transformers.AutoModelForCausalLM.from_config(OVER[kind][0]).eval().requires_grad_(False)
    for name, parameter in lm.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name and name.endswith("weight")))
    lm.tie_weights()
    return lm


def flamingo_state(kind: str, lm: Any) -> State:
    """Over four layers, a gated block before every second; its gates are shut. The layers lie in their wrappers."""
    _, path, words = OVER[kind]
    state = bridge(path, 4)
    own = lm.state_dict()
    state[f"lang_encoder.{words}.weight"] = torch.cat([own[f"{words}.weight"], torch.randn(2, 24)])
    for key, tensor in own.items():
        if key.startswith(f"{path}.0."):
            state[f"lang_encoder.{path}.0.decoder_layer.{key.removeprefix(f'{path}.0.')}"] = tensor
    if kind == "gpt_neox":
        state["lang_encoder.embed_out.weight"] = torch.cat([lm.get_output_embeddings().weight, torch.ones(2, 24)])
    return state | {f"vision_encoder.{key}": tensor for key, tensor in (tower() | {"proj": torch.zeros(2, 2)}).items()}
