"""BLIP-2 (Li et al. 2023): a Q-Former between a frozen image encoder and a frozen language model.

    pixel_values -> vision_encoder (frozen) -> image_features [B, L, Dv]
      -> Q-Former (learned queries, perhaps with a question) -> query_output [B, Q, D]
         -> heads:      features for contrast, match or no match, the next word              (first stage)
         -> projection: soft_prompt [B, Q, E], read by lm (frozen) in the place of the photo (second stage)

A prompt may hold several photos: each photo's soft prompt takes its place in the text. This extends the paper, which trains and
tests with one photo. A Q-Former that also reads the question is InstructBLIP's idea (Dai et al. 2023).
Shapes (legend in ``nn/attention.py``): B photos, K texts of each, R = B * K rows, E width of the language model's embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn.decoder import Decoder, Prompt, left_pad
from triptych.nn.encoder import VisionEncoder
from triptych.nn.language_model import LanguageModel
from triptych.nn.qformer import ImageKeysValues, Past, QFormer, QFormerHeads, QFormerOutput, initialise
from triptych.nn.t5 import T5
from triptych.systems.blip2_losses import itc_similarity
from triptych.systems.configs import Blip2Config


class MatchScores(NamedTuple):
    """How well photos and texts fit, each ``[B, K]``."""

    itc_cosine: Tensor  # of the best query, -1 to 1
    itc_scaled: Tensor  # the same over the temperature: what contrast compares
    itm_prob: Tensor  # the probability that they match, 0 to 1
    rerank: Tensor  # logit of a match + contrast_weight * itc_cosine: retrieval sorts by it


class Blip2(nn.Module):
    """The trained parts between the frozen ones; ``lm`` None = the first stage alone.

    ``vision_encoder``: ``[B, 3, H, W]`` -> ``image_features [B, L, Dv]``.
    """

    def __init__(self, config: Blip2Config, vision_encoder: VisionEncoder, lm: LanguageModel[Any] | None) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = vision_encoder.requires_grad_(False)
        self.vision_norm = nn.LayerNorm(config.qformer.image_dim) if config.normalise else nn.Identity()
        self.qformer = QFormer(config.qformer)
        self.heads = QFormerHeads(config.qformer, config.feature_dim, config.writes) if config.feature_dim else None
        self.lm = lm.requires_grad_(False) if lm else None
        self.projection = nn.Linear(config.qformer.dim, lm.embed_width) if lm else None
        if self.projection:
            initialise(self.projection)

    @property
    def network(self) -> Decoder | T5:
        """The language model, for training.

        Raises:
            InputError: there is none, or it does not run in PyTorch.
        """
        if not isinstance(self.lm, Decoder | T5):
            raise InputError("training needs a language model that runs in PyTorch, and this model has none")
        return self.lm

    def train(self, mode: bool = True) -> Blip2:
        """The frozen parts stay in evaluation mode."""
        super().train(mode)
        self.vision_encoder.eval()
        if self.lm:
            self.lm.eval()
        return self

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """The frozen encoder: ``[B, 3, H, W]`` -> ``image_features [B, L, Dv]``."""
        return self.vision_encoder(pixel_values)

    def image_keys_values(self, image_features: Tensor) -> ImageKeysValues:
        """``image_features [B, L, Dv]`` -> the keys and values that the Q-Former attends to: computed once for any number of texts."""
        return self.qformer.image_keys_values(self.vision_norm(image_features))

    def match(
        self, image: ImageKeysValues, queries: Tensor, text_features: Tensor, input_ids: Tensor, text_mask: Tensor
    ) -> MatchScores:
        """Every photo with every text.

        Args:
            image: B photos.
            queries: ``[B, Q, D]``, from ``qformer.encode_image``.
            text_features: ``[K, E]``, from ``text_features``.
            input_ids, text_mask: the K texts, ``[K, T]``.

        Returns:
            the scores of each pair, ``[B, K]``.
        """
        assert self.heads is not None
        cosine = itc_similarity(self.heads.image_features(queries).float(), text_features.float())
        photos, texts = cosine.shape
        pairs = self.qformer.encode_both(image, input_ids.repeat(photos, 1), text_mask.repeat(photos, 1))
        logits = self.heads.itm_logits(pairs.queries).view(photos, texts, 2)
        scaled = cosine / self.heads.bounded_temperature
        return MatchScores(
            cosine, scaled, logits.softmax(-1)[..., 1], logits[..., 1] + self.config.contrast_weight * cosine
        )

    def text_features(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """``[K, T]`` -> features for contrast ``[K, E]``, of length 1."""
        assert self.heads is not None
        return self.heads.text_features(self.qformer.encode_text(input_ids, text_mask).text)

    def read_photos(
        self, image: ImageKeysValues, question: tuple[Tensor, Tensor] | None = None, with_maps: bool = False
    ) -> QFormerOutput:
        """The Q-Former over photos, together with a ``question`` (ids and mask ``[R, T]``) if there is one."""
        if question is None:
            return self.qformer.encode_image(image, with_maps)
        return self.qformer.encode_both(image, *question, with_maps)

    def soft_prompt(self, query_output: Tensor) -> Tensor:
        """``[R, Q, D]`` -> ``[R, Q, E]``: the embeddings that the language model reads for a photo."""
        assert self.projection is not None
        return self.projection(query_output)  # BLIP-2 section 3.2: soft visual prompt

    def prompt(self, rows: Sequence[Sequence[Tensor]]) -> Prompt:
        """Interleaved photos and text for the language model.

        Args:
            rows: the pieces of each row in order: ids ``[n]`` of a text, or the soft prompt ``[Q, E]`` of a photo.
        """
        assert self.lm is not None
        lm = self.lm
        pieces = [[piece if piece.is_floating_point() else lm.embed(piece) for piece in row] for row in rows]
        return left_pad([torch.cat([piece.to(row[0].dtype) for piece in row]) for row in pieces])


class GroundedText:
    """Captions written by the Q-Former itself, as it learns in the first stage (ITG): a ``generate.StepModel`` over photos."""

    def __init__(self, model: Blip2, dec: int) -> None:
        """``dec``: the id of [DEC], the first token of a text."""
        self.model, self.dec = model, dec

    def prefill(self, inputs: ImageKeysValues) -> tuple[Tensor, Past]:
        past = self.model.qformer.encode_image(inputs).past
        keys = past.layers[0].keys
        return self.step(torch.full((len(keys),), self.dec, device=keys.device), past)

    def step(self, ids: Tensor, state: Past) -> tuple[Tensor, Past]:
        qformer, heads = self.model.qformer, self.model.heads
        assert heads is not None
        output = qformer.continue_text(ids[:, None], state)
        return heads.lm_logits(output.text[:, -1], qformer.word_embeddings.weight), output.past
