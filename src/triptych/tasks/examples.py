"""Choosing examples for a prompt by the similarity of their pictures (Flamingo's RICES, after Yang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.io.images import ImageSource
from triptych.tasks.capabilities import Model, Shot

ENCODED_EXAMPLES = 8  # pictures in memory at a time


class ExampleIndex:
    """Examples with the features of their pictures; the pictures themselves are opened only when needed.

    Args:
        model: compares the pictures with its encoder.
        examples: for each a function that opens its picture, and its text.
        progress: called with the number of pictures encoded since the last call.

    Raises:
        InputError: there are no examples, or a picture cannot be read.
    """

    def __init__(
        self,
        model: Model,
        examples: Sequence[tuple[Callable[[], ImageSource], str]],
        progress: Callable[[int], None] = lambda pictures: None,
    ) -> None:
        if not examples:
            raise InputError("there are no examples to choose from")
        self.model, self.examples = model, examples
        parts = []
        for first in range(0, len(examples), ENCODED_EXAMPLES):
            part = examples[first : first + ENCODED_EXAMPLES]
            parts.append(unit_features(model, [open_picture() for open_picture, _ in part]))
            progress(len(part))
        self.features = np.concatenate(parts)  # [N, D]

    def nearest(self, image: ImageSource, count: int) -> list[Shot]:
        """The ``count`` examples most similar to ``image`` by the cosine of mean features, the most similar last, next to the question.

        Raises InputError: there are fewer examples, or the picture cannot be read.
        """
        if not 1 <= count <= len(self.examples):
            raise InputError(f"{count} nearest examples of {len(self.examples)}: choose 1 to {len(self.examples)}")
        similarity = self.features @ unit_features(self.model, [image])[0]
        order = np.argsort(similarity, kind="stable")[-count:]
        return [(self.examples[i][0](), self.examples[i][1]) for i in order]


def unit_features(model: Model, pictures: Sequence[ImageSource]) -> Floats:
    """The mean features of each picture, ``[B, D]``, of length 1."""
    pooled = model.pooled(pictures)
    unit: Floats = pooled / (np.linalg.norm(pooled, axis=1, keepdims=True) + 1e-12)
    return unit


def as_opener(picture: ImageSource) -> Callable[[], ImageSource]:
    """A function that returns ``picture``, for examples in memory."""
    return lambda: picture
