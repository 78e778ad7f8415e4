"""The settings of Flamingo's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from triptych.errors import InputError
from triptych.train.recipe import (
    CropSettings,
    LoopSettings,
    OptimizerSettings,
    RewardSettings,
    Settings,
    encoder_setting,
    encoder_weights_setting,
    image_size_setting,
    lm_setting,
    setting,
)

SHARES = {
    "caption": 0.3,
    "name": 0.08,
    "question": 0.12,
    "dialogue": 0.12,
    "pair": 0.08,
    "compare": 0.06,
    "binding": 0.24,
}
REWARDED = "scst"  # the task in which the model captions a photo itself (``train.self_critical``)
TASKS = (*SHARES, REWARDED)


@dataclass(frozen=True)
class FlamingoNetwork(Settings):
    """The trained parts of a new model."""

    dim: int = setting(384, "Width of the visual tokens.", low=8)
    latents: int = setting(32, "Visual tokens of a picture.", low=1, high=1024)
    resampler_layers: int = setting(2, "Layers of the resampler.", low=1)
    every: int = setting(3, "A gated block before every n-th block.", low=1)
    ffn_factor: int = setting(2, "Width of the feed-forward layers, relative.", low=1)
    look: Literal["last", "all"] = setting(
        "last", "Text attends to the last picture before it, or to all.", choices=("last", "all")
    )


@dataclass(frozen=True)
class FlamingoStart(Settings):
    """What a run starts from."""

    init: str | None = setting(None, "A checkpoint to start from; its parts and sizes are kept.", metavar="MODEL")
    encoder: str = encoder_setting(transformers=True)
    encoder_weights: str | None = encoder_weights_setting()
    image_size: int = image_size_setting()
    lm: str = lm_setting()
    image_token: str | None = setting(
        None,
        "The special token of the language model that stands for a picture.",
        show_default="a spare one",
    )
    add_tokens: bool = setting(
        False,
        "Add tokens for a picture and for the end of an example to the language model, and train their rows; its own stay frozen.",
    )
    network: FlamingoNetwork = field(default_factory=FlamingoNetwork)


@dataclass(frozen=True)
class FlamingoRates(Settings):
    gate_rate: float = setting(10.0, "Learning rate of the gates, which start at 0, relative to the others.", low=0)
    word_epochs: int = setting(6, "Of the warm start, in which the resampler learns words; 0 = none.", low=0)


@dataclass(frozen=True)
class FlamingoSampling(RewardSettings):
    """The task ``scst``. A caption that has not ended within ``max_new_tokens`` lacks its end in the reward."""

    samples: int = setting(5, "Captions drawn of each photo of the task scst.", low=1)
    max_new_tokens: int = setting(16, "Their tokens at most, the end included.", low=1)


@dataclass(frozen=True)
class FlamingoValidation(Settings):
    validation_photos: int = setting(200, "Of each data set, captioned without an example after each epoch.", low=1)
    validation_episodes: int = setting(60, "Of two new names with three examples each, of each data set.", low=0)


@dataclass(frozen=True)
class FlamingoRecipe(Settings):
    start: FlamingoStart = field(default_factory=FlamingoStart)
    shares: Mapping[str, float] = setting(
        SHARES,
        "How often a task is drawn: caption, name, question, dialogue, pair, compare, binding or scst (captions, self-critical).",
        option="--share",
        metavar="TASK=S",
        show_default="a mixture of all but scst, which needs --init",
    )
    weights: Mapping[str, float] = setting(
        {}, "Of a task's sequences in the loss.", option="--weight", metavar="TASK=W", show_default="1 each"
    )
    max_tokens: int = setting(112, "Of a training sequence.", low=16)
    rates: FlamingoRates = field(default_factory=FlamingoRates)
    crops: CropSettings = field(default_factory=CropSettings)
    sampling: FlamingoSampling = field(default_factory=FlamingoSampling)
    validation: FlamingoValidation = field(default_factory=FlamingoValidation)
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(epochs=3, batch_size=8, optimizer=OptimizerSettings(learning_rate=5e-4))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := (set(self.shares) | set(self.weights)) - set(TASKS):
            raise InputError(f"unknown task {', '.join(sorted(unknown))}: choose {', '.join(TASKS)}")
        if not any(share > 0 for share in self.shares.values()):
            raise InputError("no task is drawn: give one a share above 0")
        if self.shares.get(REWARDED) and self.sampling.samples < 2:
            raise InputError("samples of a photo are compared with one another: samples must be 2 or more")
