"""What a question is, of which kind, and how many a photo gets."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.data.english.word_lists import COLOURS, NUMBERS

Kind = Literal["object", "number", "colour", "action", "yes/no"]

KINDS: tuple[Kind, ...] = ("object", "number", "colour", "action", "yes/no")

MOST: dict[Kind, int] = {"object": 3, "number": 1, "colour": 2, "action": 1, "yes/no": 4}
"""Questions of each kind a photo."""

KEPT: dict[tuple[Kind, str], float] = {("object", "dog"): 1 / 8, ("number", "one"): 1 / 3}
"""The part that is kept of the answers that are too common."""


@dataclass(frozen=True)
class Question:
    """``answers``: of several people, where the data set has them; ``answer`` is the most frequent then."""

    question: str
    answer: str
    kind: Kind
    answers: tuple[str, ...] = field(default=(), compare=False)


def kind_of_answer(answer: str) -> Kind:
    """The kind of a data set's own question, by its answer in lower case."""
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in NUMBERS or answer.isdecimal():
        return "number"
    return "colour" if answer in COLOURS else "object"
