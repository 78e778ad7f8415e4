"""The settings of BLIP-2's training: one objective whose terms the stage switches on.

Stage 1 learns contrast, matching and grounded generation (section 3.1); stage 2 also lets the frozen language model write the captions
(section 3.2); stage 3 also learns answers to questions about one photo and about two, which the Q-Former reads (after InstructBLIP). The
later stages keep contrast and matching on, so that one Q-Former serves all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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

STAGES = {
    1: {"itc": 1.0, "itm": 1.0, "itg": 1.0},
    2: {"itc": 0.5, "itm": 1.0, "caption": 1.0},
    3: {"itc": 0.5, "itm": 1.0, "caption": 1.0, "question": 1.0, "pair": 1.0},
}

TERMS = ("itc", "itm", "itg", "caption", "scst", "question", "pair")
FIRST_STAGE = frozenset(TERMS[:3])


@dataclass(frozen=True)
class Blip2Start(Settings):
    """What a run starts from."""

    init: str | None = setting(None, "A checkpoint to go on from (stages 2 and 3).", metavar="MODEL")
    encoder: str = encoder_setting(transformers=True)
    encoder_weights: str | None = encoder_weights_setting()
    image_size: int = image_size_setting()
    lm: str = lm_setting()
    queries: int = setting(16, "Learned queries of the Q-Former.", low=1, high=256)


@dataclass(frozen=True)
class Blip2Batch(Settings):
    """What a step reads. Shares are of the photos of a batch."""

    captions_per_photo: int = setting(2, "Of each photo in a step; with scst: captions drawn of it.", low=1)
    max_pieces: int = setting(24, "Word pieces of a caption that the Q-Former reads.", low=3)
    max_tokens: int = setting(20, "Tokens of a caption that the language model writes.", low=2)
    questions: float = setting(0.5, "Share of the photos with a question.", low=0, high=1)
    pairs: float = setting(0.25, "Questions about two photos, as a share of the photos.", low=0)
    itm_photos: float = setting(1.0, "Share of the photos that are matched.", above=0, high=1)
    lm_photos: float = setting(1.0, "Share of the photos that the language model captions.", above=0, high=1)
    crops: CropSettings = field(default_factory=CropSettings)


@dataclass(frozen=True)
class Blip2Rates(Settings):
    """Learning rates of parts, and settings of the losses."""

    bert_rate: float = setting(0.3, "Learning rate of BERT's layers, relative.", low=0)
    projection_rate: float = setting(5.0, "Learning rate of the projection, relative to the others.", low=0)
    label_smoothing: float = setting(0.1, "Of grounded generation.", low=0, high=1)
    agreement: float = setting(
        0.0,
        "Contrast: weight of the agreement of photo and caption by a consensus of other photos, added to the cosine; 1 = as at inference.",
        low=0,
    )
    guidance: float = setting(
        0.0,
        "Captions by the language model: weight of the words that such a consensus expects; 1 = as at inference.",
        low=0,
    )
    easy_negatives: float = setting(
        0.5, "Matching: share of the negatives that are drawn evenly, not by similarity.", low=0, high=1
    )
    word_epochs: int = setting(
        4, "Of the warm start before stage 2, in which the Q-Former learns words; 0 = none.", low=0
    )


@dataclass(frozen=True)
class Blip2Validation(Settings):
    validation_photos: int = setting(500, "Of each data set, for retrieval and questions.", low=2)
    validation_captions: int = setting(200, "How many of them are captioned.", low=1)
    beams: int = setting(3, "Of the search that validation captions are made with.", low=1)
    length_penalty: float = setting(1.0, "Of that search.", low=0)


@dataclass(frozen=True)
class Blip2Recipe(Settings):
    stage: int = setting(
        1,
        "1: contrast, matching, grounded generation; 2: also captions by the language model; 3: also questions.",
        choices=tuple(STAGES),
    )
    start: Blip2Start = field(default_factory=Blip2Start)
    weights: Mapping[str, float] | None = setting(
        None,
        "A term of the loss: itc, itm, itg, caption, scst (captions, self-critical), question or pair.",
        option="--weight",
        metavar="TERM=W",
        show_default="the stage's",
    )
    batch: Blip2Batch = field(default_factory=Blip2Batch)
    rates: Blip2Rates = field(default_factory=Blip2Rates)
    reward: RewardSettings = field(default_factory=RewardSettings)
    validation: Blip2Validation = field(default_factory=Blip2Validation)
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(
            epochs=8, optimizer=OptimizerSettings(learning_rate=5e-4, weight_decay=0.05)
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.terms) - set(TERMS):
            raise InputError(f"unknown term {min(unknown)!r}: the loss has {', '.join(TERMS)}")
        if self.stage == 1 and not FIRST_STAGE.issuperset(self.terms):
            raise InputError(f"stage 1 has no language model: its terms are {', '.join(sorted(FIRST_STAGE))}")
        if self.terms.get("scst") and self.batch.captions_per_photo < 2:
            raise InputError("samples of a photo are compared with one another: captions_per_photo must be 2 or more")
        if self.loop.batch_size < 2:
            raise InputError("a batch of 1: BLIP-2 compares the photos of a batch, so it needs 2 or more")

    @property
    def terms(self) -> Mapping[str, float]:
        """The weight of each term of the loss."""
        return STAGES[self.stage] if self.weights is None else self.weights

    @property
    def questions_only(self) -> bool:
        """No term needs captions: the photos come with questions and answers."""
        return {name for name, weight in self.terms.items() if weight} == {"question"}

    @property
    def lm_writes(self) -> bool:
        """The language model learns to write captions."""
        return bool(self.terms.get("caption") or self.terms.get("scst"))
