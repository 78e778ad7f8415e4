"""The words for pictures and numbers in questions, and questions without what only makes them polite."""

from __future__ import annotations

import re

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PHOTO = r"(?:photo(?:graph)?|picture|pic|image|drawing)"
NOUN = rf"(?:{PHOTO}|one)"  # of a picture
PHOTO_NOUNS = rf"{NOUN}s?"
NUMBER = rf"(?:{'|'.join(NUMBER_WORDS[2:])}|\d+)"
PLACE = rf"(?:left|right|last|{'|'.join(ORDINALS)})"  # of a picture among several

COURTESY = re.compile(  # "Could you please tell me |what it is?", "So |is it a dog?"
    r"(?:(?:please|so|and|hi|hello|hey|ok(?:ay)?),? )*"
    r"(?:(?:(?:can|could|would|will) you|do you (?:know|think)|i(?:['\u2019]d| would) like to know) )?(?:please )?"
    r"(?:(?:tell(?: me)?|say|see|explain|guess) )?"
    r"(?=(?:what|which|who|whose|where|when|why|how|if|whether|is|are|do|does|count|name|list|identify)\b)",
    re.I,
)
WHETHER = re.compile(
    r"(?:if|whether) (?P<subject>there|it|this|that|they|(?:the|these|those) .+?) (?P<be>is|are|was|were) ", re.I
)
COUNT_REQUEST = re.compile(r"count (?:all )?(?:the )?(?:number of )?(?P<things>(?!to )[^,?.]*[^,?. ]) *[?.]*", re.I)
YES_OR_NO = re.compile(r",? or not(?= *[?.!]*$)|[,;.?!]? *\(?yes or no\)?(?= *[?.!]*$)", re.I)
SHORT_ORDINAL = re.compile(r"\b([1-9]|10)(?:st|nd|rd|th)\b", re.I)
PICTURE_NUMBER = re.compile(rf"\b({PHOTO}) (?:#|number |no\. ?)?({'|'.join(NUMBER_WORDS[1:])}|\d+)\b", re.I)


def plain_question(question: str) -> str:
    """A question in its shortest common form: ``"Could you tell me if there is a dog or not?"`` -> ``"is there a dog?"``, ``"What is in the
    2nd photo?"`` -> ``"What is in the second photo?"``, ``"Count the dogs."`` -> ``"How many dogs are there?"``."""
    text = YES_OR_NO.sub("", question.strip())
    if courtesy := COURTESY.match(text):
        text = text[courtesy.end() :]
    text = WHETHER.sub(r"\g<be> \g<subject> ", text, count=1) if WHETHER.match(text) else text
    if counted := COUNT_REQUEST.fullmatch(text):
        text = f"How many {counted['things']} are there?"
    text = SHORT_ORDINAL.sub(lambda match: ORDINALS[int(match[1]) - 1], text)
    return PICTURE_NUMBER.sub(lambda match: f"{match[1]} {digits(match[2])}", text)


def digits(number: str) -> str:
    """``two`` -> ``2``."""
    return str(NUMBER_WORDS.index(number.lower())) if number.lower() in NUMBER_WORDS else number
