"""Sizes and variants of the three systems. Nothing here needs torch (see ``nn/configs.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from triptych.errors import InputError
from triptych.nn.configs import QFormerConfig


@dataclass(frozen=True)
class FlamingoConfig:
    """The defaults are OpenFlamingo's.

    ``image_id``: the token that stands for a picture. ``dim``: width of the visual tokens; None = that of the encoder's features, else
    they pass a norm and a projection. ``every``: there is a gated block before every n-th block of the language model. ``look``: a token
    attends to the last picture, or to all before it. ``max_pictures``, ``max_frames``: the number of embeddings for a picture's position
    in the prompt, and for the frames of a video; None = there are no such embeddings.

    ``style``: "idefics" = the variant of Laurençon et al. 2023 (OBELICS, appendix B): the gated blocks have the norms and the feed-forward
    of the language model's blocks and stand before the first of each ``every`` blocks; the resampler's feed-forward has a ReLU.
    ``resampler_heads``, ``resampler_head_dim``: None = as in the gated blocks. ``qk_norm``, ``resampler_qk_norm``: a norm over the queries
    and keys of each head. ``gate``: one number, or one for each channel.
    """

    image_dim: int
    image_id: int
    dim: int | None = None
    latents: int = 64
    resampler_layers: int = 6
    heads: int = 8
    head_dim: int = 64
    ffn_factor: int = 4
    every: int = 4
    look: Literal["last", "all"] = "last"
    max_pictures: int | None = None
    max_frames: int | None = None
    style: Literal["flamingo", "idefics"] = "flamingo"
    resampler_heads: int | None = None
    resampler_head_dim: int | None = None
    qk_norm: bool = False
    resampler_qk_norm: bool = False
    gate: Literal["scalar", "vector"] = "scalar"

    def __post_init__(self) -> None:
        sizes = ("image_dim", "latents", "resampler_layers", "heads", "head_dim", "ffn_factor", "every")
        for name in (*sizes, "resampler_heads", "resampler_head_dim"):
            size = getattr(self, name)
            if size is not None and not 1 <= size <= 1 << 16:
                raise InputError(f"invalid Flamingo config: {name} is {size}, expected 1 to 65536")
        for name, known in {
            "look": ("last", "all"),
            "style": ("flamingo", "idefics"),
            "gate": ("scalar", "vector"),
        }.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"invalid Flamingo config: {name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, known))}"
                )

    @property
    def visual_dim(self) -> int:
        """The width of the visual tokens."""
        return self.dim or self.image_dim

    def gated_block(self, layer: int) -> int | None:
        """The number of the gated block before the language model's block ``layer``; None = there is none."""
        first = self.style == "idefics"
        return layer // self.every if (layer if first else layer + 1) % self.every == 0 else None


@dataclass(frozen=True)
class Blip2Config:
    """``feature_dim``: width of the features for contrast; None = without the heads of the first stage.
    ``normalise``: a LayerNorm before the Q-Former, for encoders that end without one (CNNs).
    ``contrast_weight``: weight of the cosine in the score that retrieval re-ranks by, and of what a consensus adds to it. Published models
    have 1; for a model whose matching is weaker than its contrast it was chosen on validation photos.
    ``instructed``: the Q-Former reads the question (InstructBLIP).
    ``writer``: what writes captions by default, the language model or the Q-Former itself (ITG).
    ``writes``: the heads have the layers that write captions; transformers' files lack them."""

    qformer: QFormerConfig
    feature_dim: int | None = 256
    normalise: bool = True
    contrast_weight: float = 1.0
    instructed: bool = True
    writer: Literal["lm", "qformer"] = "lm"
    writes: bool = True


CHOICES = {
    "attention": ("soft", "hard"),
    "score": ("tanh", "relu"),
    "initial_state": ("tanh", "linear"),
    "gate": ("scalar", "vector"),
    "output": ("deep", "linear"),
}


@dataclass(frozen=True)
class ShowAttendTellConfig:
    """The defaults are the paper's; the variants are listed in ``CHOICES``."""

    vocab_size: int
    feature_dim: int
    embed_dim: int = 512
    hidden_dim: int = 512
    attention_dim: int = 512
    attention: str = "soft"
    score: str = "tanh"  # non-linearity inside f_att
    initial_state: str = "tanh"
    gate: str = "scalar"
    output: str = "deep"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Raises InputError: an unknown variant or an impossible size."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {getattr(self, name)!r}: choose {' or '.join(known)}")
        for name in ("vocab_size", "feature_dim", "embed_dim", "hidden_dim", "attention_dim"):
            size = getattr(self, name)
            if not isinstance(size, int) or not 1 <= size <= 1_000_000:
                raise InputError(f"{name} is {size!r}: it must be a whole number from 1 to 1,000,000")

    @classmethod
    def paper(cls, vocab_size: int, feature_dim: int = 512, **others: Any) -> ShowAttendTellConfig:
        """The paper's model: tanh scores, tanh initial states, scalar gate, deep output layer."""
        return cls(vocab_size, feature_dim, **others)

    @classmethod
    def tutorial(cls, vocab_size: int, feature_dim: int = 2048, **others: Any) -> ShowAttendTellConfig:
        """The tutorial's model: ReLU scores, linear initial states, vector gate, one linear output layer."""
        variant: dict[str, Any] = {"score": "relu", "initial_state": "linear", "gate": "vector", "output": "linear"}
        return cls(vocab_size, feature_dim, **(variant | others))
