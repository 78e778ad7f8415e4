"""What a caption says, read with the words of `word_lists`: its nouns, and who does what to which.

Each word gets a tag of one letter, and a pattern over the tags finds the noun phrases; each of them is then one ``n``. So
"a boy in a red shirt is riding a bike" has the shape ``npnign``, in which further patterns find actions and places. What is not
understood is passed over: a noun before an unknown word is not read, for that word may be the head ("a dog house").
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from triptych.data.english.word_lists import (
    ADJECTIVES,
    ADVERBS,
    COLOURS,
    DETERMINERS,
    NOUNS,
    NUMBERS,
    PHRASES,
    PREPOSITIONS,
    ROLES,
    VERBS,
)
from triptych.text.articles import with_article

ACTORS = ("human", "animal")
PLACED = ("in", "on", "through", "across", "along")


@dataclass(frozen=True)
class Noun:
    """A noun phrase: "two small brown dogs" is a dog, an animal, plural, 2, ("brown",)."""

    name: str
    kind: str
    plural: bool
    count: int | None = None  # None where a plural does not say
    colours: tuple[str, ...] = ()
    other: bool = False
    activity: str = ""  # a surfer's is surfing

    @property
    def form(self) -> str:
        return PLURALS[self.name] if self.plural else self.name


@dataclass(frozen=True)
class Action:
    """Who does what: "the man sits on a bench" is man, "sitting", "on", (bench,)."""

    subject: Noun
    verb: str
    preposition: str = ""
    objects: tuple[Noun, ...] = ()


@dataclass(frozen=True)
class Caption:
    """A caption as read: ``shape`` has a letter for each of ``parts``."""

    shape: str
    parts: list[Noun | str]
    nouns: list[Noun]

    def noun(self, at: int) -> Noun | None:
        part = self.parts[at] if at >= 0 else None
        return part if isinstance(part, Noun) else None

    def actions(self) -> Iterator[Action]:
        for noun in self.nouns:
            if noun.activity:
                yield Action(noun, noun.activity)
        for match in ACTION.finditer(self.shape):
            subject, verb = self._subject(match.start()), VERB_OF[str(self.parts[match.start()])]
            preposition = str(self.parts[match.start("by")]) if match["by"] else ""
            if subject:
                yield Action(subject, verb, preposition, self._chain(*match.span("what")))
        for match in CLAD.finditer(self.shape):
            subject, objects = self.noun(match.start()), self._chain(*match.span("what"))
            if subject and subject.kind in ACTORS and self.parts[match.start() + 1] in ("in", "with"):
                yield Action(
                    subject, "wearing", "", tuple(noun for noun in objects if noun.kind in ("clothes", "hair"))
                )

    def places(self) -> Iterator[Noun]:
        """Where what it tells of takes place."""
        for match in re.finditer("pn(?!s)", self.shape):
            noun, preposition = self.noun(match.end() - 1), self.parts[match.start()]
            at = preposition == "at" and self.noun(match.start() - 1)  # not "looking at the street"
            if noun and noun.kind == "place" and (at or preposition in PLACED):
                yield noun

    def in_mouth(self) -> Iterator[Noun]:
        """What somebody has in the mouth."""
        for match in re.finditer("nm", self.shape):
            noun = self.noun(match.start())
            if noun and noun.kind == "thing":
                yield noun

    def _chain(self, start: int, end: int) -> tuple[Noun, ...]:
        return tuple(part for part in self.parts[max(start, 0) : max(end, 0)] if isinstance(part, Noun))

    def _subject(self, at: int) -> Noun | None:
        """Who does the verb ``at``: the noun before it, past what that wears and where it is."""
        at = self._past(at - 1)
        while at >= 2 and (noun := self.noun(at)) and noun.kind not in ACTORS and self.shape[at - 1] in "pg&":
            joined = self.shape[at - 1] == "&"
            at = self._past(at - 2)
            if joined and ((noun := self.noun(at)) is None or noun.kind in ACTORS):
                return None
        noun = self.noun(at)
        shared = at > 0 and self.shape[at - 1] == "&"
        return noun if noun and noun.kind in ACTORS and not shared else None

    def _past(self, at: int) -> int:
        while at >= 0 and self.shape[at] in "ri":
            at -= 1
        return at


def read_caption(text: str) -> Caption:
    words = _words(text)
    tags = _tags(words)
    shape, parts, nouns, end = "", list[Noun | str](), list[Noun](), 0
    for match in NOUN_PHRASE.finditer(tags):
        shape += tags[end : match.start()].lower() + ("l" if match["not"] else "n")
        parts += words[end : match.start()]
        if match["not"]:
            parts.append(match[0])
        else:
            nouns.append(_noun(words, match))
            parts.append(nouns[-1])
        end = match.end()
    return Caption(shape + tags[end:].lower(), [*parts, *words[end:]], nouns)


def mention_of(name: str) -> str:
    """A noun of `NOUNS` as one says that it is there: "a dog", "an umbrella", "snow", "shorts"."""
    if FORMS[name].plural or name not in PLURALS:
        return name
    return with_article(name)


def _gerund(verb: str) -> str:
    """run -> running, ride -> riding, lie -> lying."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if re.search(r"[^e]e$", verb):
        return verb[:-1] + "ing"
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnpt]", verb):
        return verb + verb[-1] + "ing"
    return verb + "ing"


