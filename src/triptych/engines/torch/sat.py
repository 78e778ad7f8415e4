"""Show, Attend and Tell on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.engines.describe import Size, describe_sat
from triptych.engines.interface import Array, SatSpec
from triptych.engines.torch.common import TorchEncoder, count_parameters, megabytes
from triptych.evidence import Floats
from triptych.logits import to_numpy
from triptych.models import SatModel
from triptych.systems.show_attend_tell import CaptionState
from triptych.text.vocabulary import BOS


class TorchSat(TorchEncoder):
    """An ``interface.SatEngine``."""

    def __init__(self, sat: SatModel, device: torch.device) -> None:
        self.sat, self.model = sat, sat.model.to(device)
        super().__init__(self.model.encoder, self.model.encoder.trunk, device)
        self.spec = SatSpec(sat.vocabulary, sat.search)

    @torch.inference_mode()
    def read(self, features: Sequence[Array]) -> Tensor:
        return self.model.encoder.tail(self.stack(features))

    def mean(self, annotations: Array) -> Floats:
        return to_numpy(self.tensor(annotations).mean(1))

    def pooled(self, features: Sequence[Array]) -> Floats:
        return self.mean(self.read(features))

    def prefill(self, inputs: Array) -> tuple[Tensor, CaptionState]:
        return self.model.decoder.prefill(self.tensor(inputs))

    def step(self, ids: Tensor, state: CaptionState) -> tuple[Tensor, CaptionState]:
        return self.model.decoder.step(ids, state)

    @torch.inference_mode()
    def maps(self, features: Array, ids: Sequence[int]) -> Floats:
        """The alpha (SAT eq. 5) of the decoder while it reads its own caption again."""
        written = torch.tensor([[[BOS, *ids[:-1]]]], device=self.device)
        alpha = self.model.decoder(self.read([features]), written).alpha[0, 0]
        return to_numpy(alpha.view(len(ids), *self.photos.grid))

    def info(self) -> dict[str, Any]:
        encoder = self.model.encoder
        frozen = sum(p.numel() for p in encoder.layers[: encoder.cut].parameters())
        size = Size(count_parameters(self.model), frozen, megabytes(self.model))
        return describe_sat(self.sat.config, self.photos, len(self.sat.vocabulary), size)
