"""What a question asks for, read off its words: which picture, whether something is there or is so, what all pictures share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from triptych.text.prompt import IMAGE

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NOUN = r"(?:photo(?:graph)?|picture|image|drawing|one)"
PHOTO_NOUNS = rf"{NOUN}s?"
WHICH = re.compile(
    rf"(?:(?:in|on) )?(?:which|what) (?:of (?:these|those|them)|(?:of (?:the|these|those) (?:two |three )?)?{PHOTO_NOUNS}) "
    r"(?:(?:shows?|has|have|contains?|depicts?)|is there|(?:there )?(?:is|are)|do(?:es)?(?! (?:you|we))|(?:can|do) (?:you|we) see)? ?",
    re.I,
)
NOT = re.compile(  # behind ``WHICH``: "does|n't show a dog", "has |no dog", "is |without a dog"
    r"(?:(?:n['\u2019]t|not) (?:there (?:is |are )?)?(?:(?:show|have|contain|depict|include|(?:you|we) see) )?(?:any )?"
    r"|(?:can(?:not|['\u2019]t) (?:you|we)|can (?:you|we) not) see (?:any )?|no |without (?:any )?|lacks? (?:any )?)",
    re.I,
)
NEGATION = re.compile(r"\b(?:not|no|without|never)\b|n['\u2019]t\b", re.I)
YES_NO_START = re.compile(
    r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would)(?:n?['\u2019]t)? (?!.*\bor\b)", re.I
)
INDIRECT = re.compile(  # "could you tell me what ...", "do you know how many ...", but not "can you tell me if ..."
    r"(?:can|could|will|would|do|did) (?:you|we) (?:please )?"
    r"(?:(?:tell|name|count|list|describe|explain|identify|guess)\b"
    r"|(?:know|say|see|think|remember) (?:what|which|who|whose|where|when|why|how)\b)(?!.*\b(?:if|whether)\b)",
    re.I,
)
SOME_PHOTOS = (
    r"(?:(?:the|this|these|those|either|any|(?:at least )?one|each|every|all|both)(?: of)? )*"
    rf"(?:(?:left|right|last|two|three|four|{'|'.join(ORDINALS)}) )?{PHOTO_NOUNS}(?: \d+)?"
)
PRESENCE = tuple(  # a form of question each: whether a ``thing`` is there, ``where``, or whether there is ``no`` such thing
    re.compile(form + r" *\?*", re.I)
    for form in (
        # Is there a dog in the photo? Aren't there any dogs? Is there no dog?
        r"(?:is|are)(?:n['\u2019]t)? there (?P<no>no |not (?=an? |any ))?(?:any )?(?P<thing>\S.*?)"
        rf"(?: (?:in|on) (?P<where>{SOME_PHOTOS})| here)?",
        # Does the photo show a dog? Do both photos contain dogs?
        rf"do(?:es)? (?P<where>it|{SOME_PHOTOS}) (?P<no>not )?(?:show|contain|have|depict|include) (?:any )?(?P<thing>\S.*?)(?: in it)?",
        # Can you see a dog? Do you see any dogs in the photo?
        r"(?:can|do) (?:you|we) see (?P<no>no )?(?:any )?(?P<thing>\S.*?)"
        rf"(?: (?:in|on) (?P<where>{SOME_PHOTOS})| here)?",
        # Is this a photo of the beach? Is it a dog?
        rf"is (?P<where>this|it|that) (?P<no>not )?an? {NOUN} of (?P<thing>\S.*?)",
        r"is (?P<where>this|it|that) (?P<no>not )?(?P<thing>an? \S.*?)",
        # Is a dog in the photo? Are people in any of the photos?
        r"(?P<no>$.)?(?:is|are) (?!(?:the|this|that|these|those|it|they|there|you|we)\b)(?P<thing>\S.*?)"
        rf" (?:in|on) (?P<where>{SOME_PHOTOS})",
    )
)
NO_THING = re.compile(rf"\b(?:{PHOTO_NOUNS}$|same\b|different\b)", re.I)
ANYONE = re.compile(r"\b(?:any|some)(?:one|body)\b", re.I)
EVERY = re.compile(r"\b(?:all|both|each|every)\b", re.I)
IS_SO = re.compile(r"(?P<be>is|are) (?P<thing>(?:the|this|that|these|those) .*?) *\?*", re.I)
ACTION_VERB = re.compile(
    r"(?!(?:build|ceil|cloth|even|k|morn|rail|r|str|sw|th|wedd|w)ing$)\w+ing"
)  # not building, king, wing
RELATION = re.compile(
    r"\b(?:a|an|the|not|in|on|at|of|with|by|from|under|over|near|behind|or|and|to|for|more|than|there|both|all)\b"
)
ALL_PICTURES = re.compile(
    rf"\b(?:in common|differ(?:s|ent|ence|ences)?|both|(?:all|two|these|the) (?:of )?(?:the |these )?{NOUN}s|which (?:of|{PHOTO_NOUNS}))\b",
    re.I,
)
SHARED = re.compile(rf"\b(?:in common|in (?:all|both)(?: of)? (?:the |these )?(?:{PHOTO_NOUNS}|them))\b", re.I)
DIFFERENCE = re.compile(
    r"\bdiffer(?:s|ences?)?\b|\b(?:how|what) (?:is|are|makes?)\b.*\bdifferent\b|\bsimilar(?:ity|ities)?\b|\bcompare\b",
    re.I,
)
EACH_PHOTO = re.compile(
    r"\b(?:(?:all|both|each|every)(?: of)? )?(?:(?:the|these|those) )?(?:(?:two|three|four|five|six|seven|eight|nine|ten|\d+) )?"
    r"(?P<noun>photo(?:graph)?|picture|image|drawing)s\b|\b(?:each|every) (?P<single>photo(?:graph)?|picture|image|drawing)\b",
    re.I,
)
WHAT_THINGS = re.compile(r"(what|which) (animal|colou?r|sport|game|vehicle|object|food|room|season)s are\b", re.I)
OFFER = re.compile(r"(?:what|which|who|where|when|how)\b[^,:]*[,:] *(?P<offer>[^?]*\S or \S[^?]*)", re.I)
EITHER_OR = re.compile(
    r"(?:is|are|was|were|does|do) (?!there\b)(?P<before>[^?]*[^?, ]),? or (?!not\b)(?P<last>\S[^?]*)", re.I
)
FIRST_WORD = re.compile(  # of an alternative: the other one begins with a word of the same kind
    r"(?P<article>an?|the)\b|(?P<action>\w+ing)\b|(?P<place>in|on|at|under|behind|near|beside|above|below)\b", re.I
)
ARTICLE_START = re.compile(r"(?:an?|the|one) ", re.I)
COUNT_START = re.compile(
    r"(?:exactly |only |at least |more than )?(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten|many|several) ",
    re.I,
)
HOW_MANY = re.compile(r"how many\b|(?:what is|what's|count) the number of\b", re.I)
WHOLE_PHOTO = rf"(?:(?:this|the) {NOUN}|it|this)"
WHAT_IT_SHOWS = r"what (?:you (?:can )?see|is (?:shown|visible|happening))(?: in)?"
DESCRIPTION = r"(?:caption|description|alt(?:ernative)? text|summary)"
DESCRIBE = re.compile(
    r"(?:please )?(?:(?:can|could|would) you (?:please )?)?"
    rf"(?:(?:describe|caption|summari[sz]e)(?: {WHAT_IT_SHOWS})?(?: {WHOLE_PHOTO})?"
    r"|(?:give|write|provide|generate|create|make|suggest)(?: me)? (?:an?|the|one) (?:[\w-]+,? ){0,3}"
    rf"{DESCRIPTION}(?: (?:of|for) {WHOLE_PHOTO})?"
    rf"|what(?:['\u2019]s| is) (?:happening|going on)(?! (?:in|on|to|with) (?:the|this|that|his|her) (?!{NOUN}\b))"
    rf"(?: (?:here|(?:in|on) (?:this|the) {NOUN}))?"
    rf"|tell me (?:about|what(?:['\u2019]s| is) in|what you see in) (?:this|the) {NOUN}"
    rf"|what(?:['\u2019]s| is) in (?:this|the) {NOUN}|what (?:do|can) you see(?: (?:in|on) (?:this|the) {NOUN})?"
    rf"|what does (?:this|the) {NOUN} show)"
    r"(?:,? (?:in|with|using|briefly|please|concisely)\b[^?.]{0,60})? *[.!?]*",
    re.I,
)
NAMED_PICTURE = re.compile(
    rf"\bthe (?P<name>left|right|last|{'|'.join(ORDINALS)})(?:[- ]hand)? {NOUN}\b"
    rf"|\bthe {NOUN} (?:on|to) the (?P<side>left|right)\b|\b{NOUN} (?P<number>\d+)\b",
    re.I,
)
ONE_OF_SEVERAL = re.compile(rf"\b(?:left|right|last|{'|'.join(ORDINALS)})\b|\b{NOUN} \d", re.I)


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
    if pictures < 2 or IMAGE in question or WHICH.match(question.strip()) or re.search(r"\bother\b", question, re.I):
        return None
    numbers = picture_numbers(pictures)
    named = {numbers.get((match[1] or match[2] or match[3]).lower()) for match in NAMED_PICTURE.finditer(question)}
    if is_about_all(question) or len(named) != 1 or None in named:
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
    start = WHICH.match(question.strip())
    if start is None or IMAGE in question:
        return None
    rest = question.strip()[start.end() :].rstrip(" ?.")
    negation = NOT.match(rest)
    text = rest[negation.end() :] if negation else rest
    return None if NEGATION.search(text) else WhichPicture(text or question, negation is not None)


def statement(question: str) -> str:
    """What a photo must show to be the answer: ``"Which photo shows a dog in the snow?"`` -> ``"a dog in the snow"``.

    A question of another kind is taken as it is.
    """
    wanted = which_picture(question)
    return question.strip().rstrip(" ?.") or question if wanted is None else wanted.text


def alternatives_in(question: str) -> list[str] | None:
    """The answers that a question offers: ``"Is it a dog or a cat?"`` -> a dog, a cat; ``"What is it: red, green or blue?"`` -> red, green,
    blue. None: it offers none, or where the first one begins is not certain."""
    if IMAGE in question:
        return None
    text = re.sub(rf" (?:in|on) (?:the|this) {NOUN}$", "", question.strip().rstrip("? "), flags=re.I)
    if match := OFFER.fullmatch(text):
        offered = [part.strip() for part in re.split(r",? or |,", match["offer"])]
        return offered if len(set(offered)) == len(offered) and all(offered) else None
    match = EITHER_OR.fullmatch(text)
    if match is None:
        return None
    (before, *between), last = match["before"].split(","), match["last"]
    words = before.split()
    begins = [i for i, word in enumerate(words) if first_word_kind(word) == first_word_kind(last)]
    if not begins or begins[-1] == 0 or (first_word_kind(last) == "word" and " " in last):
        return None
    return [" ".join(words[begins[-1] :]), *(part.strip() for part in between), last]


def first_word_kind(text: str) -> str:
    """``article``, ``action``, ``place`` or ``word``: what a text begins with."""
    match = FIRST_WORD.match(text)
    return str(match.lastgroup) if match else "word"


def asks_for_description(question: str) -> bool:
    """Whether the whole photo shall be described: ``"Describe this image in one sentence."``, ``"What is in the photo?"``, but not
    ``"Describe the dog."``"""
    return DESCRIBE.fullmatch(question.strip()) is not None


def is_yes_no(question: str) -> bool:
    """Whether the answer can only be yes or no; not ``"Can you tell me what this is?"``."""
    text = question.strip()
    return YES_NO_START.match(text) is not None and INDIRECT.match(text) is None


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


def presence_asked_about(question: str) -> Presence | None:
    """``"Is there a dog in the photo?"``, ``"Does the photo show a dog?"``, ``"Is it a dog?"`` -> ``a dog``; None for a question of another
    kind."""
    plain = ANYONE.sub("people", question.strip())
    match = next(filter(None, (form.fullmatch(plain) for form in PRESENCE)), None)
    if match is None or not is_yes_no(plain) or NO_THING.search(match["thing"]):
        return None
    return Presence(match["thing"], match["where"] or "", match["no"] is not None)


class Claim(NamedTuple):
    """What a question asks to be so: ``"Is the man's shirt blue?"`` -> ``the man's shirt``, ``is``, ``blue``."""

    subject: str
    be: str
    predicate: str

    @property
    def statement(self) -> str:
        return f"{self.subject} {self.be} {self.predicate}"

    @property
    def noun(self) -> str:
        return self.subject.split()[-1]


