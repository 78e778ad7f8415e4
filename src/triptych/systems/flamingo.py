"""Flamingo (Alayrac et al. 2022): a frozen language model reads text interleaved with pictures and attends to the pictures.

    pixel_values -> vision_encoder (frozen) -> image_features [P, L, Dv]
      -> Perceiver Resampler: R latents attend to the features and to one another -> visual_tokens [P, R, D]
      -> keys and values for each gated block, once for each picture
    text -> the blocks of lm (frozen), with a gated block before every n-th: text attends to visual_tokens through gates
            that start at tanh(0) = 0

A text token attends to the last picture before it (as in the paper), or to all pictures before it. The cross-attention of a token
without a picture before it is exactly 0.
Shapes (legend in ``nn/attention.py``): P pictures in all, N pictures of a row, R latents, B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn import masks
from triptych.nn.attention import KeysValues, MultiHeadAttention
from triptych.nn.cache import SPARE_POSITIONS, KVCache
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder, DecoderFeedForward, norm
from triptych.nn.encoder import VisionEncoder
from triptych.systems.configs import FlamingoConfig

NO_PICTURE = -1  # in Media.numbers: padding of a row with fewer pictures


class FlamingoFeedForward(nn.Sequential):
    """Norm, up, GELU (or ReLU), down, without biases."""

    def __init__(self, dim: int, factor: int, relu: bool = False) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, factor * dim, bias=False),
            nn.ReLU() if relu else nn.GELU(),
            nn.Linear(factor * dim, dim, bias=False),
        )


class ResamplerLayer(nn.Module):
    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        dim = config.visual_dim
        self.media_norm, self.latents_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        heads, width = config.resampler_heads or config.heads, config.resampler_head_dim or config.head_dim
        self.attention = MultiHeadAttention(dim, heads, head_dim=width, bias=False)
        if config.resampler_qk_norm:
            self.attention.query_norm, self.attention.key_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffw = FlamingoFeedForward(dim, config.ffn_factor, relu=config.style == "idefics")

    def forward(self, latents: Tensor, media: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """``latents [P, R, D]`` attend to ``media [P, S, D]`` and to themselves -> ``[P, R, D]``.

        The attention weights ``[P, H, R, S + R]`` are appended to ``maps``.
        """
        queries = self.latents_norm(latents)
        # Flamingo section 2.1: keys and values of the features and the latents
        keys_values = self.attention.keys_values(torch.cat([self.media_norm(media), queries], 1))
        if maps is not None:
            maps.append(self.attention.weights(queries, keys_values))
        latents = latents + self.attention(queries, keys_values)
        return latents + self.ffw(latents)


class Resampler(nn.Module):
    """The Perceiver Resampler: any number of features -> R visual tokens."""

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        dim = config.visual_dim
        projection = nn.Sequential(nn.LayerNorm(config.image_dim), nn.Linear(config.image_dim, dim))
        self.enter = projection if config.dim else nn.Identity()
        self.latents = nn.Parameter(torch.randn(config.latents, dim))
        self.picture_embeddings = optional_embeddings(config.max_pictures, 1, dim)
        self.frame_embeddings = optional_embeddings(config.max_frames, dim)
        self.layers = nn.ModuleList(ResamplerLayer(config) for _ in range(config.resampler_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, image_features: Tensor, numbers: Tensor | None = None, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Pictures ``[P, L, Dv]``, or videos of F frames ``[P, F, L, Dv]``, -> ``visual_tokens [P, R, D]``.

        Args:
            numbers: ``[P]``, the number of each picture in its prompt, from 1; needed if there are picture embeddings.
            maps: the attention weights of each layer are appended to it, ``[P, H, R, F * L + R]``.

        Raises:
            InputError: more pictures or frames than there are embeddings for.
            ValueError: ``numbers`` is missing.
        """
        x = self.enter(image_features if image_features.dim() == 4 else image_features[:, None])
        if self.frame_embeddings is not None:
            if x.shape[1] > len(self.frame_embeddings):
                raise InputError(f"{x.shape[1]} frames: this model reads {len(self.frame_embeddings)} at most")
            x = x + self.frame_embeddings[: x.shape[1], None]
        x = x.flatten(1, 2)  # Flamingo section 2.1: features of all frames, with time embeddings, in one row
        if self.picture_embeddings is not None:
            if numbers is None:
                raise ValueError("this model needs each picture's number in the prompt: pass numbers")
            most = len(self.picture_embeddings)
            if len(numbers) and int(numbers.max()) > most:
                raise InputError(f"{int(numbers.max())} pictures: this model reads {most} at most")
            x = x + self.picture_embeddings[numbers - 1]
        latents = self.latents.expand(len(x), -1, -1)  # Flamingo section 2.1: learned latents
        for layer in self.layers:
            latents = layer(latents, x, maps)
        return self.norm(latents)


