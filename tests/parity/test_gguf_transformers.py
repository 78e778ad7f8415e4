"""GGUF files of every architecture, written from transformers' random models as llama.cpp's converter writes them: the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tiny_gguf import MERGES, WORDS, interleaved
from torch import Tensor

from triptych.checkpoints.language_models import load_language_model

SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
GEMMA = SMALL | {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.0],
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LAYERS6 = {"num_hidden_layers": 6}
PERMUTED = ("llama", "smollm3")  # whose rotary pairs the converter interleaves
CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=12),
    "qwen3, yarn": transformers.Qwen3Config(**SMALL, rope_parameters=YARN),
    "smollm3": transformers.SmolLM3Config(**SMALL | LAYERS6),
    "olmo2": transformers.Olmo2Config(**SMALL),
    "phi3": transformers.Phi3Config(**SMALL),
    "phi3, long": transformers.Phi3Config(**SMALL, rope_parameters=LONG, original_max_position_embeddings=32),
    "gemma": transformers.GemmaConfig(**SMALL, head_dim=12),
    "gemma2": transformers.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": transformers.Gemma3TextConfig(**GEMMA | LAYERS6),
}


def metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    """What convert_hf_to_gguf.py writes, by the library's names."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if width := getattr(config, "head_dim", None):
        writer.add_key_length(width)
        writer.add_value_length(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    if cap := getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(cap)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors((1 + torch.tensor(2.0).log() / torch.tensor(32.0).log()).sqrt().item())
        writer.add_tensor("rope_factors_short.weight", torch.tensor(rope["short_factor"]).numpy())
        writer.add_tensor("rope_factors_long.weight", torch.tensor(rope["long_factor"]).numpy())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(MERGES)


def stored(key: str, tensor: Tensor, config: Any) -> Tensor:
    """A tensor as the converter stores it."""
    if config.model_type.startswith("gemma") and key.endswith("norm.weight"):
        return tensor + 1
    if config.model_type in PERMUTED and ".q_proj." in key:
        return interleaved(tensor, config.num_attention_heads)
    if config.model_type in PERMUTED and ".k_proj." in key:
        return interleaved(tensor, config.num_key_value_heads)
    return tensor


def write(path: Path, model: Any, architecture: str) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    metadata(writer, config)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key != "lm_head.weight" or not config.tie_word_embeddings:
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(name, stored(key, tensor, config).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
    theirs.tie_weights()
    write(tmp_path / "model.gguf", theirs, name.partition(",")[0])
    ours, _, report = load_language_model(tmp_path / "model.gguf")
    assert not report.ignored
    ids = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    assert (ours.logits(ours(ids)) - expected).abs().max() <= 1e-5 * expected.abs().max()
