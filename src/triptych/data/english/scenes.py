"""The captions of a photo read together: who is in all of them, what they do, how many there are, which colours things have."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

from triptych.data.english.caption_facts import FORMS, PLURALS, Action, Caption, Noun, read_caption
from triptych.data.english.word_lists import HINTS, NUMBERS

SAME_SCENE = {
    "man": {"man", "person"},
    "woman": {"woman", "person"},
    "boy": {"boy", "child", "baby", "person"},
    "girl": {"girl", "child", "baby", "person"},
    "baby": {"baby", "child", "person"},
    "child": {"boy", "girl", "child", "baby", "person"},
}
"""What somebody is called -> what other captions may call the same one."""

HUMANS = (*SAME_SCENE, "person")
ANIMALS = tuple(dict.fromkeys(form.name for form in FORMS.values() if form.kind == "animal"))
SPORTS = [word for word, form in FORMS.items() if form.kind == "sport"]
PLAYED = re.compile("play(?:s|ed|ing)? ({0})\\b|\\b({0}) (?:player|game|match|team)".format("|".join(SPORTS)))

UNREAD = {"human": re.compile(r"[oh]|1(?![jcx])"), "animal": re.compile(r"[oa]|1(?![jcx])")}
"""Where a caption's shape has others, or one, or somebody who is not read."""

DOG_WEAR = ("collar", "harness", "muzzle")


def _hinting() -> dict[str, tuple[frozenset[str], tuple[str, ...]]]:
    """Of each thing the words, and the beginnings of words, that hint at it."""
    hinting = {}
    for name, hints in HINTS.items():
        nouns = {name, *(word[1:] for word in hints if word[0] == "+")}
        whole = {word for word, form in FORMS.items() if form.name in nouns} | set(hints)
        hinting[name] = frozenset(whole), tuple(word[:-1] for word in hints if word[-1] == "-")
    return hinting


HINTING = _hinting()


@cache
def hinted_by(word: str) -> frozenset[str]:
    """The things at which a word of a caption hints."""
    return frozenset(name for name, (whole, starts) in HINTING.items() if word in whole or word.startswith(starts))


@dataclass(frozen=True)
class Actor:
    """One, or one group, that all captions speak of."""

    name: str
    plural: bool

    @property
    def form(self) -> str:
        return PLURALS[self.name] if self.plural else self.name

    @property
    def text(self) -> str:
        return f"the {self.form}"

    @property
    def be(self) -> str:
        return "are" if self.plural else "is"