def claim_asked_about(question: str) -> Claim | None:
    """What a question asks to be so of a thing: a word, such as ``blue``, or an action, such as ``wearing a hat``; None for another."""
    match = IS_SO.fullmatch(question.strip())
    if match is None or not is_yes_no(question):
        return None
    words = match["thing"].lower().split()
    actions = (i for i, word in enumerate(words) if i > 1 and ACTION_VERB.fullmatch(word))
    begins = next(actions, len(words) - 1)
    subject, predicate = words[:begins], words[begins:]
    plain = len(subject) > 1 and not RELATION.search(" ".join([*subject[1:], predicate[0]]))
    if not plain or re.fullmatch(PHOTO_NOUNS, subject[-1]):
        return None
    return Claim(" ".join(subject), match["be"].lower(), " ".join(predicate))


def presence_question(thing: str) -> str:
    """The question whether a thing is there, in the form of the training questions: ``"a dog"`` -> ``"Is there a dog in the photo?"``."""
    plural = not ARTICLE_START.match(thing) and re.search(r"(?:[^s]s|people|sheep)$", thing)
    return f"{'Are' if plural else 'Is'} there {thing} in the photo?"


def asks_for_number(question: str) -> bool:
    """Whether the answer is a number of things: ``"How many dogs are there?"``"""
    return HOW_MANY.match(question.strip()) is not None


def is_counted(thing: str) -> bool:
    """Whether a thing is asked for in a number: ``"two dogs"``."""
    return COUNT_START.match(thing) is not None


def is_about_all(question: str) -> bool:
    """Whether a question speaks of several pictures: what they share, how they differ, which of them."""
    return (ALL_PICTURES.search(question) or SHARED.search(question)) is not None


def asks_what_is_shared(question: str) -> bool:
    """Whether a question asks what all pictures have in common."""
    return SHARED.search(question) is not None


def asks_to_compare(question: str) -> bool:
    """Whether a question asks how pictures differ or are similar: ``"How do these photos differ?"``"""
    return DIFFERENCE.search(question) is not None


def names_one_of_several(question: str) -> bool:
    """Whether a question speaks of one of several pictures: ``"What is in the left photo?"``, ``"What does photo 2 show?"``"""
    return ONE_OF_SEVERAL.search(question) is not None


def about_one_photo(question: str) -> str:
    """A question about several pictures as one about a single picture: ``"What animals are in these three photos?"`` -> ``"What animal is
    in the photo?"``"""
    single = EACH_PHOTO.sub(lambda match: f"the {match['noun'] or match['single']}", question)
    return WHAT_THINGS.sub(r"\1 \2 is", single)
