"""Which of several pictures a question asks for, or is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from triptych.text.prompt import IMAGE
from triptych.text.questions.kinds import is_about_all
from triptych.text.questions.wording import NOUN, NUMBER, ORDINALS, PHOTO, PHOTO_NOUNS, PLACE
from triptych.text.questions.yes_no import NO_PEOPLE

WHICH = re.compile(
    rf"which (?:one )?is the {NOUN} (?:of|with|showing|that (?:shows?|has|contains?)) "
    r"|(?:(?:in|on) )?(?:which(?= (?:shows?|has|contains?|depicts?)\b)"
    rf"|(?:which|what) (?:(?:one )?of (?:(?:the|these|those|both) )?(?:{NUMBER} )?{PHOTO_NOUNS}"
    rf"|(?:one )?of (?:these|those|them|the two)|{PHOTO_NOUNS}))(?:['\u2019]s)? "
    r"(?:(?:shows?|(?:has|have)(?: got)?|got|contains?|depicts?)|is there|(?:there )?(?:is|are)"
    r"|do(?:es)?(?! (?:you|we))|(?:can|do) (?:you|we) see)? ?",
    re.I,
)
NOT = re.compile(  # behind ``WHICH``: "does|n't show a dog", "has |no dog", "is |without a dog"
    r"(?:(?:n['\u2019]t|not) (?:there (?:is |are )?)?(?:(?:show|have|contain|depict|include|(?:you|we) see) )?(?:any )?"
    r"|(?:can(?:not|['\u2019]t) (?:you|we)|can (?:you|we) not) see (?:any )?|no |without (?:any )?|lacks? (?:any )?)",
    re.I,
)
NEGATION = re.compile(r"\b(?:not|no|without|never)\b|n['\u2019]t\b", re.I)
ONE_PLACE = rf"(?:(?:in|on) )?(?:the )?(?:{PLACE}(?:[- ]hand)?(?: {NOUN})?|{PHOTO} \d+)"
IN_WHICH = re.compile(  # Is the dog in the left or the right photo? Where is the dog, left or right?
    rf"(?:(?:is|are) (?P<thing>(?!(?:this|that|it|they|there)\b)\S.*?) (?=(?:in|on) )"
    rf"|where(?: is|['\u2019]s| are) (?P<placed>[^,:]*[^,: ])[,:] *){ONE_PLACE} or {ONE_PLACE} *\?*",
    re.I,
)
HOW_MANY_SHOW = re.compile(  # How many of the photos show a dog? Which photos have people in them?
    rf"(?:(?P<count>how many)|which)(?: of)?(?: (?:the|these|those))?(?: {NUMBER})? (?:{PHOTO}s|(?<=of )(?:them|these|those)) "
    r"(?:show|have|contain|depict) (?:any )?(?P<thing>\S.*?)(?: in (?:them|it))? *\?*",
    re.I,
)
EACH_PHOTO = re.compile(
    rf"\b(?:(?:all|both|each|every)(?: of)? )?(?:(?:the|these|those) )?(?:{NUMBER} )?(?P<noun>{PHOTO})s\b"
    rf"|\b(?:each|every) (?P<single>{PHOTO})\b",
    re.I,
)
WHAT_THINGS = re.compile(r"(what|which) (animal|colou?r|sport|game|vehicle|object|food|room|season)s are\b", re.I)
NAMED_PICTURE = re.compile(
    rf"\bthe (?P<name>{PLACE})(?:[- ]hand)? {NOUN}\b|\bthe {NOUN} (?:on|to) the (?P<side>left|right)\b"
    rf"|\b{NOUN} (?P<number>\d+)\b|(?:(?<=\bin )|(?<=\bon )|(?<=\bdescribe ))the (?P<alone>{PLACE})(?= *[?.!]*$)",
    re.I,
)
TWO_PICTURES = re.compile(
    rf"\b{PLACE}(?:[- ]hand)?(?: {NOUN})? (?:or|and)\b|\b(?:than|or|and|to|as) (?:(?:in|of|on) )?(?:the )?{PLACE}\b",
    re.I,
)
ONE_OF_SEVERAL = re.compile(
    rf"\b{PLACE}\b(?! (?:next|behind|now|above|below|beside|thing|glance|time)\b)|\b{NOUN} \d", re.I
)


def picture_numbers(pictures: int) -> dict[str, int]:
    """The words that name one of ``pictures`` pictures, and its index: ``left`` of two, ``3``, ``first``, ``last``."""
    names = {"left": 0, "right": 1} if pictures == 2 else {}
    names |= {str(n + 1): n for n in range(pictures)} | dict(zip(ORDINALS[:pictures], range(pictures), strict=False))
    return names | {"last": pictures - 1}


def pictures_named_by(question: str, choices: Sequence[str], pictures: int) -> list[int] | None:
    """The picture that each choice names, where a question asks which of the pictures shows something and every picture is one of the
    choices ("left" and "the right one", "photo 3", "the first"); else None."""
    named = named_pictures(choices, pictures)
    places = [min(each) for each in named if len(each) == 1]
    named_once = len(choices) == pictures and sorted(places) == list(range(pictures))
    return places if named_once and which_picture(question) is not None else None


def named_pictures(texts: Sequence[str], pictures: int) -> list[set[int]]:
    """The pictures that each text names: ``"the right one"`` -> ``{1}``."""
    names = picture_numbers(pictures)
    return [{names[word] for word in re.findall(r"\w+", text.lower()) if word in names} for text in texts]


def one_picture_asked_about(question: str, pictures: int) -> tuple[int, str] | None:
    """Of several pictures the one that a question is about, and the question about it alone: ``"What is in the left photo?"`` -> 0,
    ``"What is in the photo?"``; ``"Is the dog in photo 2 wet?"`` -> 1, ``"Is the dog wet?"``.

    None: it names none of them, or several, or asks which.
    """
    if pictures < 2 or IMAGE in question or which_picture(question) or re.search(r"\bother\b", question, re.I):
        return None
    numbers = picture_numbers(pictures)
    named = {numbers.get(next(filter(None, match.groups())).lower()) for match in NAMED_PICTURE.finditer(question)}
    if is_about_all(question) or len(named) != 1 or None in named or TWO_PICTURES.search(question):
        return None
    shorter = re.sub(rf" (?:in|on|of) (?:{NAMED_PICTURE.pattern})(?= \w)", "", question, flags=re.I)
    return min(n for n in named if n is not None), NAMED_PICTURE.sub("the photo", shorter)


class WhichPicture(NamedTuple):
    """What the picture shows that a question asks for: ``"Which photo shows a dog in the snow?"`` -> ``a dog in the snow``;
    ``missing``: what it does not show."""

    text: str
    missing: bool = False


def which_picture(question: str) -> WhichPicture | None:
    """None: the question does not ask which picture, or says "not" in the middle, as in ``"Which photo shows a man who does not run?"``"""
    text = question.strip()
    if IMAGE in question:
        return None
    if placed := IN_WHICH.fullmatch(text):
        return WhichPicture(placed["thing"] or placed["placed"])
    start = WHICH.match(text)
    if start is None:
        return None
    rest = NO_PEOPLE.sub("no people", text[start.end() :].rstrip(" ?."))
    negation = NOT.match(rest)
    wanted = rest[negation.end() :] if negation else rest
    return None if NEGATION.search(wanted) else WhichPicture(wanted or question, negation is not None)


class PicturesShowing(NamedTuple):
    """``"Which photos show a dog?"``: those that show the ``thing``, or, ``counted``, their number."""

    thing: str
    counted: bool


def pictures_showing(question: str) -> PicturesShowing | None:
    """None: the question does not ask which or how many of the pictures show something, or says "not"."""
    match = HOW_MANY_SHOW.fullmatch(question.strip())
    if match is None or NEGATION.search(match["thing"]):
        return None
    return PicturesShowing(match["thing"], match["count"] is not None)


def statement(question: str) -> str:
    """What a photo must show to be the answer: ``"Which photo shows a dog in the snow?"`` -> ``"a dog in the snow"``.

    A question of another kind is taken as it is.
    """
    wanted = which_picture(question)
    return question.strip().rstrip(" ?.") or question if wanted is None else wanted.text


def names_one_of_several(question: str) -> bool:
    """Whether a question speaks of one of several pictures: ``"What is in the left photo?"``, ``"What does photo 2 show?"``"""
    return ONE_OF_SEVERAL.search(question) is not None


def about_one_photo(question: str) -> str:
    """A question about several pictures as one about a single picture: ``"What animals are in these three photos?"`` -> ``"What animal is
    in the photo?"``"""
    single = EACH_PHOTO.sub(lambda match: f"the {match['noun'] or match['single']}", question)
    return WHAT_THINGS.sub(r"\1 \2 is", single)