def optional_embeddings(count: int | None, *shape: int) -> nn.Parameter | None:
    return nn.Parameter(torch.randn(count, *shape)) if count else None


class GatedBlock(nn.Module):
    """Gated cross-attention of text to pictures, then a gated feed-forward layer."""

    def __init__(self, config: FlamingoConfig, lm: DecoderConfig) -> None:
        """``lm``: the config of the language model whose residual stream the block reads and writes."""
        super().__init__()
        dim, like_lm = lm.dim, config.style == "idefics"
        self.norm = norm(lm) if like_lm else nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(
            dim, config.heads, kv_dim=config.visual_dim, head_dim=config.head_dim, bias=False
        )
        if config.qk_norm:
            self.attention.query_norm, self.attention.key_norm = (norm(lm, config.head_dim) for _ in range(2))
        gates = dim if config.gate == "vector" else 1
        self.attn_gate = nn.Parameter(torch.zeros(gates))
        self.ffw: nn.Module = FlamingoFeedForward(dim, config.ffn_factor)
        if like_lm:
            self.ffw = nn.Sequential(norm(lm), DecoderFeedForward(lm))
        self.ffw_gate = nn.Parameter(torch.zeros(gates))

    def forward(self, x: Tensor, image_keys_values: KeysValues | None, media_mask: Tensor | None) -> Tensor:
        """``x [B, T, D]`` -> ``[B, T, D]``.

        Args:
            image_keys_values: of the pictures, ``[B, H, N * R, d]``; None = there are no pictures.
            media_mask: ``[B, T, N * R]``, see ``masks.media``.
        """
        if image_keys_values is not None:
            attended = self.attention(self.norm(x), image_keys_values, media_mask)
            x = x + attended * self.attn_gate.tanh()  # Flamingo section 2.2: gated cross-attention
        return x + self.ffw(x) * self.ffw_gate.tanh()  # Flamingo section 2.2: gated feed-forward

    def weights(self, x: Tensor, image_keys_values: KeysValues, media_mask: Tensor) -> Tensor:
        """The attention weights of the tokens to the pictures' latents: ``[B, H, T, N * R]``."""
        return self.attention.weights(self.norm(x), image_keys_values, media_mask)


def by_picture(x: Tensor, latents: int) -> Tensor:
    """``[B, H, N * R, d]`` -> ``[B, H, N, R, d]``."""
    return x.view(*x.shape[:2], -1, latents, x.shape[-1])


