"""What BLIP-2 asks of a frozen language model: ``decoder.Decoder`` has it, and so can any other.

Shapes (legend in ``attention.py``): T tokens, E width of the embeddings, V words.
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
        """The most tokens that it reads."""
        ...

    def embed(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, E]``: what may be mixed with soft prompts."""
        ...

    def prefill(self, inputs: Prompt) -> tuple[Tensor, S]:
        """Ids or embeddings -> the logits ``[B, V]`` of what follows, and the state to go on with."""
        ...

    def step(self, ids: Tensor, state: S) -> tuple[Tensor, S]:
        """One more token of each row: ``ids [B]`` -> the logits ``[B, V]`` of the next."""
        ...

    def score(self, ids: Tensor, state: S) -> Tensor:
        """The texts that might follow, ``[B, T]`` -> the logits ``[B, T, V]`` of what comes after each of their tokens."""
        ...

    def prompt_attention(self, prompt: Tensor, text: Tensor) -> list[Tensor]:
        """How much attention went to the prompt when a text was written.

        ``prompt [B, P, E]``, ``text [B, T]`` -> ``[B, H, T + 1, P]`` of every block: of what wrote each token, and the one after them.
        """
        ...
