"""The decoder-only language model: one transformer whose config covers Llama-like models (Llama, SmolLM2 and 3, Mistral, Qwen2 and 3,
Phi-3, OLMo-2, Gemma 1 to 3), OPT, GPT-NeoX (Black et al. 2022; Pythia) and MPT.

The cache of earlier tokens is passed in, so one model serves many runs at once. A caller may run the loop over the blocks itself,
with other layers in between, as Flamingo does:

    x, context = lm.embed_inputs(input_ids, cache=cache)
    for i, block in enumerate(lm.blocks):
        x = block(x, context, cache[i])
    logits = lm.logits(lm.final_hidden(x))

Shapes (legend in ``nn/attention.py``): G heads of keys and values, d width of a head, E width of the embeddings (D, but for OPT-350m).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn import masks
from triptych.nn.attention import AttentionScores, attend, attention_weights, merge_heads
from triptych.nn.cache import SPARE_POSITIONS, KVCache, LayerCache
from triptych.nn.configs import OPT_OFFSET, Activation, DecoderConfig
from triptych.nn.linear import Embedding, Linear
from triptych.nn.positions import Positions, alibi, rotary_frequencies, rotate, rotation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class TokenContext(NamedTuple):
    """Masks and positions of the tokens of one call, for all blocks."""

    mask: Tensor | None  # [T, S] or [B, T, S]; None = everything that ``causal`` allows
    causal: bool  # each token attends to itself and the earlier ones of this call
    positions: Positions
    local_mask: Tensor | None = None  # for layers with a window; None = ``mask``


class Prompt(NamedTuple):
    """The input of ``LanguageModel.prefill``."""

    inputs: Tensor  # ids [B, T] or embeddings [B, T, E]
    padding_mask: Tensor | None = None  # [B, T], True = a token; padding is on the left. None = no padding
    cache: KVCache | None = None  # of the text so far; it is continued in place


def left_pad(rows: Sequence[Tensor]) -> Prompt:
    """Texts of several lengths, each ids ``[T]`` or embeddings ``[T, E]``, as one batch padded on the left."""
    longest = max(len(row) for row in rows)
    shape = rows[0].shape[1:]
    padded = torch.stack([torch.cat([row.new_zeros(longest - len(row), *shape), row]) for row in rows])
    mask = masks.left_padding([len(row) for row in rows])[:, 0]
    return Prompt(padded, mask.to(padded.device))


class RMSNorm(nn.RMSNorm):
    """Computed in the wider of the dtypes of input and weight (under autocast the weight's, in a T5 in fp16 the input's), returned in the
    narrower."""

    def forward(self, x: Tensor) -> Tensor:
        wide, narrow = x.dtype, self.weight.dtype
        if wide.itemsize < narrow.itemsize:
            wide, narrow = narrow, wide
        return F.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps).to(narrow)


def norm(config: DecoderConfig, width: int | None = None) -> nn.Module:
    """A norm over ``width`` components, by default those of the residual stream."""
    width = width or config.dim
    if config.norm == "rms":
        return RMSNorm(width, config.eps)
    return nn.LayerNorm(width, config.eps, bias=config.norm_bias)


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads in one product; each of G heads of keys serves H / G heads of queries."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.width = config.heads, config.groups, config.head_width
        self.local, self.rotated = config.is_local(layer), layer not in config.unrotated_layers
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.qkv = Linear(config.dim, (self.heads + 2 * self.groups) * self.width, config.qkv_bias)
        self.out = Linear(self.heads * self.width, config.dim, config.out_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            over_all = self.qk_norm == "all"
            self.query_norm = norm(config, self.width * (self.heads if over_all else 1))
            self.key_norm = norm(config, self.width * (self.groups if over_all else 1))

    def project(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, d]``, keys and values ``[B, G, T, d]``; queries and keys are normalised and rotated by their positions."""
        rotated = self.heads + self.groups
        heads = self.qkv(x).view(*x.shape[:2], rotated + self.groups, self.width)
        queries_keys, values = heads[:, :, :rotated], heads[:, :, rotated:]
        if self.qk_norm:
            queries_keys = self.normalise(queries_keys)
        queries_keys = queries_keys.transpose(1, 2)
        rotary = (self.local and positions.local_rotation) or positions.rotation
        if rotary and self.rotated:
            queries_keys = rotate(queries_keys, rotary)
        return queries_keys[:, : self.heads], queries_keys[:, self.heads :], values.transpose(1, 2)

    def normalise(self, queries_keys: Tensor) -> Tensor:
        """``[B, T, H + G, d]`` -> the same, queries and keys each normalised."""
        queries, keys = queries_keys[:, :, : self.heads], queries_keys[:, :, self.heads :]
        if self.qk_norm == "head":
            return torch.cat([self.query_norm(queries), self.key_norm(keys)], 2)
        return torch.cat([self.query_norm(queries.flatten(2)), self.key_norm(keys.flatten(2))], 2).view_as(queries_keys)

    def mask(self, context: TokenContext) -> Tensor | None:
        """``[T, S]`` or ``[B, T, S]`` for this layer."""
        return context.local_mask if self.local and context.local_mask is not None else context.mask

    def forward(self, x: Tensor, context: TokenContext, cache: LayerCache | None = None) -> Tensor:
        """``x [B, T, D]`` -> ``[B, T, D]``."""
        queries, keys, values = self.project(x, context.positions)
        if cache is not None:
            keys, values = cache.append(keys, values)
        scores = AttentionScores(self.scale, context.positions.bias, self.softcap)
        return self.out(
            merge_heads(attend(queries, keys, values, self.mask(context), causal=context.causal, scores=scores))
        )

    def weights(self, x: Tensor, context: TokenContext) -> Tensor:
        """The attention weights ``[B, H, T, T]``, without a cache."""
        queries, keys, _ = self.project(x, context.positions)
        mask = masks.causal(x.shape[1], device=x.device) if context.causal else self.mask(context)
        return attention_weights(queries, keys, mask, AttentionScores(self.scale, context.positions.bias, self.softcap))


