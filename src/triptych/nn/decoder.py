"""The decoder-only language model: one transformer with a few switches, for Llama-like models (SmolLM2, Qwen2, Mistral), OPT,
GPT-NeoX (Black et al. 2022; Pythia) and MPT.

The cache of earlier tokens is passed in, so one model serves many runs at once. The loop over the blocks may be owned from
outside, with other layers in between:

    x, context = lm.embed_inputs(input_ids, cache=cache)
    for i, block in enumerate(lm.blocks):
        x = block(x, context, cache[i])
    logits = lm.logits(lm.final_hidden(x))

Shapes (legend in ``attention.py``): G heads of keys and values, d width of a head, r of its rotary part, E width of the
embeddings (D, but for OPT-350m).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn import masks
from triptych.nn.attention import Cache, attend, attention_weights, merge_heads
from triptych.nn.cache import KVCache
from triptych.nn.linear import Embedding, Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
OPT_OFFSET = 2  # OPT's table of positions begins with two rows that no token uses


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
    embed_dim: int | None = None  # None = dim; else a projection leads in and another out
    max_positions: int = 2048
    positions: Literal["rotary", "learned", "alibi"] = "rotary"
    rotary_dim: int | None = None  # the first components of a head that are rotated; None = all
    rope_theta: float = 10000.0
    rope_factors: tuple[float, ...] | None = None  # each rotary frequency is divided by its own (Llama 3)
    alibi_bias_max: float = 8.0  # the exponents of ALiBi's slopes are spread evenly up to it
    window: int | None = None  # tokens that a token attends to, itself included; None = all earlier ones
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True  # of layer norms; root mean square norms have none
    pre_norm: bool = True  # False: the norm follows the residual sum, and there is no final one (OPT-350m)
    parallel: bool = False  # attention and feed-forward both read what enters the block (GPT-NeoX)
    eps: float = 1e-5
    activation: Literal["silu", "relu", "gelu", "gelu_tanh"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    tied: bool = True  # the word embeddings are the output layer too

    def __post_init__(self) -> None:
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
                f"{self.heads} heads fit neither a width of {self.dim} nor {self.groups} heads of keys: they must divide"
            )
        if self.positions == "rotary" and (self.rotary_width % 2 or self.rope_theta <= 0):
            raise InputError("rotary positions need an even rotary_dim and a theta above 0")
        if self.positions == "alibi" and self.alibi_bias_max <= 0:
            raise InputError(f"ALiBi needs an alibi_bias_max above 0, not {self.alibi_bias_max}")
        if self.rope_factors is not None and len(self.rope_factors) != self.rotary_width // 2:
            raise InputError(
                f"{len(self.rope_factors)} rotary factors: a width of {self.rotary_width} needs half as many"
            )
        if self.activation not in ACTIVATIONS:
            raise InputError(f"the activation {self.activation!r} is not covered: there are {', '.join(ACTIVATIONS)}")
        if self.parallel and not self.pre_norm:
            raise InputError("a parallel residual is covered only where the norms come first")

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def rotary_width(self) -> int:
        return self.head_width if self.rotary_dim is None else self.rotary_dim

    @property
    def embed_width(self) -> int:
        return self.embed_dim or self.dim


class Positions(NamedTuple):
    """What attention takes of the tokens' positions; where they are learned, nothing."""

    rotation: tuple[Tensor, Tensor] | None = None  # cosines and signed sines, each [B or 1, 1, T, r]
    bias: Tensor | None = None  # ALiBi's, [B or 1, H, T, S]


class TokenContext(NamedTuple):
    """Mask and positions of the tokens of one call, the same for all blocks."""

    mask: Tensor | None  # [T, S] or [B, T, S]; None = no more than ``causal`` says
    causal: bool  # each token attends to itself and the earlier ones of this call
    positions: Positions


class Prompt(NamedTuple):
    """What a text begins with, for ``Decoder.prefill``."""

    inputs: Tensor  # ids [B, T] or embeddings [B, T, E]
    padding_mask: Tensor | None = None  # [B, T], True = a token; padding stands in front. None = no padding
    cache: KVCache | None = None  # of the text before; it is continued in place


def left_pad(rows: Sequence[Tensor]) -> Prompt:
    """Texts of several lengths, each ids ``[T]`` or embeddings ``[T, E]``, as one batch that ends together."""
    longest = max(len(row) for row in rows)
    shape = rows[0].shape[1:]
    padded = torch.stack([torch.cat([row.new_zeros(longest - len(row), *shape), row]) for row in rows])
    mask = masks.left_padding([len(row) for row in rows])[:, 0]
    return Prompt(padded, mask.to(padded.device))


