"""Scoring the choices of a question: a uniform form, and calibration by the scores without the photo.

A language model prefers some answers whatever the photo shows: short ones, common ones, those spelt as in its training. So choices are
scored in a uniform form (lower case, without article, singular), and a part of the log-probability that the same choice has with grey
pictures is subtracted (Zhao et al. 2021, "Calibrate before use"). Subtracting all of it is the domain-conditional PMI of Holtzman et al.
2021, which ignores that some answers really are more common than others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.errors import InputError
from triptych.generate import Hypothesis
from triptych.text.questions.wording import NUMBER_WORDS
from triptych.text.tokenizer import TextTokenizer

GREY = Image.new("RGB", (32, 32), (127, 127, 127))  # takes the place of photos for a model's answer without seeing them
YES_NO = ["yes", "no"]

# Chosen by accuracy on 70 questions with three choices about validation photos of Flickr8k. blip2 and flamingo: 79 and 84%; weight 0:
# 76 and 83%; weight 1: 59 and 60%. With an article before the right choice only: 33 and 50%; weight 0: 11 and 11%.
BLIND_WEIGHT = 0.25
MAX_BLIND_GAP = 6.0  # nats

ARTICLE = re.compile(r"^(?:a|an|the) (?=\w)", re.I)
IRREGULAR = {
    "buses": "bus", "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse", "knives": "knife", "wolves": "wolf", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "scarves": "scarf",
    "calves": "calf", "halves": "half", "cookies": "cookie", "movies": "movie", "hoodies": "hoodie", "brownies": "brownie",
    "zombies": "zombie", "selfies": "selfie", "smoothies": "smoothie", "birdies": "birdie", "potatoes": "potato",
    "tomatoes": "tomato", "heroes": "hero", "mangoes": "mango", "buffaloes": "buffalo", "volcanoes": "volcano",
}  # fmt: skip
NO_PLURAL = re.compile(  # words that are no plurals, or have no singular
    r"(?:ss|us|is|news|series|species|lens|gas|canvas|atlas|christmas|always|sideways"
    r"|clothes|jeans|pants|shorts|glasses|scissors|pyjamas|pajamas|trousers|tights|binoculars)$"
)


def check_choices(choices: Sequence[str]) -> list[str]:
    """The choices without needless spaces. Raises InputError: not a list of at least two different, non-empty texts."""
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise InputError(f"choices are {choices!r}: give a list of texts, such as ['yes', 'no']")
    if wrong := [choice for choice in choices if not isinstance(choice, str)]:
        raise InputError(f"the choice {wrong[0]!r} is not a text: put it in quotes")
    kept = [" ".join(choice.split()) for choice in choices]
    if len(kept) < 2:
        raise InputError("give at least two choices, or none for a free answer")
    if not all(kept):
        raise InputError("a choice is empty: give each a word")
    if len(set(kept)) < len(kept):
        twice = next(choice for choice in kept if kept.count(choice) > 1)
        raise InputError(f"the choice {twice!r} is given twice: give different ones")
    return kept


def forms_for_scoring(choices: Sequence[str]) -> list[str]:
    """The choices in a uniform form: ``["A dog", "cats."]`` -> ``["dog", "cat"]``. A step that would make two equal is left out."""
    forms = list(choices)
    steps: tuple[Callable[[str], str], ...] = (without_stop, str.lower, without_article, number_as_word, singular)
    for step in steps:
        changed = [step(form) or form for form in forms]
        if len(set(changed)) == len(changed):
            forms = changed
    return forms


def without_stop(text: str) -> str:
    return text.rstrip(" .!?")


def without_article(text: str) -> str:
    return ARTICLE.sub("", text)


def number_as_word(text: str) -> str:
    return NUMBER_WORDS[int(text)] if text.isdecimal() and int(text) < len(NUMBER_WORDS) else text


def singular(text: str) -> str:
    """The last word in the singular, by rule; a phrase with a number, such as ``two dogs``, is not changed."""
    before, space, word = text.rpartition(" ")
    if any(part in NUMBER_WORDS[2:] for part in before.split()):
        return text
    if word in IRREGULAR:
        return before + space + IRREGULAR[word]
    if len(word) < 4 or not word.endswith("s") or NO_PLURAL.search(word):
        return text
    if word.endswith("ies") and len(word) > len("ties"):
        return f"{before}{space}{word[:-3]}y"
    return before + space + (word[:-2] if word.endswith(("ches", "shes", "sses", "xes")) else word[:-1])


def blind_share(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The amount to subtract from the choices' log-probabilities, given those without the photos: ``[C]`` -> ``[C]``.

    A part (``BLIND_WEIGHT``) of each, and all that is more than ``MAX_BLIND_GAP`` below the most likely choice: such a low value is due
    to a rare wording, not to a rare thing.
    """
    excess = np.minimum(0.0, logprobs - (logprobs.max() - MAX_BLIND_GAP))
    return BLIND_WEIGHT * logprobs + (1 - BLIND_WEIGHT) * excess


def choice_ids(tokenizer: TextTokenizer, choices: Sequence[str], end: int, gap: str = " ") -> list[list[int]]:
    """The tokens of each choice as a whole answer, with the end token; ``gap``: the characters between prompt and answer."""
    return [[*tokenizer.encode(f"{gap}{choice}"), end] for choice in choices]


def to_hypotheses(ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> list[Hypothesis]:
    """Scored choices, ids with their end token and the log-probability of each, as finished texts."""
    return [Hypothesis(tuple(row[:-1]), tuple(each), True) for row, each in zip(ids, logprobs, strict=True)]


def normalised_logprobs(scores: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-softmax of ``scores [C]``."""
    shifted = np.asarray(scores, np.float64) - np.max(scores)
    return shifted - np.log(np.exp(shifted).sum())


SIDE_WORDS = {"left": "right", "right": "left", "first": "second", "second": "first"}
SIDE_NAME = re.compile(r"\b(?:left|right|first|second)\b", re.I)


def in_other_order(text: str) -> str:
    """A text about two photos with left and right, first and second swapped."""

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        other = SIDE_WORDS[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return SIDE_NAME.sub(swap, text)