class DecoderFeedForward(nn.Module):
    """down(act(gate x) * up x), gate and up in one product; or down(act(up x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gated = config.gated
        self.up = Linear(config.dim, config.ffn_dim * (2 if config.gated else 1), config.ffn_bias)
        self.down = Linear(config.ffn_dim, config.dim, config.ffn_bias)
        self.activation = ACTIVATIONS[config.activation]

    def hidden(self, x: Tensor) -> Tensor:
        """``[.., D]`` -> the input of ``down``."""
        x = self.up(x)
        if not self.gated:
            return self.activation(x)
        gate, up = x.chunk(2, -1)
        return self.activation(gate) * up

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.hidden(x))


class Block(nn.Module):
    """Attention and feed-forward, each with its residual; the config says where the norms are."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.parallel, self.norm_of_sum = config.parallel, not (config.pre_norm or config.post_norm)
        pre_norm = config.pre_norm or self.norm_of_sum
        self.attention_norm = norm(config) if pre_norm else nn.Identity()
        self.attention = SelfAttention(config, layer)
        self.attention_post_norm = norm(config) if config.post_norm else nn.Identity()
        self.ffn_norm = norm(config) if pre_norm else nn.Identity()
        self.ffn = DecoderFeedForward(config)
        self.ffn_post_norm = norm(config) if config.post_norm else nn.Identity()

    def forward(self, x: Tensor, context: TokenContext, cache: LayerCache | None = None) -> Tensor:
        """``x [B, T, D]`` -> ``[B, T, D]``; ``cache`` is this layer's."""
        if self.parallel:
            return x + self.attention(self.attention_norm(x), context, cache) + self.ffn(self.ffn_norm(x))
        if self.norm_of_sum:
            x = self.attention_norm(x + self.attention(x, context, cache))
            return self.ffn_norm(x + self.ffn(x))
        x = x + self.attention_post_norm(self.attention(self.attention_norm(x), context, cache))
        return x + self.ffn_post_norm(self.ffn(self.ffn_norm(x)))

    def attention_weights(self, x: Tensor, context: TokenContext) -> Tensor:
        """The attention weights of this block over ``x``, without a cache: ``[B, H, T, T]``."""
        return self.attention.weights(x if self.norm_of_sum else self.attention_norm(x), context)


