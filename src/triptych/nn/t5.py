"""T5 (Raffel et al. 2020) and Flan-T5: an encoder reads the prompt; a decoder that attends to it writes the text.

Pre-norm blocks without biases. Positions are learned biases of the scores by distance: one table for all layers of the encoder and
one for all layers of the decoder. Scores are not divided by sqrt(d). T5 is a ``language_model.LanguageModel``: ``prefill`` computes
the prompt's keys and values once, and the decoder begins with ``start_id``.

Shapes (legend in ``nn/attention.py``): P tokens of a prompt, T of the written text, d width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn import masks
from triptych.nn.attention import (
    AttentionScores,
    KeysValues,
    attend,
    attention_weights,
    merge_heads,
    split_heads,
)
from triptych.nn.cache import KVCache, LayerCache
from triptych.nn.configs import T5Config
from triptych.nn.decoder import Block, DecoderFeedForward, Prompt, TokenContext, norm
from triptych.nn.linear import Embedding, Linear
from triptych.nn.positions import Positions

UNSCALED = AttentionScores(scale=1.0)
FP16_SCALE = 64.0  # divides what a product in fp16 would make too large


class DistanceBias(nn.Module):
    """A learned bias for each head and each range of distances (Raffel et al. 2020, section 2.1).

    Half of the buckets hold a single distance each, the others grow logarithmically up to ``max_distance``. In the encoder
    (``both_ways``) half of all buckets are for later tokens.
    """

    def __init__(self, config: T5Config, both_ways: bool) -> None:
        super().__init__()
        self.both_ways, self.max_distance = both_ways, config.max_distance
        self.table = nn.Embedding(config.buckets, config.heads)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``rows [T]`` and ``columns [S]``, positions of queries and keys -> ``[1, H, T, S]``."""
        ahead = columns - rows[:, None]
        buckets = self.table.num_embeddings // (2 if self.both_ways else 1)
        distance = ahead.abs() if self.both_ways else (-ahead).clamp_min(0)
        single = buckets // 2
        share = (distance.clamp_min(1).float() / single).log() / math.log(self.max_distance / single)
        grown = (single + (share * (buckets - single)).long()).clamp_max(buckets - 1)
        bucket = distance.where(distance < single, grown)
        if self.both_ways:
            bucket = bucket + (ahead > 0) * buckets
        return self.table(bucket).permute(2, 0, 1)[None]


class T5CrossAttention(nn.Module):
    """A written token attends to the prompt."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_dim
        self.query = Linear(config.dim, inner, bias=False)
        self.key_value = Linear(config.dim, 2 * inner, bias=False)
        self.out = Linear(inner, config.dim, bias=False)

    def keys_values(self, encoded: Tensor) -> KeysValues:
        """``[B, P, D]`` -> keys and values ``[B, H, P, d]``."""
        return KeysValues(*(split_heads(x, self.heads) for x in self.key_value(encoded).chunk(2, -1)))

    def forward(self, x: Tensor, prompt: KeysValues, mask: Tensor | None) -> Tensor:
        """``x [B, T, D]``, ``mask [B, 1, P]`` -> ``[B, T, D]``."""
        queries = split_heads(self.query(x), self.heads)
        return self.out(merge_heads(attend(queries, *prompt, mask, scores=UNSCALED)))

    def weights(self, x: Tensor, prompt: KeysValues) -> Tensor:
        """The attention weights ``[B, H, T, P]``."""
        return attention_weights(split_heads(self.query(x), self.heads), prompt.keys, scores=UNSCALED)


class T5FeedForward(DecoderFeedForward):
    """In fp16 its output, which may be larger than fp16 holds, is fp32, and with it the sum that all blocks add to."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        if hidden.dtype != torch.float16:
            return self.down(hidden)
        return self.down(hidden / FP16_SCALE).float() * FP16_SCALE


def t5_block(config: T5Config, layer: int) -> Block:
    """A block with T5's feed-forward layers."""
    block = Block(config.block, layer)
    block.ffn = T5FeedForward(config.block)
    return block


