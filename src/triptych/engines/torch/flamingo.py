"""Flamingo on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from triptych.engines.describe import Size, describe_flamingo
from triptych.engines.interface import Array, FlamingoInputs
from triptych.engines.specs import flamingo_spec
from triptych.engines.torch.common import (
    TorchEncoder,
    continuation_logprobs,
    count_parameters,
    megabytes,
    on_device,
)
from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.logits import to_numpy
from triptych.models import FlamingoModel
from triptych.systems.flamingo import FlamingoState, flamingo_prompt

MAX_MAP_TOKENS = 2048  # the memory of attention maps grows with the square of the tokens


class TorchFlamingo(TorchEncoder):
    """An ``interface.FlamingoEngine``."""

    def __init__(self, flamingo: FlamingoModel, device: torch.device) -> None:
        self.flamingo, self.model = flamingo, on_device(flamingo.model, device)
        super().__init__(self.model.vision_encoder, self.model.encode, device)
        config = msgspec.structs.replace(flamingo.config, model=self.model.config)
        self.spec = flamingo_spec(config, flamingo.tokenizer, flamingo.search, self.model.lm.max_positions)

    @torch.inference_mode()
    def read(self, features: Sequence[Array], places: Sequence[int]) -> list[Tensor]:
        tokens = self.model.resampler(self.stack(features), torch.tensor(places, device=self.device))
        return [x.clone() for x in tokens]

    @torch.inference_mode()
    def prefill(self, inputs: FlamingoInputs) -> tuple[Tensor, FlamingoState]:
        counts = [len(pictures) for pictures in inputs.visual_tokens]
        tokens = torch.empty(0, self.model.config.latents, self.model.config.visual_dim, device=self.device)
        if sum(counts):
            tokens = self.stack([x for pictures in inputs.visual_tokens for x in pictures])
        prompt = flamingo_prompt(inputs.rows, tokens, counts, self.flamingo.end_id)._replace(state=inputs.state)
        if not inputs.blind:
            return self.model.prefill(prompt)
        hidden = self.model(prompt.input_ids, padding_mask=prompt.padding_mask, state=inputs.state, blind_from=0)
        return self.model.lm.logits(hidden[:, -1:])[:, 0], inputs.state

    def step(self, ids: Tensor, state: FlamingoState) -> tuple[Tensor, FlamingoState]:
        return self.model.step(ids, state)

    def score(self, logits: Array, state: FlamingoState, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        each = state.fork([0] * len(texts))
        model = self.model
        return continuation_logprobs(self.tensor(logits), texts, lambda ids: model.lm.logits(model(ids, state=each)))

    @torch.inference_mode()
    def maps(
        self, prompt: Sequence[int], features: Sequence[Array], ids: Sequence[int], blind_from: int | None = None
    ) -> Floats:
        """See ``interface.FlamingoEngine.maps``.

        A token attends to its picture through the gated blocks, and through the language model to earlier tokens, which attended to
        theirs. Its map is the mean of both ways, so that the maps of all pictures sum to at most 1. The gated blocks' attention to the
        latents is multiplied by the resampler's attention to the cells. All attention is the mean over heads and layers.
        """
        if len(prompt) + len(ids) > MAX_MAP_TOKENS:
            raise InputError(
                f"the text has {len(prompt) + len(ids)} tokens: attention maps are made of {MAX_MAP_TOKENS} at most"
            )
        pictures, cells, latents, text = len(features), list[Tensor](), list[Tensor](), list[Tensor]()
        numbers = torch.arange(1, pictures + 1, device=self.device)
        tokens = self.model.resampler(self.stack(features), numbers, cells)
        whole = torch.tensor([[*prompt, *ids[:-1]]], dtype=torch.long, device=self.device)
        media = self.model.media(tokens, [pictures])
        self.model(whole, media, maps=latents, text_maps=text, blind_from=blind_from)
        direct = torch.stack([x[0] for x in latents]).mean(0).view(whole.shape[1], pictures, -1)  # [S, N, R]
        through = torch.stack([x[0] for x in text]).mean(0)[-len(ids) :]  # [T, S]
        by_latent = (direct[-len(ids) :] + torch.einsum("ts,snr->tnr", through, direct)) / 2
        by_cell = torch.einsum("tnr,nrl->tnl", by_latent, self.cells_of_latents(cells))
        return to_numpy(by_cell.view(len(ids), pictures, *self.photos.grid))

    def cells_of_latents(self, maps: Sequence[Tensor]) -> Tensor:
        """The resampler's attention of latents to cells, ``[N, R, L]``, without that to other latents and the class token."""
        height, width = self.photos.grid
        latents = maps[0].shape[2]
        return torch.stack([x.mean(1) for x in maps]).mean(0)[..., -latents - height * width : -latents]

    def gates(self) -> list[tuple[float, float]]:
        return self.model.gates()

    def info(self) -> dict[str, Any]:
        count = count_parameters(self.model)
        size = Size(count, count["vision_encoder"] + count["lm"], megabytes(self.model))
        return describe_flamingo(self.flamingo.config, self.photos, self.gates(), size)
