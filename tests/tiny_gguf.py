"""Tiny GGUF files, written by the ``gguf`` library."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder

LETTERS = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
WORDS = ["<|im_start|>", "<|im_end|>", *LETTERS, "he", "ll", "hell", "hello", "Ġhello", "12"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GGUF_CONFIG = DecoderConfig(len(WORDS), 64, 2, 2, 96, kv_heads=1, max_positions=64, tied=False)


def write_gguf(path: Path, decoder: Decoder, quantised: bool = False) -> None:
    import gguf

    c, own = decoder.config, decoder.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.layers)
    writer.add_context_length(c.max_positions)
    writer.add_embedding_length(c.dim)
    writer.add_feed_forward_length(c.ffn_dim)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.groups)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3] + [1] * (len(WORDS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, tensor: Tensor) -> None:
        if quantised and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.contiguous().numpy())

    add("token_embd.weight", own["embedding.weight"])
    add("output_norm.weight", own["final_norm.weight"])
    add("output.weight", own["head.weight"])
    for i in range(c.layers):
        block, d = f"blocks.{i}", c.head_width
        q, k, v = own[f"{block}.attention.qkv.weight"].split([c.heads * d, c.groups * d, c.groups * d])
        gate, up = own[f"{block}.ffn.up.weight"].chunk(2)
        for name, tensor in {
            "attn_norm": own[f"{block}.attention_norm.weight"],
            "attn_q": interleaved(q, c.heads),
            "attn_k": interleaved(k, c.groups),
            "attn_v": v,
            "attn_output": own[f"{block}.attention.out.weight"],
            "ffn_norm": own[f"{block}.ffn_norm.weight"],
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": own[f"{block}.ffn.down.weight"],
        }.items():
            add(f"blk.{i}.{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """As llama.cpp's converter stores queries and keys."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
