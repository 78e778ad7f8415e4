"""BLIP-2 on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from triptych.checkpoints.locate import features_fingerprint
from triptych.engines.describe import Size, describe_blip2
from triptych.engines.interface import Array, MatchArrays, Piece, SoftPrompt, TextPieces
from triptych.engines.specs import blip2_spec
from triptych.engines.torch.common import (
    TorchEncoder,
    continuation_logprobs,
    count_parameters,
    megabytes,
    on_device,
)
from triptych.evidence import Floats
from triptych.generate import State
from triptych.logits import to_numpy
from triptych.models import Blip2Model
from triptych.nn.language_model import LanguageModel
from triptych.nn.qformer import ImageKeysValues, Past, QFormerHeads, QFormerOutput
from triptych.systems.blip2 import GroundedText


class TorchBlip2(TorchEncoder):
    """An ``interface.Blip2Engine``."""

    def __init__(self, blip2: Blip2Model, device: torch.device) -> None:
        self.blip2, self.model = blip2, on_device(blip2.model, device)
        super().__init__(self.model.vision_encoder, self.model.encode, device)
        config, lm = msgspec.structs.replace(blip2.config, model=self.model.config), self.model.lm
        tokenizer, max_tokens = (blip2.tokenizer, lm.max_positions) if lm else (None, 0)
        self.spec = blip2_spec(config, blip2.words, tokenizer, blip2.search, max_tokens)
        self.writer = CaptionWriter(self)

    @property
    def lm(self) -> LanguageModel[Any]:
        assert self.model.lm is not None  # callers check ``spec.tokenizer``
        return self.model.lm

    @property
    def heads(self) -> QFormerHeads:
        assert self.model.heads is not None  # callers check ``spec.matches``
        return self.model.heads

    def image_keys_values(self, features: Sequence[Array]) -> ImageKeysValues:
        """The Q-Former's keys and values of photos."""
        return self.model.image_keys_values(self.stack(features))

    def pieces(self, texts: TextPieces) -> tuple[Tensor, Tensor]:
        return self.tensor(texts.input_ids), self.tensor(texts.mask)

    # The language model after the soft prompts

    @torch.inference_mode()
    def read(
        self, features: Sequence[Array], instructions: TextPieces | None, with_cells: bool = False
    ) -> list[SoftPrompt]:
        question = None if instructions is None else self.pieces(instructions)
        output = self.model.read_photos(self.image_keys_values(features), question, with_cells)
        vectors = self.model.soft_prompt(output.queries)
        cells = self.cells(output) if with_cells else [None] * len(vectors)
        return [SoftPrompt(*photo) for photo in zip(vectors, cells, strict=True)]

    def tensors(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Ids as int64, soft prompts unchanged."""
        return [
            torch.tensor(piece, dtype=torch.long, device=self.device) if isinstance(piece, list) else self.tensor(piece)
            for piece in pieces
        ]

    @torch.inference_mode()
    def prefill(self, inputs: Sequence[Sequence[Piece]]) -> tuple[Tensor, State]:
        return self.lm.prefill(self.model.prompt([self.tensors(row) for row in inputs]))

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        return self.lm.step(ids, state)

    @torch.inference_mode()
    def score(self, logits: Array, state: State, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        rows = state.reorder(torch.zeros(1, len(texts), dtype=torch.long, device=self.device))
        return continuation_logprobs(self.tensor(logits), texts, lambda ids: self.lm.score(ids, rows))

    @torch.inference_mode()
    def maps(self, pieces: Sequence[Piece], cells: Sequence[Array], ids: Sequence[int]) -> Floats:
        """All attention is the mean over heads and layers."""
        row = self.tensors(pieces)
        text = torch.tensor([ids[:-1]], dtype=torch.long, device=self.device)
        layers = self.lm.prompt_attention(self.model.prompt([row]).inputs, text)
        attention = torch.stack([layer[0].mean(0) for layer in layers]).mean(0)  # [T, P]
        starts = np.cumsum([0, *map(len, row)])
        soft = [attention[:, a:b] for a, b, piece in zip(starts, starts[1:], row, strict=False) if piece.dim() > 1]
        by_cell = torch.einsum("tnq,nql->tnl", torch.stack(soft, 1), self.stack(cells))
        return self.on_grid(by_cell)

    # The Q-Former as a writer

    @torch.inference_mode()
    def writer_maps(self, features: Array, ids: Sequence[int]) -> Floats:
        """The attention of the words to the queries times that of the queries to the cells."""
        photo = self.model.qformer.encode_image(self.image_keys_values([features]), with_maps=True)
        text = torch.tensor([[self.spec.words.dec, *ids[:-1]]], device=self.device)
        written = self.model.qformer.continue_text(text, photo.past, with_maps=True)
        attention = inner(written)[0, :, : self.spec.queries]
        return self.on_grid(attention @ self.cells(photo)[0])

    # Matching

    @property
    def fingerprint(self) -> str:
        return features_fingerprint(self.blip2.config)

    @torch.inference_mode()
    def itc_images(self, features: Sequence[Array]) -> Floats:
        queries = self.model.read_photos(self.image_keys_values(features)).queries
        return to_numpy(self.heads.image_features(queries))

    @torch.inference_mode()
    def itc_texts(self, texts: TextPieces) -> Floats:
        return to_numpy(self.model.text_features(*self.pieces(texts)))

    @torch.inference_mode()
    def match(self, features: Sequence[Array], texts: TextPieces, itc_texts: Floats) -> tuple[Floats, MatchArrays]:
        image = self.image_keys_values(features)
        queries = self.model.read_photos(image).queries
        scores = self.model.match(image, queries, self.tensor(itc_texts), *self.pieces(texts))
        return to_numpy(self.heads.image_features(queries)), MatchArrays(*map(to_numpy, scores))

    @torch.inference_mode()
    def match_maps(self, features: Array, texts: TextPieces) -> Floats:
        image, (input_ids, mask) = self.image_keys_values([features]), self.pieces(texts)
        both = self.model.qformer.encode_both(image, input_ids, mask, with_maps=True)
        queries = self.spec.queries
        attention = inner(both)[0, queries + 1 : -1, :queries]
        alone = self.model.qformer.encode_image(image, with_maps=True)
        similarity = self.heads.image_features(alone.queries)[0] @ self.model.text_features(input_ids, mask)[0]
        best = self.cells(alone)[0, similarity.argmax()]
        return self.on_grid(torch.cat([attention @ self.cells(both)[0], best[None]]))

    def cells(self, output: QFormerOutput) -> Tensor:
        """The attention of each query to the cells, without the class token: ``[B, Q, L]``."""
        attended = torch.stack([layer.cells for layer in output.maps if layer.cells is not None]).mean(0)
        height, width = self.photos.grid
        return attended[..., -height * width :]

    def on_grid(self, maps: Tensor) -> Floats:
        return to_numpy(maps.view(*maps.shape[:-1], *self.photos.grid))

    def info(self) -> dict[str, Any]:
        count = count_parameters(self.model)
        size = Size(count, count["vision_encoder"] + count.get("lm", 0), megabytes(self.model))
        return describe_blip2(self.blip2.config, self.photos, size)


class CaptionWriter:
    """``systems.blip2.GroundedText`` over image features."""

    def __init__(self, engine: TorchBlip2) -> None:
        self.engine, self.text = engine, GroundedText(engine.model, engine.spec.words.dec)

    def prefill(self, inputs: Sequence[Array]) -> tuple[Tensor, Past]:
        return self.text.prefill(self.engine.image_keys_values(inputs))

    def step(self, ids: Tensor, state: Past) -> tuple[Tensor, Past]:
        return self.text.step(ids, state)


def inner(output: QFormerOutput) -> Tensor:
    """The attention of queries and words to one another, the mean over layers: ``[R, rows, S]``."""
    return torch.stack([layer.inner for layer in output.maps]).mean(0)
