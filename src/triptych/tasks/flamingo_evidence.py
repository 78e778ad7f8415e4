"""Where Flamingo looked while it wrote: over every picture of the prompt, the examples' too.

A token looks at its picture through the gated blocks, and at earlier tokens, which looked at theirs, through the language model: its
map is the mean of both. Gated attention on the latents is multiplied with the resampler's on the cells. All attention is the mean over
heads and layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.errors import InputError
from triptych.systems.flamingo import Flamingo
from triptych.tasks.writing import Spans

MAX_TOKENS = 2048  # the memory for attention grows with their square


def answer_maps(
    model: Flamingo,
    prompt_ids: Sequence[int],
    image_features: Tensor,
    ids: Sequence[int],
    spans: Spans,
    away: int | None = None,
) -> NDArray[np.float32]:
    """Of what was written (``ids``, the words' ``spans``) behind a prompt with the pictures ``image_features [N, L, Dv]``:
    ``[words, N, h, w]``; what a word has from each picture sums to at most 1 over all. ``away``: see
    ``Flamingo.forward``."""
    if len(prompt_ids) + len(ids) > MAX_TOKENS:
        raise InputError(f"where the model looked is shown for texts of {MAX_TOKENS} tokens at most")
    pictures = len(image_features)
    device = image_features.device
    seen: list[Tensor] = []
    numbers = torch.arange(1, pictures + 1, device=device)
    tokens = model.resampler(image_features, numbers, seen)
    looked: list[Tensor] = []
    read: list[Tensor] = []
    text = torch.tensor([[*prompt_ids, *ids[:-1]]], dtype=torch.long, device=device)
    model(text, model.media(tokens, [pictures]), maps=looked, text_maps=read, blind_from=away)
    direct = torch.stack([x[0] for x in looked]).mean(0).view(text.shape[1], pictures, -1)  # [S, N, R]
    through = torch.stack([x[0] for x in read]).mean(0)  # [S, S]
    made = slice(-len(ids), None)
    latents = (direct[made] + torch.einsum("ts,snr->tnr", through[made], direct)) / 2
    cells = torch.einsum("tnr,nrl->tnl", latents, cells_of_latents(model, seen))
    words = torch.stack([cells[first:behind].mean(0) for first, behind in spans])
    return words.view(len(spans), pictures, *model.vision_encoder.grid).float().cpu().numpy()


def cells_of_latents(model: Flamingo, maps: Sequence[Tensor]) -> Tensor:
    """Where each latent looked, ``[N, R, L]``: the resampler's attention on cells (not on latents, nor a class token)."""
    height, width = model.vision_encoder.grid
    latents = maps[0].shape[2]
    return torch.stack([x.mean(1) for x in maps]).mean(0)[..., -latents - height * width : -latents]