class Media(NamedTuple):
    """The pictures of each row: their keys and values for each gated block, ``[B, H, N * R, d]``, computed once."""

    numbers: Tensor  # [B, N]: the number of each picture in its row, from 1; NO_PICTURE = padding
    blocks: tuple[KeysValues, ...]

    @property
    def latents(self) -> int:
        """R."""
        return self.blocks[0].keys.shape[2] // max(1, self.numbers.shape[1])

    def select(self, rows: Tensor) -> Media:
        """Row i gets the pictures of the row ``rows[i]``."""
        return Media(self.numbers[rows], tuple(KeysValues(k[rows], v[rows]) for k, v in self.blocks))

    def append(self, later: Media) -> Media:
        """The pictures of each row, then its later ones."""
        blocks = (
            KeysValues(torch.cat([a.keys, b.keys], 2), torch.cat([a.values, b.values], 2))
            for a, b in zip(self.blocks, later.blocks, strict=True)
        )
        return Media(torch.cat([self.numbers, later.numbers], 1), tuple(blocks))

    def first_pictures(self, pictures: int) -> Media:
        """The first pictures of each row."""
        cut = pictures * self.latents
        blocks = (KeysValues(k[:, :, :cut], v[:, :, :cut]) for k, v in self.blocks)
        return Media(self.numbers[:, :pictures], tuple(blocks))

    def with_number(self, numbers: Tensor) -> Media:
        """Of each row only the picture with the number ``numbers [B]``; rows without it get some other picture, marked NO_PICTURE."""
        here = self.numbers == numbers[:, None]
        slot, rows = here.long().argmax(1), torch.arange(len(numbers), device=numbers.device)
        blocks = (KeysValues(*(by_picture(x, self.latents)[rows, :, slot] for x in pair)) for pair in self.blocks)
        return Media(numbers.masked_fill(~here.any(1), NO_PICTURE)[:, None], tuple(blocks))


