"""Questions for yes or no: whether a thing is there, or is as they say."""

from __future__ import annotations

import re
from typing import NamedTuple

from triptych.text.questions.kinds import ANY_THING, NUMBER_OR
from triptych.text.questions.wording import NOUN, NUMBER, NUMBER_WORDS, PHOTO_NOUNS, PLACE

YES_NO_START = re.compile(r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would)(?:n?['\u2019]t)? ", re.I)
INDIRECT = re.compile(
    r"(?:can|could|will|would) you (?:please )?(?:tell|name|list|describe|explain|identify|guess)\b", re.I
)
OR = re.compile(r"(?P<before>.*?)\b(?:n?or)\b", re.I)
IS_THERE = re.compile(r"(?:is|are)(?:n['\u2019]t)? there\b", re.I)

SOME_PHOTOS = (
    r"(?:(?:(?:the|this|these|those|either|any|(?:at least )?one|each|every|all|both)(?: of)? )*"
    rf"(?:(?:{PLACE}|{NUMBER}) )?{PHOTO_NOUNS}(?: \d+)?"
    r"|(?:(?:any|either|each|all|both|(?:at least )?one) of )?(?:them|these|those)|both|all|each|either)"
)
PRESENCE = tuple(  # a form of question each: whether a ``thing`` is there, ``where``, or whether there is ``no`` such thing
    re.compile(form + r" *\?*", re.I)
    for form in (
        # Is there a dog in the photo? Aren't there any dogs? Is there no dog?
        rf"(?:is|are)(?:n['\u2019]t)? there (?P<thing>\S.*?)(?: (?:in|on) (?P<where>{SOME_PHOTOS})| here)?",
        # Does the photo show a dog? Do both photos contain dogs?
        rf"do(?:es)? (?P<where>it|this|{SOME_PHOTOS}) (?P<no>not )?(?:show|contain|have|depict|include) (?P<thing>\S.*?)(?: in it)?",
        # Can you see a dog? Do you see any dogs in the photo?
        rf"(?:can|do) (?:you|we) see (?P<thing>\S.*?)(?: (?:in|on) (?P<where>{SOME_PHOTOS})| here)?",
        # Is this a photo of the beach? Is it a dog? Is the left one a dog?
        rf"is (?P<where>this|it|that) (?P<no>not )?an? {NOUN} (?:of |with |showing |(?=without ))(?P<thing>\S.*?)",
        rf"is(?:n['\u2019]t)? (?P<where>this|it|that|(?:the|this) {NOUN}) (?P<no>not )?(?P<thing>an? \S.*?)",
        # Is a dog in the photo? Are people in any of the photos?
        r"(?:is|are) (?!(?:the|this|that|these|those|it|they|there|you|we)\b)(?P<thing>\S.*?)"
        rf" (?:in|on) (?P<where>{SOME_PHOTOS})",
        # Is the beach without people?
        r"(?:is|are) (?:the|this|that) \w+ (?=without |free of )(?P<thing>\S.*?)",
    )
)
NO_SUCH = re.compile(r"(?:no|neither|without(?: any)?|free of|not (?=an? |any )) *\b", re.I)
ANY_SUCH = re.compile(r"any ", re.I)
NO_THING = re.compile(rf"\b(?:{PHOTO_NOUNS}$|same\b|different\b)", re.I)
ANYONE = re.compile(r"\b(?:any|some)(?:one|body)\b", re.I)
NO_PEOPLE = re.compile(r"\b(?:nobody|no[ -]one)\b(?: in it\b)?", re.I)
EVERY = re.compile(r"\b(?:all|both|each|every)\b", re.I)
BETWEEN_PARTS = re.compile(r",? n?or (?:any )?", re.I)  # between things of which one is asked for

IS_SO = re.compile(r"(?P<be>is|are)(?:n['\u2019]t)? (?P<thing>(?:the|this|that|these|those) .*?) *\?*", re.I)
ACTION_VERB = re.compile(
    r"(?!(?:build|ceil|cloth|even|k|morn|rail|r|str|sw|th|wedd|w)ing$)\w+ing"
)  # not building, king, wing
RELATION = re.compile(
    r"\b(?:a|an|the|in|on|at|of|with|without|by|from|under|over|near|behind|or|and|to|for|more|than|there|both|all)\b"
)

ARTICLE_START = re.compile(r"(?:an?|the|one) ", re.I)
COUNT_START = re.compile(
    r"(?:exactly |only |just |at least |at most |more than |fewer than |less than )?"
    rf"(?:\d+|{'|'.join(NUMBER_WORDS)}|many|several) ",
    re.I,
)


def is_yes_no(question: str) -> bool:
    """Whether the answer can only be yes or no; not ``"Is it a dog or a cat?"``, but ``"Are there any dogs or cats?"``."""
    text = question.strip()
    if YES_NO_START.match(text) is None or INDIRECT.match(text):
        return False
    offered = OR.match(text)
    if offered is None:
        return True
    return NUMBER_OR.match(text) is None and (IS_THERE.match(text) or ANY_THING.search(offered["before"])) is not None


class Presence(NamedTuple):
    """What a question asks to be there: ``"Is there a dog in both photos?"`` -> ``a dog``, ``both photos``. ``missing``: it asks whether
    the thing is not there."""

    thing: str
    where: str = ""
    missing: bool = False

    @property
    def everywhere(self) -> bool:
        """Whether all pictures must show the thing, not only one of them."""
        return not self.missing and EVERY.search(self.where) is not None

    @property
    def parts(self) -> list[Presence]:
        """One for each thing: ``a dog or a cat`` -> ``a dog``, ``a cat``. One of them is enough, or all must be missing."""
        return [self._replace(thing=thing) for thing in BETWEEN_PARTS.split(self.thing)]


def presence_asked_about(question: str) -> Presence | None:
    """``"Is there a dog in the photo?"``, ``"Does the photo show a dog?"``, ``"Is it a dog?"`` -> ``a dog``; None for a question of another
    kind."""
    plain = NO_PEOPLE.sub("no people", ANYONE.sub("people", question.strip()))
    match = next(filter(None, (form.fullmatch(plain) for form in PRESENCE)), None)
    if match is None or not is_yes_no(question) or NO_THING.search(match["thing"]):
        return None
    parts = match.groupdict()
    none = NO_SUCH.match(match["thing"])
    thing = ANY_SUCH.sub("", match["thing"][none.end() if none else 0 :], count=1)
    return Presence(thing, parts.get("where") or "", none is not None or parts.get("no") is not None)


class Claim(NamedTuple):
    """What a question asks to be so: ``"Is the man's shirt blue?"`` -> ``the man's shirt``, ``is``, ``blue``. ``denied``: it asks whether
    it is not so."""

    subject: str
    be: str
    predicate: str
    denied: bool = False

    @property
    def statement(self) -> str:
        return f"{self.subject} {self.be} {self.predicate}"

    @property
    def question(self) -> str:
        """Whether it is so, in the form of the training questions: ``Is the man's shirt blue?``."""
        return f"{self.be.capitalize()} {self.subject} {self.predicate}?"

    @property
    def noun(self) -> str:
        return self.subject.split()[-1]


def claim_asked_about(question: str) -> Claim | None:
    """What a question asks to be so of a thing: a word, such as ``blue``, or an action, such as ``wearing a hat``; None for another."""
    match = IS_SO.fullmatch(question.strip())
    if match is None or not is_yes_no(question):
        return None
    said = match["thing"].lower().split()
    words = [word for word in said if word != "not"]
    actions = (i for i, word in enumerate(words) if i > 1 and ACTION_VERB.fullmatch(word))
    begins = next(actions, len(words) - 1)
    subject, predicate = words[:begins], words[begins:]
    plain = len(subject) > 1 and not RELATION.search(" ".join([*subject[1:], predicate[0]]))
    if not plain or re.fullmatch(PHOTO_NOUNS, subject[-1]) or said not in (words, [*subject, "not", *predicate]):
        return None
    return Claim(" ".join(subject), match["be"].lower(), " ".join(predicate), said != words)


def presence_question(thing: str) -> str:
    """The question whether a thing is there, in the form of the training questions: ``"a dog"`` -> ``"Is there a dog in the photo?"``."""
    plural = not ARTICLE_START.match(thing) and re.search(r"(?:[^s]s|people|sheep)$", thing)
    return f"{'Are' if plural else 'Is'} there {thing} in the photo?"


def is_counted(thing: str) -> bool:
    """Whether a thing is asked for in a number: ``"two dogs"``."""
    return COUNT_START.match(thing) is not None
