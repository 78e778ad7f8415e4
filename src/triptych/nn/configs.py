"""Sizes and variants of the building blocks. Nothing here needs torch, so that checkpoints can be read and run without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from triptych.errors import InputError

OPT_OFFSET = 2  # OPT's table of positions begins with two rows that no token uses
Activation: TypeAlias = Literal["silu", "relu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class DecoderConfig:
    """The defaults are Llama's."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    ffn_dim: int
    kv_heads: int | None = None  # None = heads
    head_dim: int | None = None  # None = dim / heads
    embed_dim: int | None = None  # None = dim; else projections lead to dim and back
    embed_scale: float = 1.0  # word embeddings are multiplied by it (Gemma)
    max_positions: int = 2048
    positions: Literal["rotary", "learned", "alibi"] = "rotary"
    rotary_dim: int | None = None  # the first components of a head that are rotated; None = all
    rope_theta: float = 10000.0
    rope_factors: tuple[float, ...] | None = None  # each rotary frequency is divided by its own (Llama 3, YaRN)
    rope_magnitude: float = 1.0  # rotated components are multiplied by it (YaRN)
    unrotated_layers: tuple[int, ...] = ()  # layers without positions (SmolLM3)
    alibi_bias_max: float = 8.0  # the exponents of ALiBi's slopes are spread evenly up to it
    window: int | None = None  # the last tokens that a token attends to, itself included; None = all earlier ones
    local_layers: tuple[int, ...] | None = None  # those with the window; None = all
    local_rope_theta: float | None = None  # of layers with the window, without factors (Gemma 3); None = rope_theta
    qk_norm: Literal["head", "all"] | None = None  # over each head of queries and keys (Qwen3), or all (OLMo-2)
    attention_scale: float | None = None  # None = 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # scores become cap * tanh(score / cap) (Gemma 2)
    logit_softcap: float | None = None  # the same for logits
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True  # of layer norms; root mean square norms have none
    pre_norm: bool = True  # a norm before attention and before feed-forward
    post_norm: bool = False  # a norm after them (Gemma 2, OLMo-2); without either, after the residual sum (OPT-350m)
    parallel: bool = False  # attention and feed-forward both read the block's input (GPT-NeoX)
    eps: float = 1e-5
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    tied: bool = True  # the word embeddings are the output layer too

    def __post_init__(self) -> None:
        self.check_sizes()
        self.check_numbers()
        for name in ("unrotated_layers", "local_layers"):
            if not set(getattr(self, name) or ()) <= set(range(self.layers)):
                raise InputError(
                    f"invalid language model config: {name} is {getattr(self, name)}, expected numbers below {self.layers}"
                )
        if self.activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise InputError(
                f"invalid language model config: activation is {self.activation!r}, expected one of {known}"
            )
        if self.parallel and (not self.pre_norm or self.post_norm):
            raise InputError("invalid language model config: parallel needs pre_norm and no post_norm")

    def check_sizes(self) -> None:
        sizes = {
            "vocab_size": (self.vocab_size, 1 << 24),
            "dim": (self.dim, 1 << 16),
            "layers": (self.layers, 1 << 10),
            "heads": (self.heads, 1 << 10),
            "ffn_dim": (self.ffn_dim, 1 << 20),
            "kv_heads": (self.groups, self.heads),
            "head_dim": (self.head_width, 1 << 12),
            "rotary_dim": (self.rotary_width, self.head_width),
            "embed_dim": (self.embed_width, 1 << 16),
            "max_positions": (self.max_positions, 1 << 24),
            "window": (self.window or 1, 1 << 24),
        }
        for name, (size, most) in sizes.items():
            if not 1 <= size <= most:
                raise InputError(f"invalid language model config: {name} is {size}, expected 1 to {most}")
        if self.heads % self.groups or (self.head_dim is None and self.dim % self.heads):
            raise InputError(
                f"invalid language model config: heads is {self.heads}, expected a divisor of dim {self.dim} and a multiple of "
                f"kv_heads {self.groups}"
            )

    def check_numbers(self) -> None:
        if self.positions == "rotary" and (
            self.rotary_width % 2 or min(self.rope_theta, self.local_rope_theta or 1) <= 0
        ):
            raise InputError(
                "invalid language model config: rotary positions need an even rotary_dim and a rope_theta above 0"
            )
        for name in (
            *("embed_scale", "rope_magnitude", "alibi_bias_max"),
            *("attention_scale", "attention_softcap", "logit_softcap"),
        ):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise InputError(f"invalid language model config: {name} is {value}, expected a number above 0")
        if self.rope_factors is not None and len(self.rope_factors) != self.rotary_width // 2:
            raise InputError(
                f"invalid language model config: {len(self.rope_factors)} rope_factors, expected {self.rotary_width // 2}"
            )
        if not all(0 < factor < float("inf") for factor in self.rope_factors or ()):
            raise InputError("invalid language model config: rope_factors must be numbers above 0")

    @property
    def groups(self) -> int:
        """Heads of keys and values (G in the shapes)."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // max(1, self.heads)

    @property
    def rotary_width(self) -> int:
        return self.head_width if self.rotary_dim is None else self.rotary_dim

    @property
    def embed_width(self) -> int:
        return self.embed_dim or self.dim

    def is_local(self, layer: int) -> bool:
        """Whether this layer has the window."""
        return self.window is not None and (self.local_layers is None or layer in self.local_layers)


@dataclass(frozen=True)
class T5Config:
    """An encoder-decoder (``t5.T5``). The defaults are Flan-T5's."""

    vocab_size: int
    dim: int
    layers: int  # of the encoder
    decoder_layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    buckets: int = 32  # of distances
    max_distance: int = 128
    max_positions: int = 4096  # a limit of ours: the biases set none
    eps: float = 1e-6
    activation: Activation = "gelu_tanh"
    gated: bool = True
    tied: bool = False  # the word embeddings are the output layer too
    scale_output: bool = False  # the output layer's input is divided by sqrt(dim)
    start_id: int = 0  # the decoder's first token
    end_id: int = 1  # the last token of a prompt

    @property
    def embed_width(self) -> int:
        return self.dim

    def __post_init__(self) -> None:
        for name, most in (("decoder_layers", 1 << 10), ("max_distance", 1 << 20), ("buckets", 1 << 10)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(
                    f"invalid language model config: {name} is {getattr(self, name)}, expected 1 to {most}"
                )
        if self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise InputError(
                f"invalid language model config: buckets is {self.buckets}, expected a multiple of 4 below twice max_distance"
            )
        if not 0 <= min(self.start_id, self.end_id) <= max(self.start_id, self.end_id) < self.vocab_size:
            raise InputError(
                f"invalid language model config: start_id is {self.start_id} and end_id {self.end_id}, expected ids below "
                f"{self.vocab_size}"
            )
        _ = self.block  # checks the sizes

    @property
    def block(self) -> DecoderConfig:
        """The config of one ``decoder.Block``."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            ffn_dim=self.ffn_dim,
            head_dim=self.head_dim,
            max_positions=self.max_positions,
            positions="learned",
            attention_scale=1.0,
            eps=self.eps,
            activation=self.activation,
            gated=self.gated,
        )


@dataclass(frozen=True)
class ViTConfig:
    """The defaults are CLIP's."""

    dim: int
    layers: int
    heads: int
    mlp_dim: int
    patch_size: int
    image_size: int  # of the square photos that the positions were learned on
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    eps: float = 1e-5
    patch_bias: bool = False
    norm_before: bool = True
    norm_after: bool = True
    has_class_token: bool = True  # SigLIP has none
    class_token: bool = False  # whether its feature is part of the output, before those of the cells
    registers: int = 0  # further tokens beside the cells, without positions (DINOv2)
    layer_scale: bool = False  # each sublayer's output is multiplied by a learned vector (DINOv2)

    def __post_init__(self) -> None:
        if self.class_token and not self.has_class_token:
            raise InputError("invalid image encoder config: class_token is true, but has_class_token is false")

    @classmethod
    def blip2(cls, **others: object) -> ViTConfig:
        """EVA-CLIP's ViT-g/14 of the published BLIP-2 models."""
        published = {"dim": 1408, "layers": 39, "heads": 16, "mlp_dim": 6144, "patch_size": 14, "image_size": 224}
        eva = {"eps": 1e-6, "patch_bias": True, "norm_before": False, "class_token": True}
        return cls(**(published | eva | others))  # type: ignore[arg-type]

    @property
    def grid(self) -> tuple[int, int]:
        return (self.image_size // self.patch_size,) * 2


@dataclass(frozen=True)
class QFormerConfig:
    """The defaults are those of the shipped model, MiniLM's size; ``bert_base`` is the size of the published ones."""

    image_dim: int
    dim: int = 384
    layers: int = 6
    heads: int = 12
    mlp_dim: int = 1536
    queries: int = 32
    cross_attn_every: int = 2
    vocab_size: int = 30523  # BERT's and [DEC]; 0 = no text side, as in the published second stage
    max_positions: int = 512
    dropout: float = 0.1  # of each layer's outputs; BERT also drops attention weights
    eps: float = 1e-12

    @classmethod
    def bert_base(cls, image_dim: int = 1408, **others: object) -> QFormerConfig:
        published = {"dim": 768, "layers": 12, "heads": 12, "mlp_dim": 3072}
        return cls(image_dim, **(published | others))  # type: ignore[arg-type]