class Scene:
    """The captions of a photo, read together."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.texts = captions
        self.captions = [read_caption(caption) for caption in captions]
        self.words = frozenset(re.findall(r"[a-z]+(?:-[a-z]+)*", " ".join(captions).lower()))
        self.hinted = frozenset[str]().union(*map(hinted_by, self.words))
        self.named = Counter(chain(*({noun.name: None for noun in caption.nouns} for caption in self.captions)))

    @cached_property
    def actions(self) -> dict[Actor, list[list[Action]]]:
        """For each actor, for each caption, what it says that the actor does."""
        actors, actions = _actors(self), [list(caption.actions()) for caption in self.captions]
        return {
            actor: [[action for action in own if actors.get(action.subject.name) == actor] for own in actions]
            for actor in dict.fromkeys(actors.values())
        }

    @cached_property
    def numbers(self) -> list[tuple[str, int]]:
        return list(_numbers(self))

    @cached_property
    def colours(self) -> list[tuple[str, str]]:
        return list(_colours(self))

    def nouns(self, names: Collection[str]) -> list[list[Noun]]:
        """For each caption its nouns that mean one of ``names``."""
        return [[noun for noun in caption.nouns if noun.name in names] for caption in self.captions]

    def verbs(self, actor: Actor) -> Counter[str]:
        """How many captions say each verb of the actor."""
        return Counter(chain(*({action.verb: None for action in own} for own in self.actions[actor])))

    def agreed(self, nouns: Iterable[Noun]) -> str | None:
        """What all of ``nouns`` are, if two captions name it."""
        forms = [noun.form for noun in nouns]
        names = {FORMS[form].name for form in forms}
        return Counter(forms).most_common(1)[0][0] if len(names) == 1 and self.named[names.pop()] >= 2 else None


def _actors(scene: Scene) -> dict[str, Actor]:
    """Noun -> whom it means: a human or animal that no caption names twice, all of them as one or all as several."""
    actors = {}
    if (plural := one_or_several(scene, HUMANS)) is not None:
        counts = Counter(noun.name for noun in chain(*scene.nouns(HUMANS)))
        name = next((name for name in SAME_SCENE if counts[name] >= 2 and counts.keys() <= SAME_SCENE[name]), "person")
        actors = dict.fromkeys(HUMANS, Actor(name, plural))
    else:
        for man, boy in (("man", "boy"), ("woman", "girl")):
            for name, kin in ((man, boy), (boy, man)):
                if not scene.named[kin] and (plural := one_or_several(scene, [name])) is not None:
                    actors[name] = Actor(name, plural)
    for name in ANIMALS:
        if (plural := one_or_several(scene, [name])) is not None:
            actors[name] = Actor(name, plural)
    return actors


def one_or_several(scene: Scene, names: Sequence[str]) -> bool | None:
    """Whether the captions speak of several of what ``names`` call; None if they disagree, or fewer than two name it."""
    each = scene.nouns(names)
    nouns = list(chain(*each))
    unread = UNREAD[FORMS[names[0]].kind]
    if (
        len(nouns) < 2
        or max(map(len, each)) > 1
        or any(noun.other or noun.plural != nouns[0].plural for noun in nouns)
        or any(unread.search(caption.shape) for caption in scene.captions)
    ):
        return None
    return nouns[0].plural


def _numbers(scene: Scene) -> Iterator[tuple[str, int]]:
    """What is counted, in the plural, and how many there are."""
    for names in (HUMANS, *((name,) for name in (*SAME_SCENE, *ANIMALS) if scene.named[name])):
        naming = zip(scene.captions, scene.nouns(names), strict=True)
        counts = [_count(caption, nouns) for caption, nouns in naming if nouns]
        known = [count for count in counts if count]
        enough = 2 if known[:1] != [1] else 4 if None not in counts else 99
        if len(set(known)) == 1 and len(known) >= enough and known[0] < len(NUMBERS):
            yield PLURALS["person" if names is HUMANS else names[0]], known[0]


def _count(caption: Caption, nouns: Sequence[Noun]) -> int | None:
    """How many ``nouns`` of a caption are in all, if it says so."""
    counts = [noun.count for noun in nouns if noun.count]
    return None if len(counts) < len(nouns) or UNREAD[nouns[0].kind].search(caption.shape) else sum(counts)


def _colours(scene: Scene) -> Iterator[tuple[str, str]]:
    """What has a colour, with its verb ("is the dog"), and the colour."""
    for actor, actions in scene.actions.items():
        if actor.name in ANIMALS and (colour := _colour(chain(*scene.nouns([actor.name])), 2)):
            yield f"{actor.be} {actor.text}", colour
        worn = defaultdict(list)
        for action in chain(*actions):
            for noun in action.objects if action.verb == "wearing" and not actor.plural else ():
                if (noun.name in DOG_WEAR) == (actor.name in ANIMALS) and noun.plural == FORMS[noun.name].plural:
                    worn[noun.name].append(noun)
        for name, nouns in worn.items():
            if colour := _colour(nouns, 1):
                yield f"{'are' if FORMS[name].plural else 'is'} {actor.text}'s {name}", colour
    for name in scene.named:
        each = scene.nouns([name])
        single = max(map(len, each)) == 1 and not any(noun.plural or noun.other for noun in chain(*each))
        if FORMS[name].kind in ("ride", "thing") and single and (colour := _colour(chain(*each), 1)):
            yield f"is the {name}", colour


def _colour(nouns: Iterable[Noun], needed: int) -> str | None:
    """The one colour of all ``nouns`` that have any, if at least ``needed`` have one."""
    colours = [noun.colours for noun in nouns if noun.colours]
    return colours[0][0] if len(colours) >= needed and len(set(colours)) == 1 and len(colours[0]) == 1 else None
