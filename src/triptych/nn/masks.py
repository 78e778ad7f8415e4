"""Every attention mask of the package, drawn.

A mask is boolean, True = may attend, ``[T, S]`` (T queries in rows, S keys in columns) or ``[B, T, S]``; axes of 1 broadcast.
In the drawings ``#`` is a key that the row attends to and ``.`` one that is masked. ``draw`` makes such a drawing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def draw(mask: Tensor) -> str:
    """The drawing of one mask ``[T, S]``, a line for each row."""
    return "\n".join(" ".join("#" if allowed else "." for allowed in row) for row in mask.tolist())


def intersection(*masks: Tensor | None) -> Tensor | None:
    """True where all masks are; None allows everything. ``[T, S]`` and ``[B, 1, S]`` -> ``[B, T, S]``."""
    allowed: Tensor | None = None
    for mask in masks:
        if mask is not None:
            allowed = mask if allowed is None else allowed & mask
    return allowed


def causal(length: int, past: int = 0, device: torch.device | None = None) -> Tensor:
    """A token attends to itself and to earlier ones: ``[T, past + T]`` for ``length`` = T new tokens after ``past`` earlier ones.

    ``causal(4)``:

        # . . .
        # # . .
        # # # .
        # # # #

    A chunk of two after three, ``causal(2, past=3)``:

        # # # # .
        # # # # #
    """
    row = torch.arange(past, past + length, device=device)[:, None]
    return torch.arange(past + length, device=device) <= row


def window(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Mistral's sliding window, to be combined with ``causal``: keys less than ``width`` tokens back, and all later ones.

    ``rows [.., T]`` and ``columns [.., S]`` are positions in the text, padding not counted: ``[.., T, S]``.
    ``window(torch.arange(4), torch.arange(4), 2)``:

        # # # #
        # # # #
        . # # #
        . . # #
    """
    return columns[..., None, :] > rows[..., None] - width


def padding(padding_mask: Tensor) -> Tensor:
    """Nothing attends to padding: ``padding_mask [B, S]`` (True = a token) -> ``[B, 1, S]``, the same row for all queries."""
    return padding_mask.bool()[:, None]


def right_padding(lengths: Sequence[int] | Tensor) -> Tensor:
    """Texts of these lengths, padded at the end: ``[B, 1, S]``, S = the longest.

    ``right_padding([1, 4, 3])``, one text a line:

        # . . .
        # # # #
        # # # .
    """
    ends = torch.as_tensor(lengths)
    return padding(torch.arange(int(ends.max()), device=ends.device) < ends[:, None])


def left_padding(lengths: Sequence[int] | Tensor) -> Tensor:
    """Texts of these lengths, padded at the beginning, so that all end together: ``[B, 1, S]``, S = the longest.

    ``left_padding([1, 4, 3])``, one text a line:

        . . . #
        # # # #
        . # # #
    """
    return right_padding(lengths).flip(-1)


def itc(queries: int, tokens: int, device: torch.device | None = None) -> Tensor:
    """BLIP-2's contrast, uni-modal: queries attend to queries, text to text (Li et al. 2023, figure 2).

    Q queries, then T tokens: ``[Q + T, Q + T]``. ``itc(2, 3)``:

        # # . . .
        # # . . .
        . . # # #
        . . # # #
        . . # # #
    """
    is_text = torch.arange(queries + tokens, device=device) >= queries
    return is_text[:, None] == is_text


def itm(queries: int, tokens: int, device: torch.device | None = None) -> Tensor:
    """BLIP-2's matching, bi-directional: all attend to all (Li et al. 2023, figure 2).

    Q queries, then T tokens: ``[Q + T, Q + T]``. ``itm(2, 3)``:

        # # # # #
        # # # # #
        # # # # #
        # # # # #
        # # # # #
    """
    return torch.ones(queries + tokens, queries + tokens, dtype=torch.bool, device=device)


def itg(queries: int, tokens: int, device: torch.device | None = None) -> Tensor:
    """BLIP-2's grounded generation, multi-modal causal: queries attend to queries, text to all queries and the earlier text
    (Li et al. 2023, figure 2).

    Q queries, then T tokens: ``[Q + T, Q + T]``. ``itg(2, 3)``:

        # # . . .
        # # . . .
        # # # . .
        # # # # .
        # # # # #

    The last T rows are ``causal(T, past=Q)``: text that reads the queries' cached keys and values needs no more.
    """
    is_query = torch.arange(queries + tokens, device=device) < queries
    return causal(queries + tokens, device=device) | (is_query[:, None] & is_query)


def media(text_time: Tensor, numbers: Tensor, latents: int, look: str = "last") -> Tensor:
    """Flamingo: text attends to the visual tokens of the last picture before it, or of all pictures before it
    (Alayrac et al. 2022, section 2.3).

    ``text_time [B, T]``: the number of pictures before each token, including the token itself if it stands for one.
    ``numbers [B, N]``: the number of each picture in its text, from 1; below 0 = padding. ``look``: "last" or "all".
    Each picture has R = ``latents`` visual tokens: ``[B, T, N * R]``.
    Text with three pictures and R = 2, ``media(torch.tensor([[0, 1, 1, 2, 3]]), torch.tensor([[1, 2, 3]]), 2)``:

        . . . . . .
        # # . . . .
        # # . . . .
        . . # # . .
        . . . . # #

    The same with ``media(torch.tensor([[0, 1, 1, 2, 3]]), torch.tensor([[1, 2, 3]]), 2, "all")``:

        . . . . . .
        # # . . . .
        # # . . . .
        # # # # . .
        # # # # # #
    """
    time, number = text_time[..., None], numbers[:, None]
    # Flamingo section 2.3: each token attends to the last picture before it
    attended = time == number if look == "last" else (time >= number) & (number > 0)
    return attended.repeat_interleave(latents, -1)


def branches(prefix: int, branch: Tensor | Sequence[int]) -> Tensor:
    """Several continuations of one prefix in one row: each attends to the prefix and to itself, causally, and to no other.

    P = ``prefix`` tokens, then N tokens; ``branch [.., N]``: the continuation of each, from 0. -> ``[.., P + N, P + N]``.
    ``branches(2, [0, 0, 1, 1])``:

        # . . . . .
        # # . . . .
        # # # . . .
        # # # # . .
        # # . . # .
        # # . . # #
    """
    owner = F.pad(torch.as_tensor(branch), (prefix, 0), value=-1)
    same_text = (owner < 0)[..., None, :] | (owner[..., None, :] == owner[..., None])
    return same_text & causal(owner.shape[-1], device=owner.device)
