"""The Q-Former (BLIP-2, Li et al. 2023, section 3.1): learned queries that read a photo, alone or together with a text.

A BERT whose self-attention is shared by queries and text. In every second layer the queries also attend to the photo; they have
feed-forward layers of their own. The three objectives differ in the self-attention mask (drawn in ``masks.itc``, ``itm``, ``itg``):
contrast is ``encode_image`` and ``encode_text``, one side at a time; matching is ``encode_both``; grounded generation ``continue_text``.

Shapes (legend in ``nn/attention.py``): ``image_features [B, L, Dv]`` of B photos; R rows of queries and text, R = B * K. The K rows of a
photo are adjacent, so that its keys and values are computed once for all its texts. Q queries, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn import masks
from triptych.nn.attention import KeysValues, MultiHeadAttention
from triptych.nn.configs import QFormerConfig


class QFormerSelfAttention(nn.Module):
    """BERT's, with its residual, for queries and text: norm(x + attention(x))."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.dim, config.heads)
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """``x [R, T, D]`` after ``past`` -> ``[R, T, D]``, and the keys and values of both."""
        kv = self.attention.keys_values(x)
        if past is not None:
            kv = KeysValues(torch.cat([past.keys, kv.keys], 2), torch.cat([past.values, kv.values], 2))
        return self.norm(x + self.dropout(self.attention(x, kv, mask))), kv