def rotation(position_ids: Tensor, config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Rotary positions (Su et al. 2021): ``position_ids [B, T]`` -> cosines ``[B, 1, T, r]`` and sines, the first half negated."""
    width = config.rotary_width
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, width, 2, device=position_ids.device).float() / width)
    if config.rope_factors is not None:
        frequencies = frequencies / torch.tensor(config.rope_factors, device=position_ids.device)
    angles = (position_ids[..., None] * frequencies)[:, None]
    sines = angles.sin()
    return angles.cos().repeat(1, 1, 1, 2), torch.cat([-sines, sines], -1)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + r/2) of ``x [B, H, T, d]`` by its token's angle; components from r on stay."""
    cosines, sines = rotary
    if (width := cosines.shape[-1]) < x.shape[-1]:
        return torch.cat([rotate(x[..., :width], rotary), x[..., width:]], -1)
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)


def alibi(positions: Tensor, key_positions: Tensor, config: DecoderConfig) -> Tensor:
    """Linear biases (Press et al. 2022): -slope * (i - j) where a token at position i attends to one at position j.

    ``positions [B, T]`` of the queries, ``key_positions [B, S]`` of the keys -> ``[B, H, T, S]``. The slopes of a power of two of
    heads are a geometric sequence down to 2 ** -alibi_bias_max; other numbers take theirs from the next power's, every second first.
    """
    power = 1 << (config.heads - 1).bit_length()
    slopes = 2.0 ** -(torch.arange(1, power + 1, device=positions.device) * (config.alibi_bias_max / power))
    if config.heads < power:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[: config.heads]
    return slopes[:, None, None] * (key_positions[:, None, None] - positions[:, None, :, None])