class AddedTokens(nn.Module):
    """Tokens behind those of a language model, as rows of their own, so that they can be trained while it stays frozen.

    They begin as the mean of all rows, or as the row of the token that they are ``like``.
    """

    def __init__(self, embedding: Tensor, head: Tensor | None, like: Sequence[int | None]) -> None:
        """``embedding``, ``head [V, E]``: the language model's own rows; without a ``head`` the embeddings are the output layer's, too."""
        super().__init__()
        self.embedding = nn.Parameter(rows_of_tokens(embedding, like))
        self.head = None if head is None else nn.Parameter(rows_of_tokens(head, like))

    def embed(self, input_ids: Tensor, embedding: nn.Embedding) -> Tensor:
        """``[B, T]`` -> ``[B, T, E]``; ids from the size of ``embedding`` on are these tokens."""
        own = embedding.num_embeddings
        added = F.embedding((input_ids - own).clamp_min(0), self.embedding)
        return torch.where((input_ids >= own)[..., None], added, embedding(input_ids.clamp_max(own - 1)))

    def logits(self, hidden: Tensor) -> Tensor:
        """``[.., E]`` -> ``[.., N]``."""
        return F.linear(hidden, self.embedding if self.head is None else self.head)


def rows_of_tokens(rows: Tensor, like: Sequence[int | None]) -> Tensor:
    return torch.stack([rows.mean(0) if i is None else rows[i].clone() for i in like])


