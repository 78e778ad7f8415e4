"""Kinds of questions: for a description, a number, one of several answers that they offer; about all pictures."""

from __future__ import annotations

import re

from triptych.text.prompt import IMAGE
from triptych.text.questions.wording import NOUN, NUMBER_WORDS, PHOTO_NOUNS

ALL_PICTURES = re.compile(
    rf"\b(?:in common|differ(?:s|ent|ence|ences)?|both|(?:all|two|these|the) (?:of )?(?:the |these )?{NOUN}s|which (?:of|{PHOTO_NOUNS}))\b",
    re.I,
)
SHARED = re.compile(rf"\b(?:in common|in (?:all|both)(?: of)? (?:the |these )?(?:{PHOTO_NOUNS}|them))\b", re.I)
DIFFERENCE = re.compile(
    r"\bdiffer(?:s|ences?)?\b|\b(?:how|what) (?:is|are|makes?)\b.*\bdifferent\b|\bsimilar(?:ity|ities)?\b|\bcompare\b",
    re.I,
)

ANY_THING = re.compile(r"\bany(?:one|body|thing)?\b", re.I)
ENDS_IN_PHOTO = re.compile(rf" (?:in|on) (?:the|this) {NOUN}$", re.I)
OFFER = re.compile(  # What is it: red, green or blue? What's this - a dog or a cat?
    r"(?:what|which|who|where|when|how)\b[^,:?]*(?:[,:?]| -) *(?P<offer>[^?]*\S or \S[^?]*)", re.I
)
BARE_OFFER = re.compile(r"(?P<offer>(?:\S+(?: \S+)?, )*\S+(?: \S+)?,? or \S+(?: \S+)?)", re.I)  # Tennis or golf?
QUESTION_START = re.compile(
    r"(?:what|which|who|whose|where|when|why|how|is|are|was|were|do|does|did|has|have|had|can|could|will|would)(?:n?['\u2019]\w+)? ",
    re.I,
)
EITHER_OR = re.compile(
    r"(?:is|are|was|were|does|do) (?!there\b)(?P<before>[^?]*[^?, ]),? or (?!not\b)(?P<last>\S[^?]*)", re.I
)
ONE_WORD = re.compile(r"\S+(?: and \S+)?")  # also "black and white"
NUMBER_OR = re.compile(
    rf"(?:are|is) there (?P<one>{'|'.join(NUMBER_WORDS)}|\d+) or (?P<other>{'|'.join(NUMBER_WORDS)}|\d+)\b", re.I
)
FIRST_WORD = re.compile(  # of an alternative: the other one begins with a word of the same kind
    r"(?P<article>an?|the)\b|(?P<action>\w+ing)\b|(?P<place>in|on|at|under|behind|near|beside|above|below)\b", re.I
)

HOW_MANY = re.compile(r"how many\b|(?:what is|what['\u2019]s|count) the number of\b", re.I)

WHOLE_PHOTO = (
    rf"(?:(?:(?:this|the|that|my) )?(?:{NOUN}|scene)|it|this|them|these|(?:both|all|each)(?: of (?:them|these))?)"
)
WHAT_IT_SHOWS = r"what(?: you (?:can )?see|(?: is|['\u2019]s) (?:shown|visible|happening|in))(?: in)?"
DESCRIPTION = r"(?:captions?|description|alt(?:ernative)? text|summary)"
DESCRIBE = re.compile(
    r"(?:please )?(?:(?:can|could|would|will) you (?:please )?)?"
    rf"(?:(?:describe|caption|summari[sz]e)(?: {WHAT_IT_SHOWS})?(?: {WHOLE_PHOTO})?"
    r"|(?:give|write|provide|generate|create|make|suggest)(?: me)? (?:(?:an?|the|one) )?(?:[\w-]+,? ){0,3}"
    rf"{DESCRIPTION}(?: (?:of|for) {WHOLE_PHOTO})?"
    rf"|what(?:['\u2019]s| is) (?:happening|going on)(?! (?:in|on|to|with) (?:the|this|that|his|her) (?!{NOUN}\b))"
    rf"(?: (?:here|(?:in|on) (?:this|the) {NOUN}))?"
    rf"|tell me about (?:this|the) {NOUN}|what you (?:can )?see (?:in|on) (?:this|the) {NOUN}"
    rf"|what(?:['\u2019]s| is) in (?:this|the) {NOUN}|what (?:do|can) you see(?: (?:in|on) (?:this|the) {NOUN})?"
    rf"|what does (?:this|the) {NOUN} show)"
    r"(?:,? (?:in|with|using|briefly|please|concisely|for|to me)\b[^?.]{0,60})? *[.!?]*",
    re.I,
)


def is_about_all(question: str) -> bool:
    """Whether a question speaks of several pictures: what they share, how they differ, which of them."""
    return (ALL_PICTURES.search(question) or SHARED.search(question)) is not None


def asks_what_is_shared(question: str) -> bool:
    """Whether a question asks what all pictures have in common."""
    return SHARED.search(question) is not None


def asks_to_compare(question: str) -> bool:
    """Whether a question asks how pictures differ or are similar: ``"How do these photos differ?"``"""
    return DIFFERENCE.search(question) is not None


def asks_for_description(question: str) -> bool:
    """Whether the whole photo shall be described: ``"Describe this image in one sentence."``, ``"What is in the photo?"``, but not
    ``"Describe the dog."``"""
    return DESCRIBE.fullmatch(question.strip()) is not None


def asks_for_number(question: str) -> bool:
    """Whether the answer is a number of things: ``"How many dogs are there?"``"""
    return HOW_MANY.match(question.strip()) is not None


def alternatives_in(question: str) -> list[str] | None:
    """The answers that a question offers: ``"Is it a dog or a cat?"`` -> a dog, a cat; ``"What is it: red, green or blue?"`` -> red, green,
    blue. None: it offers none, or where the first one begins is not certain."""
    if IMAGE in question:
        return None
    text = ENDS_IN_PHOTO.sub("", question.strip().rstrip("? "))
    if match := NUMBER_OR.match(text):
        return [match["one"], match["other"]]
    match = OFFER.fullmatch(text)
    if match is None and question.rstrip().endswith("?") and not QUESTION_START.match(text):
        match = BARE_OFFER.fullmatch(text)
    if match:
        offered = [part.strip() for part in re.split(r",? or |,", match["offer"])]
        return offered if len(set(offered)) == len(offered) and all(offered) else None
    match = EITHER_OR.fullmatch(text)
    if match is None or ANY_THING.search(match["before"]):
        return None
    (before, *between), last = match["before"].split(","), match["last"]
    words, kind = before.split(), first_word_kind(last)
    begins = [i for i, word in enumerate(words) if i and first_word_kind(word) == kind]
    if kind == "word":
        begins = [len(words) - 1] if len(words) > 1 and ONE_WORD.fullmatch(last) else []
    return [" ".join(words[begins[-1] :]), *(part.strip() for part in between), last] if begins else None


def first_word_kind(text: str) -> str:
    """``article``, ``action``, ``place`` or ``word``: what a text begins with."""
    match = FIRST_WORD.match(text)
    return str(match.lastgroup) if match else "word"
