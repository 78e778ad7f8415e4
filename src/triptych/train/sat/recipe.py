"""The settings of Show, Attend and Tell's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from triptych.errors import InputError
from triptych.train.recipe import (
    LoopSettings,
    RewardSettings,
    Settings,
    encoder_setting,
    encoder_weights_setting,
    setting,
)


@dataclass(frozen=True)
class SatNetwork(Settings):
    """The decoder of a new model."""

    attention: Literal["soft", "hard"] = setting("soft", "soft or hard.", choices=("soft", "hard"))
    variant: Literal["paper", "tutorial"] = setting("paper", "paper or tutorial.", choices=("paper", "tutorial"))
    gate: str | None = setting(
        None, "scalar or vector.", choices=(None, "scalar", "vector"), show_default="the variant's"
    )
    hidden_dim: int = setting(512, "Width of the LSTM.", low=8)
    embed_dim: int = setting(512, "Width of the word embeddings.", low=8)
    attention_dim: int = setting(256, "Width of the attention network.", low=8)


@dataclass(frozen=True)
class SatStart(Settings):
    """What a run starts from."""

    init: str | None = setting(
        None, "A checkpoint to start from; its encoder, sizes and words are kept.", metavar="MODEL"
    )
    new_words: int | None = setting(
        None,
        "With --init: add the words that it lacks and that occur at least so often in the training captions.",
        low=1,
        show_default="none",
    )
    encoder: str = encoder_setting()
    encoder_weights: str | None = encoder_weights_setting()
    cut: int | None = setting(None, "Train the encoder's layers after this one too.", low=1, show_default="none")
    network: SatNetwork = field(default_factory=SatNetwork)


@dataclass(frozen=True)
class SatCaptions(Settings):
    captions_per_photo: int = setting(5, "Of each photo in a step; with scst: captions drawn of it.", low=1)
    max_words: int = setting(18, "Captions are cut there, the end included.", low=2)
    mirror: bool = setting(True, "Mirror half of the photos.")


@dataclass(frozen=True)
class SatLoss(Settings):
    label_smoothing: float = setting(0.1, "Share of the target that is spread over all words.", low=0, high=1)
    penalty: float = setting(1.0, "Weight of the doubly stochastic penalty (equation 14).", low=0)
    penalty_reduction: Literal["sum", "mean"] = setting(
        "mean",
        "The doubly stochastic penalty over the cells: their sum (the paper) or mean (the tutorial).",
        choices=("sum", "mean"),
    )
    hard_share: float = setting(
        0.5, "Hard attention: share of the steps that draw a cell; the others take the expectation.", low=0, high=1
    )
    tail_rate: float = setting(0.05, "Learning rate of the encoder's trained layers, relative.", low=0)


@dataclass(frozen=True)
class SatValidation(Settings):
    validation_photos: int = setting(500, "Of each data set, captioned after each epoch.", low=1)
    beams: int = setting(5, "Of the search that validation captions are made with.", low=1)
    length_penalty: float = setting(1.0, "Of that search.", low=0)


@dataclass(frozen=True)
class SatRecipe(Settings):
    objective: Literal["xe", "scst"] = setting(
        "xe",
        "xe (cross-entropy) or scst (self-critical, reward CIDEr-D and BLEU; needs --init).",
        choices=("xe", "scst"),
    )
    guidance: float = setting(
        0.0,
        "With scst: weight of the words that a consensus of other photos expects, in samples and in validation; 1 = as at inference.",
        low=0,
    )
    start: SatStart = field(default_factory=SatStart)
    captions: SatCaptions = field(default_factory=SatCaptions)
    loss: SatLoss = field(default_factory=SatLoss)
    reward: RewardSettings = field(default_factory=lambda: RewardSettings(bleu_weight=2.0))
    validation: SatValidation = field(default_factory=SatValidation)
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(epochs=10))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "scst" and self.captions.captions_per_photo < 2:
            raise InputError(
                "self-critical training compares the samples of a photo: captions_per_photo must be 2 or more"
            )
