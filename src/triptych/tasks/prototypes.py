"""Choices that the examples of a prompt show: how much the new picture resembles the pictures of each.

Flamingo's language model takes a new name from the examples in the prompt; one this small often takes the wrong one of two. The pictures
themselves say more: the mean direction of a name's examples is its prototype, and the cosine of the new picture with it counts beside the
log-probability of the name (prototypical networks, Snell et al. 2017). The directions are those of the captions to expect
(``text.consensus``), in which pictures of the same things are close. Figures: docs/lab-notebook.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triptych.evidence import Floats
from triptych.text.consensus import unit
from triptych.text.prompt import END, IMAGE

PROTOTYPE_WEIGHT = 24.0  # of the cosine with a prototype, beside the log-probability of a choice


def examples_of(text: str, choices: Sequence[str]) -> list[list[int]] | None:
    """For each choice the numbers of the pictures whose example says it: ``"<image> This is a dax<|endofchunk|><image> This is"`` says of
    picture 0 ``a dax``.

    None where that says nothing: a choice has no example, or the question is not about one picture. Examples with another number of
    pictures, or another text, are left out.
    """
    *examples, question = text.split(END)
    if question.count(IMAGE) != 1:
        return None
    pictures_of: list[list[int]] = [[] for _ in choices]
    pictures = 0
    for example in examples:
        if example.count(IMAGE) == 1 and (choice := choice_said(example.rpartition(IMAGE)[2], choices)) is not None:
            pictures_of[choice].append(pictures)
        pictures += example.count(IMAGE)
    return pictures_of if all(pictures_of) else None


def choice_said(text: str, choices: Sequence[str]) -> int | None:
    """The number of the longest choice with which a text ends, but for a full stop; None = it ends with none."""
    words = text.removesuffix(".").split()
    ends = [i for i, choice in enumerate(choices) if words[-len(choice.split()) :] == choice.removesuffix(".").split()]
    return max(ends, key=lambda i: len(choices[i]), default=None)


def prototype_cosines(directions: Floats, pictures_of: Sequence[Sequence[int]]) -> Floats:
    """The cosine of the last picture with the prototype of each choice: ``[C]``.

    Args:
        directions: of all pictures ``[P, V]``, each of length 1.
        pictures_of: for each of C choices the numbers of its pictures.
    """
    prototypes = unit(np.stack([directions[list(pictures)].mean(0) for pictures in pictures_of]))
    return np.asarray(prototypes @ directions[-1], np.float32)