class Decoder(nn.Module):
    """A language model over ids or embeddings; a ``generate.StepModel``."""

    added: AddedTokens | None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, outer = config.dim, config.embed_width
        self.embedding = Embedding(config.vocab_size, outer)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_positions + OPT_OFFSET, width)
        projected = outer != width
        self.project_in = Linear(outer, width, bias=False) if projected else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = norm(config) if config.pre_norm or config.post_norm else nn.Identity()
        self.project_out = Linear(width, outer, bias=False) if projected else nn.Identity()
        self.head = None if config.tied else Linear(outer, config.vocab_size, bias=False)
        self.register_module("added", None)

    def add_tokens(self, like: Sequence[int | None]) -> None:
        """Add a token for each of ``like`` (``AddedTokens``); their ids follow the language model's own."""
        with torch.no_grad():
            head = None if self.head is None else self.head.weight
            self.added = AddedTokens(self.embedding.weight, head, like)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return self.config.vocab_size + (0 if self.added is None else len(self.added.embedding))

    def embed(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, E]``, for ``forward`` or ``prefill``, perhaps concatenated with soft prompts."""
        x = self.embedding(input_ids) if self.added is None else self.added.embed(input_ids, self.embedding)
        return x if self.config.embed_scale == 1 else x * self.config.embed_scale

    def embed_inputs(
        self, inputs: Tensor, padding_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, TokenContext]:
        """The input of the first block.

        Args:
            inputs: ids ``[B, T]`` or embeddings ``[B, T, E]``.
            padding_mask: ``[B, T]``, True = a token, of these inputs; None = all are tokens.
            cache: the text so far. Every block must be run on this call's tokens before the next call.

        Returns:
            ``x [B, T, D]`` and the context of its tokens, the same for all blocks.

        Raises:
            InputError: the text is longer than the model can read; it is never cut.
        """
        x = inputs if inputs.is_floating_point() else self.embed(inputs)
        new, past = x.shape[1], cache.length if cache else 0
        if past + new > self.config.max_positions:
            raise InputError(
                f"the text has {past + new} tokens: the language model reads {self.config.max_positions} at most"
            )
        position_ids, visible = (cache or KVCache(1)).advance(new, padding_mask)
        if position_ids is None:
            position_ids = torch.arange(past, past + new, device=x.device)[None]
        window = self.config.window
        if window is not None and past + new <= window:
            window = None
        key_positions: Tensor | None = None  # [B or 1, S], where ALiBi or a window needs them
        if window is not None or self.config.positions == "alibi":
            unpadded = torch.arange(past + new, device=x.device)[None]
            key_positions = unpadded if visible is None else visible.cumsum(1) - 1
        x, positions = self.add_positions(x, position_ids, key_positions)
        if visible is None and window is None and (past == 0 or new == 1):
            return x, TokenContext(None, new > 1, positions)
        mask = masks.causal(new, past, x.device) if new > 1 else None
        if visible is not None:
            mask = masks.intersection(mask, masks.padding(visible))
        local_mask = None
        if window is not None and key_positions is not None:
            local_mask = masks.intersection(mask, masks.window(position_ids, key_positions, window))
        return x, TokenContext(mask, False, positions, local_mask)

    def add_positions(
        self, x: Tensor, position_ids: Tensor, key_positions: Tensor | None = None
    ) -> tuple[Tensor, Positions]:
        """Embeddings ``[B, T, E]`` at ``position_ids [B or 1, T]`` -> ``[B, T, D]``, and the positions as attention needs them.

        ``key_positions [B or 1, S]``: of all keys; None = these T tokens are the only keys.
        """
        x = self.project_in(x).to(x.dtype)  # under autocast, too, the residual stream has the embeddings' precision
        c = self.config
        if c.positions == "learned":
            return x + self.position_embedding(position_ids + OPT_OFFSET), Positions()
        if c.positions == "alibi":
            keys = position_ids if key_positions is None else key_positions
            return x, Positions(bias=alibi(position_ids, keys, c.heads, c.alibi_bias_max))
        frequencies = rotary_frequencies(c.rope_theta, c.rotary_width, x.device)
        if c.rope_factors is not None:
            frequencies = frequencies / torch.tensor(c.rope_factors, device=x.device)
        local = None
        if c.local_rope_theta is not None:
            local_frequencies = rotary_frequencies(c.local_rope_theta, c.rotary_width, x.device)
            local = rotation(position_ids, local_frequencies, dtype=x.dtype)
        return x, Positions(rotation(position_ids, frequencies, c.rope_magnitude, x.dtype), local_rotation=local)

    def final_hidden(self, x: Tensor) -> Tensor:
        """The last block's output ``[B, T, D]`` -> the input of ``logits``, ``[B, T, E]``."""
        return self.project_out(self.final_norm(x))

    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """The hidden states ``[B, T, E]`` of ids or embeddings; arguments and errors as ``embed_inputs``."""
        x, context = self.embed_inputs(inputs, padding_mask, cache)
        for i, block in enumerate(self.blocks):
            x = block(x, context, cache[i] if cache else None)
        return self.final_hidden(x)

    @property
    def embed_width(self) -> int:
        return self.config.embed_width

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    def logits(self, hidden: Tensor) -> Tensor:
        """``[.., E]`` -> ``[.., V]``."""
        logits = self.embedding.product(hidden) if self.head is None else self.head(hidden)
        if self.added is not None:
            logits = torch.cat([logits, self.added.logits(hidden).to(logits.dtype)], -1)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * (logits / cap).tanh()

    def attention_maps(self, inputs: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """The attention weights ``[B, H, T, T]`` of every block; ``inputs`` as in ``embed_inputs``, the whole text."""
        x, context = self.embed_inputs(inputs, padding_mask)
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attention_weights(x, context))
            x = block(x, context)
        return maps

    def prompt_attention(self, prompt: Tensor, text: Tensor) -> list[Tensor]:
        """See ``LanguageModel.prompt_attention``."""
        length = prompt.shape[1]
        maps = self.attention_maps(torch.cat([prompt, self.embed(text)], 1))
        return [layer[:, :, length - 1 :, :length] for layer in maps]

    def prefill(self, inputs: Prompt | Tensor) -> tuple[Tensor, KVCache]:
        """Read prompts: the logits ``[B, V]`` of the next token, and the cache to continue with.

        Raises:
            InputError: the prompt is empty or too long.
            ValueError: padding on the right.
        """
        tokens, padding_mask, cache = inputs if isinstance(inputs, Prompt) else Prompt(inputs)
        if tokens.shape[1] == 0:
            raise InputError("the prompt is empty: the language model needs at least one token")
        if padding_mask is not None and not padding_mask[:, -1].all():
            raise ValueError("prompts must be padded on the left (left_pad), so that all end together")
        if cache is None:
            cache = KVCache(self.config.layers, capacity=tokens.shape[1] + SPARE_POSITIONS)
        return self.logits(self(tokens, padding_mask, cache)[:, -1:])[:, 0], cache

    def step(self, ids: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """One token for each row: ``ids [B * K]`` -> the logits ``[B * K, V]`` of the next."""
        return self.logits(self(ids[:, None], cache=state))[:, 0], state

    def score(self, ids: Tensor, state: KVCache) -> Tensor:
        """Possible continuations ``[B, T]`` -> the logits ``[B, T, V]`` after each of their tokens."""
        return self.logits(self(ids, cache=state))
