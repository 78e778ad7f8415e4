"""Language models in GGUF files: for each architecture a table of tensors, and its metadata as our config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.gguf import GGUF, read_gguf
from triptych.checkpoints.tables.rope import Rope, yarn
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig

if TYPE_CHECKING:
    from torch import Tensor

    from triptych.checkpoints.tables.language import Change, KeyTable

GGUF_LLAMA: KeyTable = {
    "embedding": ("token_embd",),
    "blocks.*.attention_norm": ("blk.*.attn_norm",),
    "blocks.*.attention.qkv": ("blk.*.attn_q", "blk.*.attn_k", "blk.*.attn_v"),
    "blocks.*.attention.out": ("blk.*.attn_output",),
    "blocks.*.ffn_norm": ("blk.*.ffn_norm",),
    "blocks.*.ffn.up": ("blk.*.ffn_gate", "blk.*.ffn_up"),
    "blocks.*.ffn.down": ("blk.*.ffn_down",),
    "final_norm": ("output_norm",),
    "head": ("output",),
}
GGUF_PHI3: KeyTable = GGUF_LLAMA | {"blocks.*.attention.qkv": ("blk.*.attn_qkv",), "blocks.*.ffn.up": ("blk.*.ffn_up",)}
GGUF_QK_NORM: KeyTable = {
    "blocks.*.attention.query_norm": ("blk.*.attn_q_norm",),
    "blocks.*.attention.key_norm": ("blk.*.attn_k_norm",),
}
GGUF_POST_NORM: KeyTable = {
    "blocks.*.attention_post_norm": ("blk.*.post_attention_norm",),
    "blocks.*.ffn_post_norm": ("blk.*.post_ffw_norm",),
}
GGUF_OLMO2: KeyTable = {
    name: rows for name, rows in GGUF_LLAMA.items() if name not in ("blocks.*.attention_norm", "blocks.*.ffn_norm")
}
GGUF_OLMO2 |= GGUF_QK_NORM | GGUF_POST_NORM
ROPE_FACTORS = "rope_freqs.weight"
LONG_ROPE = ("rope_factors_short.weight", "rope_factors_long.weight")


@dataclass(frozen=True)
class Fields:
    """The metadata of one architecture in a GGUF file."""

    file: GGUF
    architecture: str

    def __call__(self, name: str, default: Any = None) -> Any:
        """Raises InputError: the field is missing and has no ``default``."""
        value = self.get(name, default)
        if value is None:
            raise InputError(f"{self.file.path} does not say {self.architecture}.{name}")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.architecture}.{name}", default)


def interleaved_rows(stored: Tensor, config: DecoderConfig, name: str) -> Tensor:
    """Queries and keys, whose pairs of components llama.cpp interleaves for the architecture ``llama``; values as they are."""
    if ".attn_v." in name:
        return stored
    return half_split(stored, config.heads if ".attn_q." in name else config.groups, name)


def half_split(stored: Tensor, heads: int, name: str) -> Tensor:
    """Rows of queries or keys ``[H * d, D]`` as rotary positions take them here: pairs (i, i + d/2) instead of (2i, 2i + 1)."""
    if len(stored) % (2 * heads):
        raise InputError(f"{name} has {len(stored)} rows, which are not {heads} heads of an even width")
    return stored.view(heads, len(stored) // heads // 2, 2, -1).transpose(1, 2).reshape(stored.shape)


def llama_from_gguf(read: Fields) -> DecoderConfig:
    """What all of the architectures share."""
    file = read.file
    heads, dim = read("attention.head_count"), read("embedding_length")
    width = read("attention.key_length", dim // heads)
    rotary = read("rope.dimension_count", width)
    if width != read("attention.value_length", width):
        raise InputError(f"{file.path}: values of another width than queries are not covered")
    if read("expert_count", 0):
        raise InputError(f"{file.path}: mixtures of experts are not covered")
    rope = rope_from_gguf(read, rotary)
    return DecoderConfig(
        vocab_size=file.entries["token_embd.weight"].shape[0],
        dim=dim,
        layers=read("block_count"),
        heads=heads,
        ffn_dim=read("feed_forward_length"),
        kv_heads=read("attention.head_count_kv", heads),
        head_dim=width,
        max_positions=rope.max_positions or read("context_length"),
        rotary_dim=None if rotary == width else rotary,
        rope_theta=rope.theta,
        rope_factors=rope.factors,
        rope_magnitude=rope.magnitude,
        window=read.get("attention.sliding_window"),
        eps=read("attention.layer_norm_rms_epsilon"),
        qkv_bias="blk.0.attn_q.bias" in file.entries,
        tied="output.weight" not in file.entries,
    )


def rope_from_gguf(read: Fields, width: int) -> Rope:
    """``width``: components of a head that are rotated."""
    kind, theta = read("rope.scaling.type", "none"), read("rope.freq_base", 10000.0)
    if kind not in ("none", "linear", "longrope", "yarn"):
        raise InputError(
            f"{read.file.path}: rotary positions of the type {kind!r} are not covered: none, linear, longrope and yarn are"
        )
    if kind == "yarn":
        length = read("context_length")
        original = read("rope.scaling.original_context_length", length)
        rope = {"original_max_position_embeddings": original, "max_position_embeddings": length}
        return yarn(rope | {"factor": read("rope.scaling.factor", 1.0)}, theta, width)
    for name in (ROPE_FACTORS, LONG_ROPE[0]):
        if name in read.file.entries:
            return Rope(theta, tuple(read.file.array(name).tolist()))
    factor = float(read("rope.scaling.factor", 1.0))
    return Rope(theta, None if factor == 1 else (factor,) * (width // 2))


def qwen3_from_gguf(read: Fields) -> DecoderConfig:
    return replace(llama_from_gguf(read), qk_norm="head")


def smollm3_from_gguf(read: Fields) -> DecoderConfig:
    """Every fourth layer has no rotary positions; the metadata do not say so."""
    ours = llama_from_gguf(read)
    return replace(ours, unrotated_layers=tuple(range(3, ours.layers, 4)))


def olmo2_from_gguf(read: Fields) -> DecoderConfig:
    if read.get("attention.sliding_window"):
        raise InputError(f"{read.file.path}: OLMo 3, whose layers have sliding windows, is not covered: OLMo 2 is")
    return replace(llama_from_gguf(read), qk_norm="all", pre_norm=False, post_norm=True)


def phi3_from_gguf(read: Fields) -> DecoderConfig:
    """Where the frequencies change at the original length (longrope), texts end there."""
    ours = llama_from_gguf(read)
    if LONG_ROPE[0] not in read.file.entries:
        return ours
    magnitude = read("rope.scaling.attn_factor", 1.0)
    return replace(ours, max_positions=read("rope.scaling.original_context_length"), rope_magnitude=magnitude)


def gemma_from_gguf(read: Fields) -> DecoderConfig:
    ours = llama_from_gguf(read)
    return replace(ours, embed_scale=math.sqrt(ours.dim), activation="gelu_tanh")


def gemma2_from_gguf(read: Fields) -> DecoderConfig:
    """Metadata does not tell the scale of the scores: the model of 27 B parameters (46 layers) alone takes another than 1 / sqrt(d)."""
    ours = gemma_from_gguf(read)
    return replace(
        ours,
        post_norm=True,
        local_layers=tuple(range(0, ours.layers, 2)),
        attention_softcap=read("attn_logit_softcapping", 50.0),
        logit_softcap=read("final_logit_softcapping", 30.0),
        attention_scale=(ours.dim / ours.heads) ** -0.5 if ours.layers == 46 else None,
    )


def gemma3_from_gguf(read: Fields) -> DecoderConfig:
    """As ``gemma2_from_gguf`` for the scale; the model of 27 B parameters has 62 layers."""
    ours = gemma_from_gguf(read)
    return replace(
        ours,
        post_norm=True,
        qk_norm="head",
        local_layers=tuple(layer for layer in range(ours.layers) if (layer + 1) % 6),
        local_rope_theta=read("rope.freq_base_swa", 10000.0),
        attention_scale=(ours.dim / ours.heads) ** -0.5 if ours.layers == 62 else None,
    )


@dataclass(frozen=True)
class Architecture:
    """One ``general.architecture``; see ``tables.language.translate``."""

    table: KeyTable
    config: Callable[[Fields], DecoderConfig]
    changes: Mapping[str, Change] = field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture(GGUF_LLAMA, llama_from_gguf, {"attention.qkv": interleaved_rows}),  # Mistral's files, too
    "qwen2": Architecture(GGUF_LLAMA, llama_from_gguf),
    "qwen3": Architecture(GGUF_LLAMA | GGUF_QK_NORM, qwen3_from_gguf),
    "smollm3": Architecture(GGUF_LLAMA, smollm3_from_gguf, {"attention.qkv": interleaved_rows}),
    "olmo2": Architecture(GGUF_OLMO2, olmo2_from_gguf),
    "phi3": Architecture(GGUF_PHI3, phi3_from_gguf),
    "gemma": Architecture(GGUF_LLAMA, gemma_from_gguf),  # whose norms' weights llama.cpp stores as they are used
    "gemma2": Architecture(GGUF_LLAMA | GGUF_POST_NORM, gemma2_from_gguf),
    "gemma3": Architecture(GGUF_LLAMA | GGUF_POST_NORM | GGUF_QK_NORM, gemma3_from_gguf),
}


def open_gguf(path: Path) -> tuple[GGUF, Architecture, DecoderConfig]:
    """A language model's file, and its metadata as our config.

    Raises:
        InputError: it cannot be read, or is of an architecture or with settings that the decoder does not cover.
    """
    file = read_gguf(path)
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise InputError(f"{path} holds a model of the architecture {name!r}: there are {', '.join(ARCHITECTURES)}")
    try:
        return file, ARCHITECTURES[name], ARCHITECTURES[name].config(Fields(file, name))
    except (TypeError, KeyError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{path}: its metadata is invalid ({error})") from None
