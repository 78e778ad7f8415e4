"""The words by which captions are read and questions asked, from the text files in ``lists``.

``#`` begins a comment, ``[name]`` a section; a line that begins with a space continues the one before.
"""

import re
from functools import cache
from importlib.resources import files

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

ANSWERED_BY = {"riding": ("ride", "animal"), "wearing": ("clothes",), "playing": ("sport", "instrument")}
"""The kinds of noun that answer what is asked, where not all that are neither people nor clothes do."""


@cache
def _sections(name: str) -> dict[str, list[str]]:
    """The lines of a list by section; what stands before the first section is in the section ""."""
    text = (files("triptych.data.english") / "lists" / f"{name}.txt").read_text(encoding="utf-8")
    sections, section = {"": list[str]()}, ""
    for line in re.sub(r"\n +", " ", text).splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
            sections[section] = []
        elif line and not line.startswith("#"):
            sections[section].append(line)
    return sections


def _table(lines: list[str], separator: str = ":") -> dict[str, str]:
    pairs = (line.partition(separator) for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _words(name: str, section: str = "") -> list[str]:
    return " ".join(_sections(name)[section]).split()


NOUNS = {kind: _table(lines) for kind, lines in _sections("nouns").items() if kind}
"""Kind (human, animal, place...) -> name -> its forms: ``singular/plural``, either of which may be absent."""
VERBS = {name: verbs.split() for name, verbs in _table(_sections("verbs")[""]).items()}
"""What an answer says -> the verbs that mean it."""
ACTIVITIES = frozenset(_words("activities"))
"""Verbs that answer "What is the man doing?"."""
ROLES = _table(_sections("roles")[""])
"""Who -> what one of that name does."""
RULED_OUT = {verb: frozenset(others.split()) for verb, others in _table(_sections("ruled_out")[""]).items()}
"""Asked -> what one does who certainly does not do it."""
ASKED_ABOUT = {
    phrase: question
    for question, phrases in _table(_sections("asked_about")[""]).items()
    for phrase in phrases.split(", ")
}
"""What a caption says -> what is asked: "running in" -> "running through"."""
HINTS = {name: hints.split() for name, hints in _table(_sections("hints")[""]).items()}
"""Things that captions seldom leave out -> what hints at them: words, beginnings of words (-), forms of other nouns (+)."""
COLOURS = {
    word: colour for colour, others in _table(_sections("colours")[""]).items() for word in (colour, *others.split())
}
"""Word -> its spelling in answers."""
ADJECTIVES, DETERMINERS, PREPOSITIONS, ADVERBS = (
    _words("other_words", section) for section in ("adjectives", "determiners", "prepositions", "adverbs")
)
PHRASES = _table(_sections("phrases")[""], "=>")
"""Pattern -> the word that it becomes before a caption is read."""