def norm(config: DecoderConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.dim, config.eps)
    return nn.LayerNorm(config.dim, config.eps, bias=config.norm_bias)


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads in one product; H / G heads of the queries share one of the keys."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.width = config.heads, config.groups, config.head_width
        self.qkv = Linear(config.dim, (self.heads + 2 * self.groups) * self.width, config.qkv_bias)
        self.out = Linear(self.heads * self.width, config.dim, config.out_bias)

    def project(self, x: Tensor, context: TokenContext) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, d]``, keys and values ``[B, G, T, d]``; the first two rotated by their positions."""
        rotated = self.heads + self.groups
        heads = self.qkv(x).view(*x.shape[:2], rotated + self.groups, self.width).transpose(1, 2)
        queries_keys = heads[:, :rotated]
        if context.positions.rotation is not None:
            queries_keys = rotate(queries_keys, context.positions.rotation)
        return queries_keys[:, : self.heads], queries_keys[:, self.heads :], heads[:, rotated:]

    def forward(self, x: Tensor, context: TokenContext, cache: Cache | None = None) -> Tensor:
        queries, keys, values = self.project(x, context)
        if cache is not None:
            keys, values = cache.append(keys, values)
        attended = attend(queries, keys, values, context.mask, causal=context.causal, bias=context.positions.bias)
        return self.out(merge_heads(attended))

    def weights(self, x: Tensor, context: TokenContext) -> Tensor:
        """The weight of each token for each, ``[B, H, T, T]``, without a cache."""
        queries, keys, _ = self.project(x, context)
        mask = masks.causal(x.shape[1], device=x.device) if context.causal else context.mask
        return attention_weights(queries, keys, mask, context.positions.bias)


class DecoderFeedForward(nn.Module):
    """down(act(gate x) * up x), gate and up in one product; or down(act(up x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gated = config.gated
        self.up = Linear(config.dim, config.ffn_dim * (2 if config.gated else 1), config.ffn_bias)
        self.down = Linear(config.ffn_dim, config.dim, config.ffn_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if not self.gated:
            return self.down(self.activation(x))
        gate, up = x.chunk(2, -1)
        return self.down(self.activation(gate) * up)


class Block(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.pre_norm, self.parallel = config.pre_norm, config.parallel
        self.attention_norm, self.attention = norm(config), SelfAttention(config)
        self.ffn_norm, self.ffn = norm(config), DecoderFeedForward(config)

    def forward(self, x: Tensor, context: TokenContext, cache: Cache | None = None) -> Tensor:
        """``x [B, T, D]`` -> ``[B, T, D]``; ``cache`` is this layer's."""
        if self.parallel:
            return x + self.attention(self.attention_norm(x), context, cache) + self.ffn(self.ffn_norm(x))
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), context, cache)
            return x + self.ffn(self.ffn_norm(x))
        x = self.attention_norm(x + self.attention(x, context, cache))
        return self.ffn_norm(x + self.ffn(x))

    def attention_weights(self, x: Tensor, context: TokenContext) -> Tensor:
        """The attention weights of this block over ``x``, without a cache: ``[B, H, T, T]``."""
        return self.attention.weights(self.attention_norm(x) if self.pre_norm else x, context)


class Decoder(nn.Module):
    """A language model; a ``generate.StepModel`` over ids or given embeddings."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, outer = config.dim, config.embed_width
        self.embedding = Embedding(config.vocab_size, outer)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_positions + OPT_OFFSET, width)
        projected = outer != width
        self.project_in = Linear(outer, width, bias=False) if projected else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = norm(config) if config.pre_norm else nn.Identity()
        self.project_out = Linear(width, outer, bias=False) if projected else nn.Identity()
        self.head = None if config.tied else Linear(outer, config.vocab_size, bias=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, E]``: what may be mixed with soft prompts and given to ``forward`` or ``prefill``."""
        return self.embedding(input_ids)

    def embed_inputs(
        self, inputs: Tensor, padding_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, TokenContext]:
        """What enters the first block.

        Args:
            inputs: ids ``[B, T]`` or embeddings ``[B, T, E]``.
            padding_mask: ``[B, T]``, True = a token, of these inputs; None = all are tokens.
            cache: what came before. Every block must be run on this call's tokens before the next call.

        Returns:
            ``x [B, T, D]`` and the context of its tokens, the same for all blocks.

        Raises:
            InputError: the text becomes longer than the model can read; it is never cut.
        """
        x = inputs if inputs.is_floating_point() else self.embedding(inputs)
        new, past = x.shape[1], cache.length if cache else 0
        if past + new > self.config.max_positions:
            raise InputError(
                f"the text has {past + new} tokens: the language model reads {self.config.max_positions} at most"
            )
        position_ids, visible = (cache or KVCache(1)).advance(new, padding_mask)
        if position_ids is None:
            position_ids = torch.arange(past, past + new, device=x.device)[None]
        window = self.config.window if past + new > (self.config.window or past + new) else None
        key_positions: Tensor | None = None  # [B or 1, S], where ALiBi or a window needs them
        if window is not None or self.config.positions == "alibi":
            key_positions = (
                torch.arange(past + new, device=x.device)[None] if visible is None else visible.cumsum(1) - 1
            )
        x, positions = self.add_positions(x, position_ids, key_positions)
        if visible is None and window is None and (past == 0 or new == 1):
            return x, TokenContext(None, new > 1, positions)
        mask = masks.causal(new, past, x.device) if new > 1 else None
        if visible is not None:
            mask = masks.both(mask, masks.padding(visible))
        if window is not None and key_positions is not None:
            mask = masks.both(mask, masks.window(position_ids, key_positions, window))
        return x, TokenContext(mask, False, positions)

    def add_positions(
        self, x: Tensor, position_ids: Tensor, key_positions: Tensor | None = None
    ) -> tuple[Tensor, Positions]:
        """Embeddings ``[B, T, E]`` at ``position_ids [B or 1, T]`` -> ``[B, T, D]``, and what attention takes of the positions.

        ``key_positions [B or 1, S]``: of all keys; None = of these T tokens alone.
        """
        x = self.project_in(x).to(x.dtype)  # the residual stream stays as exact as the embeddings, also under autocast
        if self.config.positions == "rotary":
            return x, Positions(rotation=rotation(position_ids, self.config))
        if self.config.positions == "alibi":
            return x, Positions(
                bias=alibi(position_ids, position_ids if key_positions is None else key_positions, self.config)
            )
        return x + self.position_embedding(position_ids + OPT_OFFSET), Positions()

    def final_hidden(self, x: Tensor) -> Tensor:
        """What leaves the last block, ``[B, T, D]`` -> what ``logits`` takes, ``[B, T, E]``."""
        return self.project_out(self.final_norm(x))

    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """The hidden states ``[B, T, E]`` of ids or embeddings; arguments and errors as ``embed_inputs``."""
        x, context = self.embed_inputs(inputs, padding_mask, cache)
        for i, block in enumerate(self.blocks):
            x = block(x, context, cache[i] if cache else None)
        return self.final_hidden(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[.., E]`` -> ``[.., V]``."""
        return self.embedding.product(hidden) if self.head is None else self.head(hidden)

    def attention_maps(self, inputs: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """The attention weights ``[B, H, T, T]`` of every block. ``inputs`` is the whole text."""
        x, context = self.embed_inputs(inputs, padding_mask)
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attention_weights(x, context))
            x = block(x, context)
        return maps

    def prefill(self, inputs: Prompt | Tensor) -> tuple[Tensor, KVCache]:
        """Read prompts: the logits ``[B, V]`` of what follows, and the cache to go on with.

        Raises:
            InputError: the prompt is empty or too long.
            ValueError: padding stands behind a prompt.
        """
        tokens, padding_mask, cache = inputs if isinstance(inputs, Prompt) else Prompt(inputs)
        if tokens.shape[1] == 0:
            raise InputError("the prompt is empty: the language model needs at least one token to go on from")
        if padding_mask is not None and not padding_mask[:, -1].all():
            raise ValueError("padding stands in front of a prompt (left_pad), so that all prompts end together")
        if cache is None:
            cache = KVCache(self.config.layers, capacity=tokens.shape[1] + 64)
        return self.logits(self(tokens, padding_mask, cache)[:, -1:])[:, 0], cache

    def step(self, ids: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """One more token of each row: ``ids [B * K]`` -> the logits ``[B * K, V]`` of the next."""
        return self.logits(self(ids[:, None], cache=state))[:, 0], state