class CrossAttention(nn.Module):
    """Queries attend to their photo: norm(x + attention(x, photo)); all K rows of a photo in one product."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.dim, config.heads, kv_dim=config.image_dim)
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, image: KeysValues) -> Tensor:
        """``x [R, Q, D]``, keys and values ``[B, H, L, D / H]`` -> ``[R, Q, D]``."""
        attended = self.attention(self.by_photo(x, image), image).view_as(x)  # BLIP-2 section 3.1: cross-attention
        return self.norm(x + self.dropout(attended))

    def maps(self, x: Tensor, image: KeysValues) -> Tensor:
        """The attention of each query to the cells, the mean over heads: ``[R, Q, L]``."""
        return self.attention.weights(self.by_photo(x, image), image).mean(1).reshape(*x.shape[:2], -1)

    @staticmethod
    def by_photo(x: Tensor, image: KeysValues) -> Tensor:
        """``[R, Q, D]`` -> ``[B, K * Q, D]``."""
        return x.reshape(len(image.keys), -1, x.shape[-1])


class QFormerFeedForward(nn.Module):
    """BERT's, with its residual: norm(x + down(gelu(up(x))))."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_dim)
        self.down = nn.Linear(config.mlp_dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Maps(NamedTuple):
    """The attention of one layer, the mean over heads."""

    cells: Tensor | None  # [R, Q, L]: of queries to the cells of their photo; None without cross-attention
    inner: Tensor  # [R, Q + T, S]: of queries and words to one another, the Q queries first in S


class QFormerLayer(nn.Module):
    def __init__(self, config: QFormerConfig, cross: bool) -> None:
        super().__init__()
        self.self_attention = QFormerSelfAttention(config)
        self.cross_attention = CrossAttention(config) if cross else None
        self.query_mlp = QFormerFeedForward(config)
        self.text_mlp = QFormerFeedForward(config) if config.vocab_size else nn.Identity()

    def forward(
        self,
        x: Tensor,
        queries: int,
        mask: Tensor | None,
        image: KeysValues | None,
        past: KeysValues | None,
        with_maps: bool,
    ) -> tuple[Tensor, KeysValues, Maps | None]:
        """One layer over queries and text.

        Args:
            x: ``[R, Q + T, D]``, the queries first.
            queries: Q.
            mask: True = may attend, ``[Q + T, S]`` or ``[R, Q + T, S]``.
            image: keys and values of the photos for the cross-attention, if any.
            past: those of earlier text for the self-attention.

        Returns:
            the new ``x``, the self-attention's keys and values, and its maps ``with_maps``.
        """
        # BLIP-2 section 3.1: queries and text share self-attention
        attended, kv = self.self_attention(x, mask, past)
        query, text = attended[:, :queries], attended[:, queries:]
        cells = None
        if image is not None and self.cross_attention is not None:
            cells = self.cross_attention.maps(query, image) if with_maps else None
            query = self.cross_attention(query, image)
        maps = Maps(cells, self.self_attention.attention.weights(x, kv, mask).mean(1)) if with_maps else None
        # BLIP-2 section 3.1: queries and text have their own feed-forward layers
        return torch.cat([self.query_mlp(query), self.text_mlp(text)], 1), kv, maps


class ImageKeysValues(NamedTuple):
    """The keys and values of B photos: ``[B, H, L, D / H]`` for each layer, None for those without cross-attention."""

    layers: tuple[KeysValues | None, ...]

    def select(self, rows: Tensor | slice) -> ImageKeysValues:
        """Some of the photos, in this order."""
        return ImageKeysValues(tuple(kv and KeysValues(kv.keys[rows], kv.values[rows]) for kv in self.layers))


class Past(NamedTuple):
    """The keys and values of each self-attention so far: ``[R, H, S, D / H]``."""

    layers: tuple[KeysValues, ...]

    @property
    def length(self) -> int:
        return self.layers[0].keys.shape[2]

    def reorder(self, rows: Tensor) -> Past:
        """Row r continues the old row ``rows.flatten()[r]``."""
        chosen = rows.flatten()
        return Past(tuple(KeysValues(kv.keys[chosen], kv.values[chosen]) for kv in self.layers))


class QFormerOutput(NamedTuple):
    queries: Tensor  # [R, Q, D]; Q = 0 without photos
    text: Tensor  # [R, T, D]; T = 0 without text
    past: Past
    maps: tuple[Maps, ...]  # of every layer; empty without ``with_maps``


class QFormer(nn.Module):
    """Learned queries and a BERT over photos, texts, or both."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.empty(config.queries, config.dim))
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers: Sequence[QFormerLayer] = nn.ModuleList(  # type: ignore[assignment]
            QFormerLayer(config, cross=i % config.cross_attn_every == 0) for i in range(config.layers)
        )
        if config.vocab_size:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.dim)
            self.position_embeddings = nn.Embedding(config.max_positions, config.dim)
        nn.init.normal_(self.query_tokens, std=0.02)
        self.apply(initialise)

    def image_keys_values(self, image_features: Tensor) -> ImageKeysValues:
        """``image_features [B, L, Dv]`` -> the ``image`` of the other methods: computed once for any number of texts."""
        crosses = (layer.cross_attention for layer in self.layers)
        return ImageKeysValues(
            tuple(cross.attention.keys_values(image_features) if cross else None for cross in crosses)
        )

    def forward(
        self,
        image: ImageKeysValues | None = None,
        input_ids: Tensor | None = None,
        mask: Tensor | None = None,
        past: Past | None = None,
        with_maps: bool = False,
    ) -> QFormerOutput:
        """Queries if there are photos, then text if there is text.

        Args:
            image: B photos.
            input_ids: ``[R, T]``, K texts of each photo one after another; R = B without text.
            mask: True = may attend, ``[Q + T, S]`` or ``[R, Q + T, S]``, S = past and present; None = all attend to all.
            past: the queries and the earlier text that this text continues; not together with ``image``.

        Raises:
            InputError: the text is too long, or there is no text side.
            ValueError: R is not a multiple of B.
        """
        queries = self.config.queries if image else 0
        nothing = (None,) * self.config.layers
        photos, pasts = image.layers if image else nothing, past.layers if past else nothing
        x = self.dropout(self.norm(torch.cat(list(self.embed(image, input_ids, past)), 1)))
        read, maps = [], []
        for layer, photo, before in zip(self.layers, photos, pasts, strict=True):
            x, kv, layer_maps = layer(x, queries, mask, photo, before, with_maps)
            read.append(kv)
            if layer_maps:
                maps.append(layer_maps)
        return QFormerOutput(x[:, :queries], x[:, queries:], Past(tuple(read)), tuple(maps))

    def embed(self, image: ImageKeysValues | None, input_ids: Tensor | None, past: Past | None) -> Iterator[Tensor]:
        """Queries ``[R, Q, D]``, without positions, then words ``[R, T, D]``, whose positions count from [CLS] or [DEC]."""
        if image:
            photos = next(len(kv.keys) for kv in image.layers if kv)
            rows = photos if input_ids is None else len(input_ids)
            if rows % photos:
                raise ValueError(f"{rows} texts for {photos} photos: each photo needs as many")
            yield self.query_tokens.expand(rows, -1, -1)
        if input_ids is not None:
            if not self.config.vocab_size:
                raise InputError("this Q-Former reads no text: its checkpoint has no text side")
            start = past.length - self.config.queries if past else 0
            end = start + input_ids.shape[1]
            if end > self.config.max_positions:
                raise InputError(
                    f"the text has {end} word pieces: the Q-Former reads {self.config.max_positions} at most"
                )
            yield self.word_embeddings(input_ids) + self.position_embeddings.weight[start:end]

    def encode_image(self, image: ImageKeysValues, with_maps: bool = False) -> QFormerOutput:
        """Photos alone: contrast, the prefix of generation, the second stage."""
        return self(image, with_maps=with_maps)

    def encode_text(self, input_ids: Tensor, text_mask: Tensor) -> QFormerOutput:
        """Texts alone, for contrast. ``input_ids [R, T]``, ``text_mask [R, T]`` False on padding.

        Two passes, ``encode_image`` and this one, are one pass with ``masks.itc``.
        """
        # BLIP-2 section 3.1: ITC mask, queries and text apart
        return self(input_ids=input_ids, mask=masks.padding(text_mask))

    def encode_both(
        self, image: ImageKeysValues, input_ids: Tensor, text_mask: Tensor, with_maps: bool = False
    ) -> QFormerOutput:
        """Photos and texts that attend to one another: matching, and queries that read an instruction (Dai et al. 2023)."""
        queries, tokens = self.config.queries, input_ids.shape[1]
        present = F.pad(text_mask.bool(), (queries, 0), value=True)
        # BLIP-2 section 3.1: ITM mask, all attend to all
        mask = masks.intersection(masks.itm(queries, tokens, input_ids.device), masks.padding(present))
        return self(image, input_ids, mask, with_maps=with_maps)

    def continue_text(self, input_ids: Tensor, past: Past, with_maps: bool = False) -> QFormerOutput:
        """The next words of grounded generation ``[R, T]``, the first of them [DEC]; ``past``: of ``encode_image``, or of earlier words.

        Padding may follow the words: no word attends to it. Queries read once, then text, are one pass with ``masks.itg``.
        """
        # BLIP-2 section 3.1: ITG mask, text attends to the queries and to earlier text
        mask = masks.causal(input_ids.shape[1], past.length, device=input_ids.device)
        return self(input_ids=input_ids, mask=mask, past=past, with_maps=with_maps)


class QFormerHeads(nn.Module):
    """The outputs of the first stage: features for contrast (ITC), match or no match (ITM), and if it ``writes``, the next word (ITG)."""

    def __init__(self, config: QFormerConfig, feature_dim: int = 256, writes: bool = True) -> None:
        super().__init__()
        self.vision_proj = nn.Linear(config.dim, feature_dim)
        self.text_proj = nn.Linear(config.dim, feature_dim)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.itm_head = nn.Linear(config.dim, 2)
        if writes:
            self.lm_dense = nn.Linear(config.dim, config.dim)
            self.lm_norm = nn.LayerNorm(config.dim, config.eps)
            self.lm_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(initialise)

    @property
    def bounded_temperature(self) -> Tensor:
        """The learned temperature that similarities are divided by, clamped to 0.001 to 0.5 so that training stays stable."""
        return self.temperature.clamp(0.001, 0.5)

    def image_features(self, queries: Tensor) -> Tensor:
        """``[B, Q, D]`` -> ``[B, Q, E]`` of length 1, one for each query."""
        return F.normalize(self.vision_proj(queries), dim=-1)

    def text_features(self, text: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, E]`` of length 1, from [CLS]."""
        return F.normalize(self.text_proj(text[:, 0]), dim=-1)

    def itm_logits(self, queries: Tensor) -> Tensor:
        """``[R, Q, D]`` of ``encode_both`` -> ``[R, 2]``, the mean over queries; class 1 = they match."""
        return self.itm_head(queries).mean(1)  # BLIP-2 section 3.1: ITM score, the mean over queries

    def lm_logits(self, text: Tensor, word_embeddings: Tensor) -> Tensor:
        """``[R, T, D]`` -> ``[R, T, V]``; ``word_embeddings [V, D]`` are the Q-Former's, tied."""
        return F.linear(self.lm_norm(F.gelu(self.lm_dense(text))), word_embeddings, self.lm_bias)


def initialise(module: nn.Module) -> None:
    """BERT's initial weights: N(0, 0.02), biases 0. The queries' feed-forward layers start as copies of the text's."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, QFormerLayer) and isinstance(module.text_mlp, QFormerFeedForward):
        module.query_mlp.load_state_dict(module.text_mlp.state_dict())