@dataclass(eq=False)
class FlamingoState:
    """A text being read or written: a ``generate.State``. Pictures may join at any time (``Flamingo.add_pictures``)."""

    text: KVCache
    pictures_read: Tensor  # [B]: image tokens in the text so far
    media: Media | None = None
    last_media: Media | None = None  # the last picture of each row; None = not computed yet
    beams: int = 1  # rows of each input

    @classmethod
    def empty(cls, text: KVCache, rows: int, device: torch.device) -> FlamingoState:
        """Before anything is read."""
        return cls(text, torch.zeros(rows, dtype=torch.long, device=device))

    def reorder(self, rows: Tensor) -> FlamingoState:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``; the rows of an input share its pictures.

        This state must not be used afterwards.
        """
        flat, k = rows.flatten(), rows.shape[1]
        here = torch.arange(len(flat), device=rows.device)
        pictures_read, media, last_media = self.pictures_read, self.media, self.last_media
        if len(flat) != len(pictures_read) or k != self.beams or not torch.equal(flat // k, here // k):
            pictures_read, media, last_media = self.pictures_of(flat)
        return FlamingoState(self.text.reorder(rows), pictures_read, media, last_media, k)

    def pictures_of(self, rows: Tensor) -> tuple[Tensor, Media | None, Media | None]:
        """``pictures_read``, ``media`` and ``last_media`` of these rows."""
        media, last_media = (x.select(rows) if x else None for x in (self.media, self.last_media))
        return self.pictures_read[rows], media, last_media

    def fork(self, rows: Sequence[int]) -> FlamingoState:
        """A new state whose row i is a copy of the row ``rows[i]``; this one stays as it is."""
        chosen = torch.tensor(rows, device=self.pictures_read.device)
        return FlamingoState(self.text.fork(chosen), *self.pictures_of(chosen))

    def truncate(self, length: int, pictures: int) -> None:
        """Go back to the first ``length`` positions of a single row, which hold ``pictures`` pictures."""
        self.text.truncate(length)
        self.pictures_read = torch.full_like(self.pictures_read, pictures)
        self.media = self.media.first_pictures(pictures) if self.media and pictures else None
        self.last_media = None


class FlamingoPrompt(NamedTuple):
    """The input of ``Flamingo.prefill``."""

    input_ids: Tensor  # [B, T], image_id in the place of each picture
    visual_tokens: Tensor  # [P, R, D] of all rows' pictures, in order
    counts: Sequence[int]  # pictures of each row
    padding_mask: Tensor | None = None  # [B, T], True = a token; padding is on the left
    state: FlamingoState | None = None  # of the text so far; it is continued in place


class Flamingo(nn.Module):
    """The trained parts between the frozen ones; a ``generate.StepModel``. ``forward`` runs the language model's blocks itself.

    ``vision_encoder``: ``[P, 3, H, W]`` -> ``image_features [P, L, Dv]``.
    """

    def __init__(self, config: FlamingoConfig, vision_encoder: VisionEncoder, lm: Decoder) -> None:
        super().__init__()
        if config.every > lm.config.layers:
            raise InputError(
                f"every={config.every} leaves no gated block in a model of {lm.config.layers} blocks; choose at most {lm.config.layers}"
            )
        self.config = config
        self.vision_encoder = vision_encoder.requires_grad_(False)
        self.lm = lm.requires_grad_(False)
        self.resampler = Resampler(config)
        self.xattn = nn.ModuleList(GatedBlock(config, lm.config) for _ in range(lm.config.layers // config.every))

    def train(self, mode: bool = True) -> Flamingo:
        """The frozen parts stay in evaluation mode."""
        super().train(mode)
        self.vision_encoder.eval()
        self.lm.eval()
        return self

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """The frozen encoder: ``[P, 3, H, W]`` -> ``image_features [P, L, Dv]``."""
        return self.vision_encoder(pixel_values)

    def media(self, visual_tokens: Tensor, counts: Sequence[int], before: Sequence[int] | None = None) -> Media:
        """The keys and values of pictures for every gated block.

        Args:
            visual_tokens: ``[P, R, D]``, of all rows in order.
            counts: pictures of each row; their sum is P.
            before: earlier pictures of each row, from which the new ones are numbered on; None = none.

        Raises:
            InputError: the counts do not add up to the pictures.
        """
        if sum(counts) != len(visual_tokens):
            raise InputError(
                f"{len(visual_tokens)} pictures for {sum(counts)} image tokens in the text: give one for each"
            )
        device, most = visual_tokens.device, max(counts)
        count, start = (torch.tensor(x, device=device)[:, None] for x in (counts, before or [0] * len(counts)))
        index = torch.arange(most, device=device)
        real = index < count  # [B, N]
        slot = (count.cumsum(0) - count + index).where(real, 0)
        tokens = visual_tokens[slot].flatten(1, 2) if len(visual_tokens) else visual_tokens.new_zeros(len(counts), 0, 1)
        numbers = (start + 1 + index).where(real, NO_PICTURE)
        gated: list[Any] = [*self.xattn] if most else []
        return Media(numbers, tuple(block.attention.keys_values(tokens) for block in gated))

    def forward(
        self,
        input_ids: Tensor,
        media: Media | None = None,
        padding_mask: Tensor | None = None,
        state: FlamingoState | None = None,
        maps: list[Tensor] | None = None,
        text_maps: list[Tensor] | None = None,
        blind_from: int | None = None,
    ) -> Tensor:
        """Text interleaved with pictures.

        Args:
            input_ids: ``[B, T]``, image_id in the place of each picture.
            media: the pictures of these rows; with a ``state``, its own pictures are used instead.
            padding_mask: ``[B, T]``, True = a token; None = all are tokens.
            state: the text so far; it is continued in place.
            maps: the attention of tokens to pictures is appended, ``[B, T, N * R]`` for each gated block, the mean over heads.
            text_maps: the attention of tokens to one another is appended, ``[B, T, T]`` for each block; not together with ``state``.
            blind_from: from this position on, the text attends to no picture, nor does text without pictures that continues ``state``.

        Returns:
            the hidden states ``[B, T, E]``, for ``lm.logits``.
        """
        x, context = self.lm.embed_inputs(input_ids, padding_mask, state.text if state else None)
        text_time = (input_ids == self.config.image_id).cumsum(1)  # Flamingo section 2.3: pictures before each token
        if state is not None:
            text_time = text_time + state.pictures_read[:, None]
        if blind_from is not None:
            text_time[:, blind_from:] = 0  # pictures are numbered from 1
        if state is not None:
            media = self.media_for(state, text_time)
        media_mask = None
        if media is not None and media.blocks:
            media_mask = masks.media(text_time, media.numbers, self.config.latents, self.config.look)
        for i, block in enumerate(self.lm.blocks):
            number = self.config.gated_block(i)
            if number is not None and number < len(self.xattn):
                gated: Any = self.xattn[number]
                image_keys_values = media.blocks[number] if media is not None and media.blocks else None
                if maps is not None and image_keys_values is not None and media_mask is not None:
                    maps.append(gated.weights(x, image_keys_values, media_mask).mean(1))
                x = gated(x, image_keys_values, media_mask)
            if text_maps is not None:
                text_maps.append(block.attention_weights(x, context).mean(1))  # type: ignore[operator]
            x = block(x, context, state.text[i] if state else None)
        return self.lm.final_hidden(x)

    def media_for(self, state: FlamingoState, text_time: Tensor) -> Media | None:
        """The pictures of the rows; only the last one of each where a single token is read that attends to it alone."""
        if not torch.equal(text_time[:, -1], state.pictures_read):
            state.pictures_read, state.last_media = text_time[:, -1], None
        if state.media is None or text_time.shape[1] > 1 or self.config.look == "all":
            return state.media
        if state.last_media is None:
            state.last_media = state.media.with_number(state.pictures_read)
        return state.last_media

    def add_pictures(self, state: FlamingoState, visual_tokens: Tensor, counts: Sequence[int]) -> None:
        """Add the pictures of the text that is read next: ``visual_tokens [P, R, D]``, of each row ``counts``."""
        if not len(visual_tokens):
            return
        before = [0] * len(counts)
        if state.media is not None:
            before = (state.media.numbers != NO_PICTURE).sum(1).tolist()
        new = self.media(visual_tokens, counts, before)
        state.media = new if state.media is None else state.media.append(new)
        state.last_media = None

    def prefill(self, inputs: FlamingoPrompt) -> tuple[Tensor, FlamingoState]:
        """Read prompts: the logits ``[B, V]`` of the next token, and the state to continue with.

        Raises:
            InputError: the number of pictures and of image tokens differ; the prompt is empty or too long.
        """
        ids, visual_tokens, counts, padding_mask, state = inputs
        image_tokens = (ids == self.config.image_id).sum(1).tolist()
        if image_tokens != list(counts):
            raise InputError(
                f"{sum(counts)} pictures for {sum(image_tokens)} image tokens in the text: give one for each"
            )
        if ids.shape[1] == 0:
            raise InputError("the prompt is empty: the language model needs at least one token")
        if state is None:
            cache = KVCache(self.lm.config.layers, capacity=ids.shape[1] + SPARE_POSITIONS)
            state = FlamingoState.empty(cache, len(ids), ids.device)
        self.add_pictures(state, visual_tokens, counts)
        hidden = self(ids, padding_mask=padding_mask, state=state)
        return self.lm.logits(hidden[:, -1:])[:, 0], state

    def step(self, ids: Tensor, state: FlamingoState) -> tuple[Tensor, FlamingoState]:
        """One token for each row: ``ids [B * K]`` -> the logits ``[B * K, V]`` of the next."""
        return self.lm.logits(self(ids[:, None], state=state))[:, 0], state

    def gates(self) -> list[tuple[float, float]]:
        """tanh of both gates (attention, feed-forward) of each gated block, the mean over channels; 0 = closed."""
        blocks: list[Any] = [*self.xattn]
        gates = ((block.attn_gate, block.ffw_gate) for block in blocks)
        return [(a.detach().tanh().mean().item(), f.detach().tanh().mean().item()) for a, f in gates]


def flamingo_prompt(
    rows: Sequence[Sequence[int]], visual_tokens: Tensor, counts: Sequence[int], pad_id: int
) -> FlamingoPrompt:
    """Texts of several lengths, each a list of ids, as one batch padded on the left."""
    longest = max(len(row) for row in rows)
    device = visual_tokens.device
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
    mask = masks.left_padding([len(row) for row in rows])[:, 0].to(device)
    return FlamingoPrompt(ids, visual_tokens, counts, None if bool(mask.all()) else mask)
