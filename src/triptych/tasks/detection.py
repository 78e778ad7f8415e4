"""Whether a photo shows a thing, or a thing in it is as a question says: all that speaks for or against it in a logistic regression.

The language model says yes too often: few training questions are about things that no caption would mention. BLIP-2's contrast, the
likelihood of a caption that names the thing, and which captions to expect (``text.consensus``) are better evidence. Of colours and
actions ("Is the dog running?") it knows least.
"""

from __future__ import annotations

from math import isnan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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


# Things, fitted on 454 questions about validation photos of Flickr8k and coco-extra, a third of them answered yes by people's captions:
# right on the data set that was left out of the fit 95%, without presence 91%; by the language model, contrast and presence alone 87, 87
# and 94%; calibration error 4%. ITM adds nothing. Flamingo, 516 questions, two in five answered yes: 94%, by the gain alone 80%, by
# presence alone 92%; calibration error 3%.
BLIP2_THING = PresenceFit(LogisticFit((0.30, -0.54, 4.1, 1.05), 0.83), LogisticFit((0.48, -0.94, 8.4), -3.46))
FLAMINGO_THING = PresenceFit(LogisticFit((0.23, 1.45), 3.3), LogisticFit((0.50,), -0.79))

# Claims, fitted on 484 questions about the same photos, three in five of them answered yes: right in a tenth left out of the fit 71% with
# BLIP-2, by the language model alone 61%; 67% with Flamingo, whose language model has 46% and adds nothing. Calibration errors 1 and 2%
# (9 and 11% before).
BLIP2_CLAIM = PresenceFit(LogisticFit((0.24, 0.10, 4.1, 0.31), 0.83), LogisticFit((0.37, 0.05, 5.2), 0.16))
FLAMINGO_CLAIM = PresenceFit(LogisticFit((0.085, 0.37), 0.96), LogisticFit((0.18,), 0.25))

# Numbers of things, fitted on 294 questions about the same photos: right in a tenth left out 63% by BLIP-2's language model, to which
# nothing adds, and 59% with Flamingo. Calibration errors 2 and 4%.
BLIP2_COUNT = LogisticFit((0.72,), 0.29)
FLAMINGO_COUNT = PresenceFit(LogisticFit((0.107, 0.22), -0.09), LogisticFit((0.12,), -0.63))


# Choices of BLIP-2, fitted on 208 questions about validation photos with three choices each: 83% right, 79% by the language model alone,
# which knows things (92%) but not colours (54, with presence 72%). Flamingo's has 86%, to which presence adds nothing.
CHOICE_WEIGHT, CHOICE_PRESENCE = 0.5, 0.5


def detection_logit(yes: float, blind_yes: float, cosine: float, presence: float) -> float:
    """The logit of the probability that a thing is there.

    Args:
        yes: log p(yes) - log p(no) of the language model, asked whether it is there.
        blind_yes: the same before a grey photo.
        cosine: of contrast, of the photo with ``a photo of THING``.
        presence: logit that captions of the photo name the thing (``text.consensus``); NaN = unknown.
    """
    return BLIP2_THING.logit(yes, blind_yes, cosine, presence=presence)


def claim_logit(yes: float, blind_yes: float, cosine_gain: float, presence: float) -> float:
    """The logit of the probability that a claim is true, such as that the dog is running.

    Args:
        yes, blind_yes: as in ``detection_logit``, of the question itself.
        cosine_gain: of contrast, by how much the photo is closer to the claim than to the thing's noun.
        presence: logit that captions of the photo say what is claimed (``running``); NaN = unknown.
    """
    return BLIP2_CLAIM.logit(yes, blind_yes, cosine_gain, presence=presence)


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


def gain_of_yes(logprobs: NDArray[np.float64]) -> float:
    """log p(yes) - log p(no), of the two in this order."""
    yes, no = logprobs.tolist()
    return yes - no
