"""The interface of BLIP-2's frozen language models, as a Protocol. ``decoder.Decoder`` and ``t5.T5`` implement it.

Shapes (legend in ``nn/attention.py``): T tokens, E width of the embeddings, V words.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from triptych.nn.decoder import Prompt
from triptych.nn.encoder import NetworkPart

S = TypeVar("S")


class LanguageModel(NetworkPart, Protocol[S]):
    """A ``generate.StepModel`` over ids or embeddings, whose state is an ``S``."""

    @property
    def embed_width(self) -> int:
        """E."""
        ...

    @property
    def max_positions(self) -> int:
        """The most tokens of a text."""
        ...

    def embed(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, E]``, which may be concatenated with soft prompts."""
        ...

    def prefill(self, inputs: Prompt) -> tuple[Tensor, S]:
        """Ids or embeddings -> the logits ``[B, V]`` of the next token, and the state to continue with."""
        ...

    def step(self, ids: Tensor, state: S) -> tuple[Tensor, S]:
        """One token for each row: ``ids [B]`` -> the logits ``[B, V]`` of the next."""
        ...

    def score(self, ids: Tensor, state: S) -> Tensor:
        """Possible continuations ``[B, T]`` -> the logits ``[B, T, V]`` after each of their tokens."""
        ...

    def prompt_attention(self, prompt: Tensor, text: Tensor) -> list[Tensor]:
        """The attention to the prompt while a text was written.

        ``prompt [B, P, E]``, ``text [B, T]`` -> ``[B, H, T + 1, P]`` for every block: at the position that predicts each token of the text,
        then at its last token.
        """
        ...
