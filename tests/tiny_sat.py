"""A tiny random Show, Attend and Tell decoder, and data for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import CaptionDecoder
from triptych.text.vocabulary import BOS

V, D, M, N, A = 11, 6, 5, 7, 4
B, K, T, L = 3, 2, 4, 5
VARIANTS = ("paper", "tutorial")
KINDS: tuple[Literal["soft", "hard"], ...] = ("soft", "hard")


def make(variant: str = "paper", attention: Literal["soft", "hard"] = "soft", seed: int = 0) -> CaptionDecoder:
    """A decoder whose weights are large enough for sharp, uneven attention."""
    torch.manual_seed(seed)
    build = getattr(ShowAttendTellConfig, variant)
    decoder = CaptionDecoder(build(V, D, embed_dim=M, hidden_dim=N, attention_dim=A, attention=attention))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.7)
    return decoder.eval()


def data(seed: int = 1, words: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, V, (B, K, words), generator=generator)
    ids[:, :, 0] = BOS
    return torch.randn(B, L, D, generator=generator), ids
