"""The accuracy of the VQA benchmark (Antol et al., 2015): answers brought to one form, compared with those of ten people."""

import re
from collections.abc import Sequence

ARTICLES = ("a", "an", "the")
DIGITS = {
    word: str(i)
    for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
DIGITS["none"] = "0"
VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d)")
FULL_STOP = re.compile(r"\.(?!\d)")
APOSTROPHES = str.maketrans("", "", "'\N{RIGHT SINGLE QUOTATION MARK}")
ENOUGH = 3
"""So many others must have said it for full marks."""


def normalize_answer(answer: str) -> str:
    """The form in which answers are compared: ``"The Two-storey house."`` -> ``"2 storey house"``.

    Lower case; number words as digits; no articles, full stops and punctuation, which separates words unless it stands
    beside a space or the answer holds a number like 1,000. The benchmark's table of contractions ("dont" is "don't")
    comes to leaving apostrophes out.
    """
    text = original = answer.lower()
    remove_all = NUMBER_COMMA.search(original) is not None
    for mark in VQA_PUNCTUATION:
        beside_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if remove_all or beside_space else " ")
    words = FULL_STOP.sub("", text).translate(APOSTROPHES).split()
    return " ".join(DIGITS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """How right an answer is, 0..1: for each person left out, min(n / 3, 1) of the others who said it; the mean of these.

    With ten people, three who agree give 0.9. With fewer than four, all others must have said it for full marks.
    """
    said = [normalize_answer(other) == normalize_answer(answer) for other in people]
    enough = min(ENOUGH, len(people) - 1)
    if enough < 1:
        return float(any(said))
    return sum(min((sum(said) - own) / enough, 1.0) for own in said) / len(said)
