"""Whether a photo shows a thing, or a thing in it is as a question says: all that speaks for or against it in a logistic regression.

The language model says yes too often: few training questions are about things that no caption would mention. BLIP-2's contrast, the
likelihood of a caption that names the thing, and which captions to expect (``text.consensus``) are better evidence. Of colours and
actions ("Is the dog running?") it knows least.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.generate import Hypothesis


class LogisticFit(NamedTuple):
    """A logit: the sum of the evidence times its ``weights``, and a ``bias``."""

    weights: tuple[float, ...]
    bias: float

    def logit(self, *evidence: float) -> float:
        return sum(weight * value for weight, value in zip(self.weights, evidence, strict=True)) + self.bias


class PresenceFit(NamedTuple):
    """Two fits: ``known``, whose last evidence is the presence of a thing in the captions to expect, and ``unknown`` without it."""

    known: LogisticFit
    unknown: LogisticFit

    def logit(self, *evidence: float, presence: float) -> float:
        """``presence``: NaN = the consensus does not know the thing."""
        return self.unknown.logit(*evidence) if isnan(presence) else self.known.logit(*evidence, presence)


# All fitted on 3,470 questions about 1,100 validation photos of Flickr8k and coco-extra; shares of right answers are of photos left out.
# What BLIP-2's language model says before a grey photo adds nothing, and neither does matching (docs/lab-notebook.md).

# Things, 2,020 questions, 48% answered yes by people's captions: BLIP-2 90% right (by the language model, contrast and presence alone 89,
# 85 and 86), Flamingo 87% (by the gain and presence alone 81 and 86). Calibration errors 1 and 2%.
BLIP2_THING = PresenceFit(LogisticFit((0.41, 3.2, 0.45), 0.49), LogisticFit((0.55, 4.3), -0.56))
FLAMINGO_THING = PresenceFit(LogisticFit((0.29, 0.88), 1.48), LogisticFit((0.55,), -0.34))

# Claims, 970 questions, 56% answered yes: BLIP-2 72% right (61, 66 and 66 alone), Flamingo 68% (58 and 66 alone). Errors 4 and 3%.
BLIP2_CLAIM = PresenceFit(LogisticFit((0.24, 4.8, 0.32), 0.62), LogisticFit((0.37, 5.9), -0.04))
FLAMINGO_CLAIM = PresenceFit(LogisticFit((0.072, 0.39), 0.87), LogisticFit((0.15,), 0.11))

# Numbers of things, 480 questions: 71% right by BLIP-2's language model, to which nothing adds, and 59% with Flamingo. Errors 5 and 2%.
BLIP2_COUNT = LogisticFit((0.67,), 0.08)
FLAMINGO_COUNT = PresenceFit(LogisticFit((0.118, 0.18), -0.30), LogisticFit((0.13,), -0.71))


# Choices of BLIP-2, fitted on 208 questions about validation photos with three choices each: 83% right, 79% by the language model alone,
# which knows things (92%) but not colours (54, with presence 72%). Flamingo's has 86%, to which presence adds nothing.
CHOICE_WEIGHT, CHOICE_PRESENCE = 0.5, 0.5


def detection_logit(yes: float, cosine: float, presence: float) -> float:
    """The logit of the probability that a thing is there.

    Args:
        yes: log p(yes) - log p(no) of the language model, asked whether it is there.
        cosine: of contrast, of the photo with ``a photo of THING``.
        presence: logit that captions of the photo name the thing (``text.consensus``); NaN = unknown.
    """
    return BLIP2_THING.logit(yes, cosine, presence=presence)


def claim_logit(yes: float, cosine_gain: float, presence: float) -> float:
    """The logit of the probability that a claim is true, such as that the dog is running.

    Args:
        yes: as in ``detection_logit``, of the question itself.
        cosine_gain: of contrast, by how much the photo is closer to the claim than to the thing's noun.
        presence: logit that captions of the photo say what is claimed (``running``); NaN = unknown.
    """
    return BLIP2_CLAIM.logit(yes, cosine_gain, presence=presence)


def count_logit(yes: float) -> float:
    """The logit of the probability that there are as many things as a question says. ``yes``: as in ``detection_logit``."""
    return BLIP2_COUNT.logit(yes)


def caption_detection_logit(gain: float, presence: float, counted: bool = False) -> float:
    """The logit of the probability that a thing is there, or, ``counted``, that there are as many as its name says.

    Args:
        gain: by how much, in nats, a caption of the picture sooner begins with the thing than one of a grey picture.
        presence: as in ``detection_logit``.
    """
    return (FLAMINGO_COUNT if counted else FLAMINGO_THING).logit(gain, presence=presence)


def caption_claim_logit(gain: float, presence: float) -> float:
    """The logit of the probability that a claim is true.

    Args:
        gain: by how much more, in nats, a caption of the picture sooner begins with the claim than with its noun, compared with captions of
            a grey picture.
        presence: as in ``claim_logit``.
    """
    return FLAMINGO_CLAIM.logit(gain, presence=presence)


def choice_scores(gains: NDArray[np.float64], presence: NDArray[np.float32]) -> NDArray[np.float64]:
    """The scores of C answers to choose from, up to a constant: ``[C]``. Where the consensus does not know one of them, the language model
    decides alone.

    Args:
        gains: ``[C]``, calibrated log-probabilities of the language model.
        presence: ``[C]``, logits that captions of the photo have the answer's words; NaN = unknown.
    """
    return gains if np.isnan(presence).any() else CHOICE_WEIGHT * gains + CHOICE_PRESENCE * presence


def gain_of_yes(scored: Sequence[Hypothesis]) -> float:
    """log p(yes) - log p(no), of the two in this order."""
    yes, no = scored
    return yes.logprob - no.logprob
