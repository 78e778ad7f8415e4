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


# BLIP-2, fitted on 454 questions about validation photos of Flickr8k and coco-extra, a third of them answered yes by people's captions:
# right on the data set that was left out of the fit 95%, without presence 91%; by the language model, contrast and presence alone 87, 87
# and 94%; calibration error 4%. ITM adds nothing.
BLIP2_FIT = LogisticFit((0.30, -0.54, 4.1, 1.05), 0.83)
BLIP2_WITHOUT_PRESENCE = LogisticFit((0.48, -0.94, 8.4), -3.46)

# Flamingo, fitted on 516 questions about the same photos, two in five of them answered yes: right on the data set that was left out of the
# fit 94%, by the gain alone 80%, by presence alone 92%; calibration error 3%.
FLAMINGO_FIT = LogisticFit((0.23, 1.45), 3.3)
FLAMINGO_WITHOUT_PRESENCE = LogisticFit((0.50,), -0.79)

# BLIP-2's claims, fitted on 484 questions about the same photos, three in five of them answered yes: right in a tenth left out of the fit
# 71%, by the language model alone 61%; calibration error 1% (9% before).
BLIP2_CLAIM_FIT = LogisticFit((0.24, 0.10, 4.1, 0.31), 0.83)
BLIP2_CLAIM_WITHOUT_PRESENCE = LogisticFit((0.37, 0.05, 5.2), 0.16)

# Flamingo's claims, fitted on the same questions: right in a tenth left out 67%, by the language model's yes or no 46%, which adds nothing;
# calibration error 2% (11% before).
FLAMINGO_CLAIM_FIT = LogisticFit((0.085, 0.37), 0.96)
FLAMINGO_CLAIM_WITHOUT_PRESENCE = LogisticFit((0.18,), 0.25)


def detection_logit(yes: float, blind_yes: float, cosine: float, presence: float) -> float:
    """The logit of the probability that a thing is there.

    Args:
        yes: log p(yes) - log p(no) of the language model, asked whether it is there.
        blind_yes: the same before a grey photo.
        cosine: of contrast, of the photo with ``a photo of THING``.
        presence: logit that captions of the photo name the thing (``text.consensus``); NaN = unknown.
    """
    if isnan(presence):
        return BLIP2_WITHOUT_PRESENCE.logit(yes, blind_yes, cosine)
    return BLIP2_FIT.logit(yes, blind_yes, cosine, presence)


def claim_logit(yes: float, blind_yes: float, cosine_gain: float, presence: float) -> float:
    """The logit of the probability that a claim is true, such as that the dog is running.

    Args:
        yes, blind_yes: as in ``detection_logit``, of the question itself.
        cosine_gain: of contrast, by how much the photo is closer to the claim than to the thing's noun.
        presence: logit that captions of the photo say what is claimed (``running``); NaN = unknown.
    """
    if isnan(presence):
        return BLIP2_CLAIM_WITHOUT_PRESENCE.logit(yes, blind_yes, cosine_gain)
    return BLIP2_CLAIM_FIT.logit(yes, blind_yes, cosine_gain, presence)


def caption_detection_logit(gain: float, presence: float) -> float:
    """The logit of the probability that a thing is there.

    Args:
        gain: by how much, in nats, a caption of the picture sooner begins with the thing than one of a grey picture.
        presence: as in ``detection_logit``.
    """
    return FLAMINGO_WITHOUT_PRESENCE.logit(gain) if isnan(presence) else FLAMINGO_FIT.logit(gain, presence)


def caption_claim_logit(gain: float, presence: float) -> float:
    """The logit of the probability that a claim is true.

    Args:
        gain: by how much more, in nats, a caption of the picture sooner begins with the claim than with its noun, compared with captions of
            a grey picture.
        presence: as in ``claim_logit``.
    """
    if isnan(presence):
        return FLAMINGO_CLAIM_WITHOUT_PRESENCE.logit(gain)
    return FLAMINGO_CLAIM_FIT.logit(gain, presence)


def gain_of_yes(logprobs: NDArray[np.float64]) -> float:
    """log p(yes) - log p(no), of the two in this order."""
    yes, no = logprobs.tolist()
    return yes - no