class T5DecoderBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with its residual and a norm before it."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        block = t5_block(config, layer)
        self.attention_norm, self.attention = block.attention_norm, block.attention
        self.cross_norm, self.cross = norm(config.block), T5CrossAttention(config)
        self.ffn_norm, self.ffn = block.ffn_norm, block.ffn

    def forward(
        self,
        x: Tensor,
        context: TokenContext,
        prompt: KeysValues,
        prompt_mask: Tensor | None,
        cache: LayerCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """``x [B, T, D]`` -> ``[B, T, D]``; the attention to the prompt ``[B, H, T, P]`` is appended to ``maps``."""
        x = x + self.attention(self.attention_norm(x), context, cache)
        queries = self.cross_norm(x)
        if maps is not None:
            maps.append(self.cross.weights(queries, prompt))
        x = x + self.cross(queries, prompt, prompt_mask)
        return x + self.ffn(self.ffn_norm(x))


class T5Encoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.bias = DistanceBias(config, both_ways=True)
        self.blocks = nn.ModuleList(t5_block(config, layer) for layer in range(config.layers))
        self.final_norm = norm(config.block)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Embeddings ``[B, P, D]`` -> ``[B, P, D]``; ``padding_mask [B, P]``, True = a token."""
        positions = torch.arange(x.shape[1], device=x.device)
        mask = None if padding_mask is None else masks.padding(padding_mask)
        context = TokenContext(mask, False, Positions(bias=self.bias(positions, positions)))
        for block in self.blocks:
            x = block(x, context)
        return self.final_norm(x)


class T5Decoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.bias = DistanceBias(config, both_ways=False)
        self.blocks = nn.ModuleList(T5DecoderBlock(config, layer) for layer in range(config.decoder_layers))
        self.final_norm = norm(config.block)

    def keys_values(self, encoded: Tensor) -> tuple[KeysValues, ...]:
        """The keys and values of a prompt ``[B, P, D]`` for each block."""
        return tuple(block.cross.keys_values(encoded) for block in self.blocks)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, state: T5State, maps: list[Tensor] | None = None) -> Tensor:
        """Embeddings ``[B, T, D]`` of the tokens after ``state`` -> ``[B, T, D]``; their keys and values are appended to ``state``."""
        new, past = x.shape[1], state.text.length
        columns = torch.arange(past + new, device=x.device)
        mask = masks.causal(new, past, x.device) if new > 1 else None
        context = TokenContext(mask, False, Positions(bias=self.bias(columns[past:], columns)))
        for i, (block, prompt) in enumerate(zip(self.blocks, state.prompt, strict=True)):
            x = block(x, context, prompt, state.prompt_mask, state.text[i], maps)
        return self.final_norm(x)


class T5State:
    """A prompt that was read, and the text written after it: a ``generate.State``."""

    def __init__(
        self, prompt: tuple[KeysValues, ...], prompt_mask: Tensor | None, text: KVCache, beams: int = 1
    ) -> None:
        self.prompt, self.prompt_mask, self.text = prompt, prompt_mask, text  # mask [B, 1, P], True = a token
        self.beams = beams  # rows of each input

    def reorder(self, rows: Tensor) -> T5State:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``. This state must not be used afterwards."""
        flat, beams = rows.flatten(), rows.shape[1]
        inputs = torch.arange(len(flat), device=rows.device) // beams
        prompt, mask = self.prompt, self.prompt_mask
        if beams != self.beams or len(flat) != len(prompt[0].keys) or not torch.equal(flat // beams, inputs):
            prompt = tuple(KeysValues(kv.keys[flat], kv.values[flat]) for kv in prompt)
            mask = mask if mask is None else mask[flat]
        return T5State(prompt, mask, self.text.reorder(rows), beams)


class T5(nn.Module):
    """The encoder, the decoder and the word embeddings; a ``language_model.LanguageModel``."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.dim)
        self.encoder, self.decoder = T5Encoder(config), T5Decoder(config)
        self.head = None if config.tied else Linear(config.dim, config.vocab_size, bias=False)

    @property
    def embed_width(self) -> int:
        return self.config.dim

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    def embed(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, D]``."""
        return self.embedding(input_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[.., D]`` -> ``[.., V]``."""
        if self.config.scale_output:
            hidden = hidden * self.config.dim**-0.5
        return self.embedding.product(hidden) if self.head is None else self.head(hidden)

    def read(self, inputs: Prompt) -> T5State:
        """Encode prompts; ``end_id`` is appended to each.

        Raises:
            InputError: a prompt is empty or too long.
            ValueError: a prompt with a cache, or padded on the right.
        """
        tokens, padding_mask, cache = inputs
        if cache is not None:
            raise ValueError("an encoder reads a prompt as a whole: it cannot continue a cache")
        if padding_mask is not None and not padding_mask[:, -1].all():
            raise ValueError("prompts must be padded on the left (left_pad), so that all end together")
        x = tokens if tokens.is_floating_point() else self.embed(tokens)
        length = x.shape[1] + 1
        if length == 1:
            raise InputError("the prompt is empty: the language model needs at least one token")
        if length > self.config.max_positions:
            raise InputError(
                f"the text has {length} tokens: the language model reads {self.config.max_positions} at most"
            )
        end = self.embed(torch.full((len(x), 1), self.config.end_id, device=x.device)).to(x.dtype)
        if padding_mask is not None:
            padding_mask = torch.cat([padding_mask, padding_mask.new_ones(len(x), 1)], 1).bool()
        prompt = self.decoder.keys_values(self.encoder(torch.cat([x, end], 1), padding_mask))
        mask = None if padding_mask is None else masks.padding(padding_mask)
        return T5State(prompt, mask, KVCache(self.config.decoder_layers))

    def prefill(self, inputs: Prompt | Tensor) -> tuple[Tensor, T5State]:
        """Read prompts: the logits ``[B, V]`` of the text's first token, and the state to continue with. Raises as ``read``."""
        state = self.read(inputs if isinstance(inputs, Prompt) else Prompt(inputs))
        keys = state.prompt[0].keys
        return self.step(torch.full((len(keys),), self.config.start_id, device=keys.device), state)

    def step(self, ids: Tensor, state: T5State) -> tuple[Tensor, T5State]:
        """One token for each row: ``ids [B * K]`` -> the logits ``[B * K, V]`` of the next."""
        return self.score(ids[:, None], state)[:, 0], state

    def score(self, ids: Tensor, state: T5State) -> Tensor:
        """Possible continuations ``[B, T]`` -> the logits ``[B, T, V]`` after each of their tokens.

        Raises:
            InputError: the text becomes longer than the model can write.
        """
        if (length := state.text.length + ids.shape[1]) > self.config.max_positions:
            raise InputError(
                f"a text of {length} tokens: the language model writes {self.config.max_positions} at most"
            )
        return self.logits(self.decoder(self.embed(ids), state))

    def prompt_attention(self, prompt: Tensor, text: Tensor) -> list[Tensor]:
        """See ``LanguageModel.prompt_attention``."""
        maps: list[Tensor] = []
        start = text.new_full((len(text), 1), self.config.start_id)
        self.decoder(self.embed(torch.cat([start, text], 1)), self.read(Prompt(prompt)), maps)
        return [layer[..., : prompt.shape[1]] for layer in maps]