def _words(text: str) -> list[str]:
    text = PHRASE.sub(lambda match: PHRASE_WORDS[match.lastindex or 0], text.lower().replace("'s", " 's"))
    return re.findall(r"[a-z]+(?:[-_][a-z]+)*|'s|[,&.]", text)


def _tags(words: list[str]) -> str:
    tags = ""
    for i, word in enumerate(words):
        before, after = tags[-1:] or ".", words[i + 1] if i + 1 < len(words) else "."
        tag = TAGS.get(word) or ("R" if re.search(r"(ing|ed|ly)$", word) else "X")
        if word in VERB_OF and i and words[i - 1] == "to":
            tag = "R"
        elif word in FORMS and word in VERB_OF and (before not in "DCJ1OPSXT" or _is_clothes(words[i - 1])):
            tag = "V"
        elif tag == "V" and before in "DCJ1OSP":
            tag = "X"
        elif tag == "X" and before in "HA" and (FORMS[words[i - 1]].plural or re.search(r"[^s]s$", word)):
            tag = "R"  # a verb not known: "the girl approaches", "men gather"
        elif (tag == "G" or word.endswith("ed")) and before in "D1OCJ" and TAGS.get(after, ".") in "HATCJ":
            tag = "J"
        tags += tag
    return tags


def _is_clothes(word: str) -> bool:
    return word in FORMS and FORMS[word].kind == "clothes"


def _noun(words: list[str], match: re.Match[str]) -> Noun:
    form, before = FORMS[words[match.end() - 1]], words[match.start() : match.end() - 1]
    numbers = [NUMBERS.index(word) for word in before if word in NUMBERS]
    count = numbers[0] if numbers else None if form.plural else 1
    colours = tuple(COLOURS[word] for word in before if word in COLOURS)
    return replace(form, count=count, colours=colours, other="O" in match[0])


def _forms() -> Iterator[tuple[str, Noun]]:
    """Each noun's forms, with what they name."""
    for kind, names in NOUNS.items():
        for name, forms in names.items():
            for form in forms.split():
                singular, plural = form.split("/") if "/" in form else (form, _plural(form))
                activity = ROLES.get(singular, "")
                if singular:
                    yield singular, Noun(name, kind, False, activity=activity)
                if plural:
                    yield plural, Noun(name, kind, True, activity=activity)


def _plural(word: str) -> str:
    ending = "es" if re.search(r"(s|x|ch|sh|o)$", word) else "s"
    return re.sub(r"(?<=[^aeiou])y$", "ie", word) + ending


def _verbs() -> Iterator[tuple[str, str, str]]:
    """Each verb's forms: word, its participle, the verb of `VERBS` that it is an instance of."""
    for name, bases in VERBS.items():
        for base in bases:
            participle = _gerund(base)
            yield base, participle, name
            yield "has" if base == "have" else _plural(base), participle, name
            yield participle, participle, name


FORMS = dict(_forms())
PLURALS = {form.name: word for word, form in reversed(FORMS.items()) if form.plural}
PARTICIPLES = {word: participle for word, participle, _ in _verbs()}
VERB_OF = {word: name for word, _, name in _verbs()}

TAGS = {
    **{word: "G" if word == participle else "V" for word, participle in PARTICIPLES.items()},
    **{word: {"human": "H", "animal": "A"}.get(form.kind, "T") for word, form in FORMS.items()},
    **dict.fromkeys(DETERMINERS, "D"),
    **dict.fromkeys(ADJECTIVES, "J"),
    **dict.fromkeys(COLOURS, "C"),
    **dict.fromkeys(NUMBERS, "1"),
    **dict.fromkeys(PREPOSITIONS, "P"),
    **dict.fromkeys(ADVERBS, "R"),
    **dict.fromkeys(("another", "other", "others"), "O"),
    **dict.fromkeys(("like", "without", "no", "for", "not"), "L"),  # what follows need not be there
    **dict.fromkeys(("is", "are"), "I"),
    **dict.fromkeys(("who", "that", "which"), "W"),
    **dict.fromkeys(("and", "&"), "&"),
    "in_mouth": "M",
    "'s": "S",
    ",": ",",
    ".": ".",
}

PHRASE = re.compile("|".join(rf"\b({pattern})\b" for pattern in PHRASES))
PHRASE_WORDS = ["", *PHRASES.values()]

NOUN_PHRASE = re.compile(r"(?P<not>L?)[D1OS]*(?:[CJ](?:[,&]{1,2}(?=[CJ]))?)*[XT]*[THA](?![THAX])")
ACTION = re.compile(r"[gv]r*(?P<by>p?)r*(?P<what>n(?:[,&]{1,2}n(?![rigv]))*(?![sn]))?")
CLAD = re.compile(r"n(?=p(?P<what>n(?:[,&]{1,2}n(?![rigv]))*(?![sn])))")
