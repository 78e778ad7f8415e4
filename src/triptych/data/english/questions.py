"""Questions with short answers, made from captions by rule (after COCO-QA: Ren, Kiros and Zemel, 2015).

Answers are one lower-case word, a noun without its article. What captions state is read by `triptych.data.english.caption_facts`.

- object: "What is the man riding?" bike, "Where are the dogs?" beach, "What is in the dog's mouth?" stick, "Who is jumping?" girl,
  "What animal is in the photo?" horse, "What sport is this?" tennis. Asked where all captions that state it agree, and two name
  the thing at least.
- number: "How many dogs are there?" two. Two captions count (for "one": four), and none counts otherwise.
- colour: "What color is the man's shirt?" red. No caption says another color; of an animal, two say this one.
- action: "What is the boy doing?" jumping. Two captions say so, and more than say anything else.
- yes/no: "Is there a horse in the photo?", "Is the dog running?", "Are there two boys?", "Is the ball red?". Yes where two captions
  say so (of a man, a girl..., three). No: a thing that captions seldom leave out (`SALIENT`) and of which none has the name, a
  synonym, something more general or special, nor any word that hints at it; a deed where two captions say one that rules it
  out; a number or a color where the captions agree on another.

"The man" is asked about only where the captions speak of one man. Where they call one and the same person differently ("man",
"skier", "guy"), the word is one that two captions use and none contradicts, else "person".

A photo gets as many no as yes, and of the no those that the set lacks most: over the set each question has about as many yes as
no, so that it does not tell its own answer. Other questions may ("What is the man riding?" is mostly a bike); how much they tell
is what `question_prior` gets right. Of each kind a photo gets no more than `MOST`, and answers too common are thinned (`KEPT`).
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from heapq import nsmallest
from itertools import chain, zip_longest
from typing import Literal

from triptych.data.english.caption_facts import (
    DEEDS,
    FORMS,
    PARTICIPLES,
    PLURALS,
    Caption,
    Deed,
    Noun,
    read_caption,
    with_article,
)
from triptych.data.english.question_words import (
    ALIKE,
    ANSWERED_BY,
    ASKED_ABOUT,
    COLOURS,
    NUMBERS,
    PURSUITS,
    RULED_OUT,
    SALIENT,
)
from triptych.data.photos import Photo
from triptych.data.records import list_of, record_of, text_of

Kind = Literal["object", "number", "colour", "action", "yes/no"]

KINDS: tuple[Kind, ...] = ("object", "number", "colour", "action", "yes/no")

MOST: dict[Kind, int] = {"object": 3, "number": 1, "colour": 2, "action": 1, "yes/no": 4}
"""Questions of each kind a photo."""

KEPT: dict[tuple[Kind, str], float] = {("object", "dog"): 1 / 8, ("number", "one"): 1 / 3}
"""The part that is kept of the answers that are too common."""


SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")

TRIES = 50
"""How often two photos are drawn for each pair that is asked for."""


@dataclass(frozen=True)
class Question:
    question: str
    answer: str
    kind: Kind


@dataclass(frozen=True)
class PairQuestion:
    """A question about two photos, which are given by their places in a sequence."""

    question: str
    left: int
    right: int
    answer: Literal["left", "right"]


def make_questions(photos: Sequence[Photo], seed: int = 0, per_photo: int | None = None) -> list[list[Question]]:
    """For each of ``photos`` its questions, at most ``per_photo``; none for a photo of which the captions agree on nothing.

    A photo's questions are the same whichever other photos there are, except those answered no, which balance the set.
    """
    scenes = [_Scene(photo.captions) for photo in photos]
    chosen = [
        _chosen(scene, per_photo, random.Random(f"{seed} {photo.id}"))
        for scene, photo in zip(scenes, photos, strict=True)
    ]
    denied = _denied(scenes, chosen, random.Random(seed))
    return [
        sorted(yes + no, key=lambda question: KINDS.index(question.kind))
        for yes, no in zip(chosen, denied, strict=True)
    ]


def make_pairs(photos: Sequence[Photo], count: int, seed: int = 0) -> list[PairQuestion]:
    """``count`` questions about random pairs of ``photos``, the right answer as often left as right (if odd, but for one).

    Fewer where the captions hardly tell these photos apart.
    """
    rng = random.Random(seed)
    told = {i: _told(photo.captions) for i, photo in enumerate(photos) if len(photo.captions) > 1}
    found: list[tuple[str, int, int]] = []
    for _ in range(TRIES * count if len(told) > 1 else 0):
        if len(found) == count:
            break
        shown, other = rng.sample(list(told), 2)
        if question := _telling(told[shown], told[other], rng):
            found.append((question, shown, other))
    more = rng.randrange(2)
    answers = [SIDES[(more + i) % 2] for i in range(len(found))]
    rng.shuffle(answers)
    return [
        PairQuestion(question, *((shown, other) if answer == "left" else (other, shown)), answer)
        for (question, shown, other), answer in zip(found, answers, strict=True)
    ]


def question_prior(train: Sequence[Question]) -> Callable[[str], str]:
    """How far one gets without looking: a function that answers a question as ``train`` most often answers it.

    Where ``train`` has never asked just this, it goes by the first three words, then by the first one, and else says "yes".
    """
    counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for question in train:
        for key in _keys(question.question):
            counts[key][question.answer] += 1
    usual = {key: answers.most_common(1)[0][0] for key, answers in counts.items()}
    return lambda question: next((usual[key] for key in _keys(question) if key in usual), "yes")


def _keys(question: str) -> list[tuple[int, str]]:
    """A question's whole, its first three words, its first word."""
    words = question.lower().removesuffix("?").split()
    return [(0, " ".join(words)), (3, " ".join(words[:3])), (1, " ".join(words[:1]))]


def stated_questions(photo: Photo) -> list[Question]:
    """The questions that a photo comes with (``extra["vqa"]``), each with its most frequent answer."""
    questions = []
    for item in list_of(photo.extra.get("vqa", []), f"{photo.name}: vqa"):
        record = record_of(item, f"{photo.name}: vqa")
        question, answer = (text_of(record.get(key), f"{photo.name}: vqa.{key}") for key in ("question", "answer"))
        questions.append(Question(question, answer.lower(), _kind(answer.lower())))
    return questions


def _kind(answer: str) -> Kind:
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in NUMBERS or answer.isdecimal():
        return "number"
    return "colour" if answer in COLOURS else "object"


# What the captions of a photo say together

SAME = {
    "man": {"man", "person"},
    "woman": {"woman", "person"},
    "boy": {"boy", "child", "baby", "person"},
    "girl": {"girl", "child", "baby", "person"},
    "baby": {"baby", "child", "person"},
    "child": {"boy", "girl", "child", "baby", "person"},
}
"""What somebody is called -> what other captions may call the same one."""

HUMANS = (*SAME, "person")
ANIMALS = tuple(dict.fromkeys(form.name for form in FORMS.values() if form.kind == "animal"))
SPORTS = [word for word, form in FORMS.items() if form.kind == "sport"]
PLAYED = re.compile("play(?:s|ed|ing)? ({0})\\b|\\b({0}) (?:player|game|match|team)".format("|".join(SPORTS)))

UNREAD = {"human": re.compile(r"[oh]|1(?![jcx])"), "animal": re.compile(r"[oa]|1(?![jcx])")}
"""Where a caption's shape has others, or one, or somebody who is not read."""

DOG_WEAR = ("collar", "harness", "muzzle")


@dataclass(frozen=True)
class _Actor:
    """One, or one group, that all captions speak of."""

    name: str
    plural: bool

    @property
    def shown(self) -> str:
        return PLURALS[self.name] if self.plural else self.name

    @property
    def text(self) -> str:
        return f"the {self.shown}"

    @property
    def be(self) -> str:
        return "are" if self.plural else "is"


class _Scene:
    """The captions of a photo, read together."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.texts = captions
        self.captions = [read_caption(caption) for caption in captions]
        self.words = frozenset(re.findall(r"[a-z]+(?:-[a-z]+)*", " ".join(captions).lower()))
        self.hinted = frozenset[str]().union(*map(_hinted, self.words))
        self.named = Counter(chain(*({noun.name: None for noun in caption.nouns} for caption in self.captions)))

    @cached_property
    def deeds(self) -> dict[_Actor, list[list[Deed]]]:
        """For each actor, for each caption, what it says that the actor does."""
        actors, deeds = _actors(self), [list(caption.deeds()) for caption in self.captions]
        return {
            actor: [[deed for deed in stated if actors.get(deed.subject.name) == actor] for stated in deeds]
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

    def verbs(self, actor: _Actor) -> Counter[str]:
        """How many captions state each verb."""
        return Counter(chain(*({deed.verb: None for deed in stated} for stated in self.deeds[actor])))

    def agreed(self, nouns: Iterable[Noun]) -> str | None:
        """What all of ``nouns`` are, if two captions name it."""
        shown = [noun.shown for noun in nouns]
        names = {FORMS[word].name for word in shown}
        return Counter(shown).most_common(1)[0][0] if len(names) == 1 and self.named[names.pop()] >= 2 else None


def _actors(scene: _Scene) -> dict[str, _Actor]:
    """Noun -> whom it means: a human or animal that no caption names twice, all of them as one or all as several."""
    actors = {}
    if (plural := _one(scene, HUMANS)) is not None:
        counts = Counter(noun.name for noun in chain(*scene.nouns(HUMANS)))
        name = next((name for name in SAME if counts[name] >= 2 and counts.keys() <= SAME[name]), "person")
        actors = dict.fromkeys(HUMANS, _Actor(name, plural))
    else:
        for man, boy in (("man", "boy"), ("woman", "girl")):
            for name, kin in ((man, boy), (boy, man)):
                if not scene.named[kin] and (plural := _one(scene, [name])) is not None:
                    actors[name] = _Actor(name, plural)
    for name in ANIMALS:
        if (plural := _one(scene, [name])) is not None:
            actors[name] = _Actor(name, plural)
    return actors


def _one(scene: _Scene, names: Sequence[str]) -> bool | None:
    """Whether ``names`` are several, where all captions mean the same; None where they do not, or fewer than two tell."""
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


def _numbers(scene: _Scene) -> Iterator[tuple[str, int]]:
    """What is counted, in the plural, and how many there are."""
    for names in (HUMANS, *((name,) for name in (*SAME, *ANIMALS) if scene.named[name])):
        naming = zip(scene.captions, scene.nouns(names), strict=True)
        counts = [_count(caption, nouns) for caption, nouns in naming if nouns]
        told = [count for count in counts if count]
        enough = 2 if told[:1] != [1] else 4 if None not in counts else 99
        if len(set(told)) == 1 and len(told) >= enough and told[0] < len(NUMBERS):
            yield PLURALS["person" if names is HUMANS else names[0]], told[0]


def _count(caption: Caption, nouns: Sequence[Noun]) -> int | None:
    """How many ``nouns`` of a caption are in all, if it says so."""
    counts = [noun.count for noun in nouns if noun.count]
    return None if len(counts) < len(nouns) or UNREAD[nouns[0].kind].search(caption.shape) else sum(counts)


def _colours(scene: _Scene) -> Iterator[tuple[str, str]]:
    """What has a colour, with its verb ("is the dog"), and the colour."""
    for actor, deeds in scene.deeds.items():
        if actor.name in ANIMALS and (colour := _colour(chain(*scene.nouns([actor.name])), 2)):
            yield f"{actor.be} {actor.text}", colour
        worn = defaultdict(list)
        for deed in chain(*deeds):
            for noun in deed.objects if deed.verb == "wearing" and not actor.plural else ():
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
    """The one colour that all of ``nouns`` have which tell, if that are at least ``needed``."""
    told = [noun.colours for noun in nouns if noun.colours]
    return told[0][0] if len(told) >= needed and len(set(told)) == 1 and len(told[0]) == 1 else None


# From facts to questions

TAILS = {
    phrase: tail
    for tail, phrases in (line.split(": ") for line in ASKED_ABOUT.strip().splitlines())
    for phrase in phrases.split(", ")
}
"""What a caption says -> what is asked: "running in" -> "running through"."""

ANSWERING = ("place", "ride", "thing", "animal", "instrument")
DOABLE = frozenset(PURSUITS.split())


def _chosen(scene: _Scene, per_photo: int | None, rng: random.Random) -> list[Question]:
    """The questions of a photo, except those answered no; for each yes there is room left for a no."""
    questions: list[Question] = []
    for kind, groups in _groups(scene).items():
        groups = [[text for text in group if rng.random() < KEPT.get((kind, text[1]), 1)] for group in groups]
        for group in groups:
            rng.shuffle(group)
        rng.shuffle(groups)
        varied = [text for texts in zip_longest(*groups) for text in texts if text]
        questions += [
            Question(text, answer, kind)
            for text, answer in varied[: MOST[kind] // 2 if kind == "yes/no" else MOST[kind]]
        ]
    if per_photo is None:
        return questions
    rng.shuffle(questions)
    kept: list[Question] = []
    for question in questions:
        size = 2 if question.kind == "yes/no" else 1
        if size <= per_photo:
            per_photo -= size
            kept.append(question)
    return kept


def _groups(scene: _Scene) -> dict[Kind, list[list[tuple[str, str]]]]:
    """All questions and answers that there could be, those of a sort together."""
    return {
        "object": [
            list(_about_deeds(scene)),
            list(_about_places(scene)),
            list(_about_sorts(scene)),
            list(_about_whom(scene)),
        ],
        "number": [[(f"How many {plural} are there?", NUMBERS[n]) for plural, n in scene.numbers]],
        "colour": [[(f"What color {what}?", colour) for what, colour in scene.colours]],
        "action": [list(_about_actions(scene))],
        "yes/no": [[(text, "yes") for text in texts] for texts in _true(scene)],
    }


def _about_deeds(scene: _Scene) -> Iterator[tuple[str, str]]:
    for actor, deeds in scene.deeds.items():
        objects: dict[str, list[Noun]] = defaultdict(list)
        for deed in chain(*deeds):
            if tail := TAILS.get(f"{deed.verb} {deed.preposition}".strip()):
                objects[tail] += [noun for noun in deed.objects if noun.kind in ANSWERED_BY.get(tail, ANSWERING)]
        for tail, nouns in objects.items():
            if answer := scene.agreed(nouns):
                yield f"What {actor.be} {actor.text} {tail}?", answer


def _about_places(scene: _Scene) -> Iterator[tuple[str, str]]:
    place = scene.agreed(chain(*(caption.places() for caption in scene.captions)))
    held = scene.agreed(chain(*(caption.in_mouth() for caption in scene.captions)))
    if len(scene.deeds) == 1 and place:
        (actor,) = scene.deeds
        yield f"Where {actor.be} {actor.text}?", place
    for actor in scene.deeds:
        if actor.name in ANIMALS and not actor.plural and held:
            yield f"What is in {actor.text}'s mouth?", held


def _about_sorts(scene: _Scene) -> Iterator[tuple[str, str]]:
    animals = [name for name in ANIMALS if scene.named[name]]
    if len(animals) == 1 and scene.named[animals[0]] >= 2:
        yield "What animal is in the photo?", animals[0]
    played = [match[1] or match[2] for caption in scene.texts for match in PLAYED.finditer(caption.lower())]
    if len(played) >= 2 and len(scene.words.intersection(SPORTS)) == 1:
        yield "What sport is this?", played[0]


def _about_whom(scene: _Scene) -> Iterator[tuple[str, str]]:
    alone = _one(scene, HUMANS) is not None
    for actor in scene.deeds:
        if alone and actor.name in SAME and (verb := _action(scene, actor)):
            yield f"Who is {verb}?", actor.shown


def _about_actions(scene: _Scene) -> Iterator[tuple[str, str]]:
    for actor in scene.deeds:
        if verb := _action(scene, actor):
            yield f"What {actor.be} {actor.text} doing?", verb


def _action(scene: _Scene, actor: _Actor) -> str | None:
    ranked = [(verb, n) for verb, n in scene.verbs(actor).most_common() if verb in DOABLE]
    (verb, n), (_, less) = (*ranked, ("", 0), ("", 0))[:2]
    return verb if n >= 2 and n > less else None


# Yes and no


def _hints() -> dict[str, tuple[frozenset[str], tuple[str, ...]]]:
    """Of each thing the words, and the beginnings of words, that hint at it."""
    hints = {}
    for line in SALIENT.replace("\\\n", "").strip().splitlines():
        name, words = line.split(": ")
        nouns = {name, *(word[1:] for word in words.split() if word[0] == "+")}
        whole = {word for word, form in FORMS.items() if form.name in nouns} | set(words.split())
        hints[name] = frozenset(whole), tuple(word[:-1] for word in words.split() if word[-1] == "-")
    return hints


HINTS = _hints()


@cache
def _hinted(word: str) -> frozenset[str]:
    return frozenset(name for name, (whole, starts) in HINTS.items() if word in whole or word.startswith(starts))


@cache
def _deeds_hinted(word: str) -> frozenset[str]:
    """The verbs of which ``word`` has a form in it, such as "jumper"."""
    return frozenset(verb for form, verb in DEEDS.items() if form in word)


def _there_is(name: str) -> str:
    return f"{'are' if FORMS[name].plural else 'is'} there {with_article(name)}"


THERE = {f"{_there_is(name).capitalize()} in the photo?": name for name in HINTS}


def _true(scene: _Scene) -> list[list[str]]:
    """What can be asked that is true, in groups of a sort."""
    return [
        [text for text, name in THERE.items() if scene.named[name] >= (3 if name in HUMANS else 2)],
        [
            f"{actor.be.title()} {actor.text} {verb}?"
            for actor in scene.deeds
            for verb, n in scene.verbs(actor).items()
            if verb in RULED_OUT and n >= 2
        ],
        [f"Are there {NUMBERS[n]} {plural}?" for plural, n in scene.numbers if n > 1],
        [f"{what.capitalize()} {colour}?" for what, colour in scene.colours],
    ]


def _false(scene: _Scene) -> set[str]:
    """What can be asked that is false."""
    texts = {text for text, name in THERE.items() if name not in scene.hinted}
    hinted = set(chain(*map(_deeds_hinted, scene.words)))
    for actor in scene.deeds:
        stated = {verb for verb, n in scene.verbs(actor).items() if n >= 2}
        ruled_out = {verb for verb, others in RULED_OUT.items() if stated.intersection(others.split())}
        texts |= {f"{actor.be.title()} {actor.text} {verb}?" for verb in ruled_out - hinted}
    for plural, count in scene.numbers:
        texts |= {f"Are there {number} {plural}?" for n, number in enumerate(NUMBERS) if 1 < n != count}
    named = {COLOURS[word] for word in scene.words & COLOURS.keys()}
    for what, colour in scene.colours:
        alike = {other for group in ALIKE if colour in group for other in group}
        texts |= {f"{what.capitalize()} {other}?" for other in set(COLOURS.values()) - alike - named}
    return texts


def _denied(scenes: Sequence[_Scene], chosen: Sequence[list[Question]], rng: random.Random) -> list[list[Question]]:
    """For each scene as many questions answered no as it has answered yes, drawn so that each question gets both alike.

    Each is drawn in proportion to how many it still lacks for each photo, from here on, that it could be asked of.
    """
    need = Counter(question.question for questions in chosen for question in questions if question.answer == "yes")
    options = [sorted(_false(scene) & need.keys()) for scene in scenes]
    room = Counter(chain(*options))
    denied = []
    for questions, texts in zip(chosen, options, strict=True):
        count = sum(question.answer == "yes" for question in questions)
        # the least of exponential variates: sampling by weight, without replacement
        rates = {text: min(max(need[text], 0.001) / room[text], 0.999) for text in texts}
        drawn = nsmallest(count, texts, key=lambda text: rng.expovariate(rates[text] / (1 - rates[text])))
        need.subtract(drawn)
        room.subtract(texts)
        denied.append([Question(text, "no", "yes/no") for text in drawn])
    return denied


# Pairs of photos


@dataclass(frozen=True)
class _Told:
    """What captions tell: the things that two name, those that any hints at, and plain captions with the things they name."""

    named: frozenset[str]
    hinted: frozenset[str]
    phrases: tuple[tuple[str, frozenset[str]], ...]


@lru_cache(maxsize=2**15)
def _told(captions: tuple[str, ...]) -> _Told:
    scene = _Scene(captions)
    named = frozenset(name for name, count in scene.named.items() if count >= 2 and name in HINTS)
    phrases = [
        (phrase, named.intersection(noun.name for noun in caption.nouns))
        for text, caption in zip(captions, scene.captions, strict=True)
        if (phrase := _phrase(text, caption))
    ]
    return _Told(named, scene.hinted, tuple(phrases))


def _telling(shown: _Told, other: _Told, rng: random.Random) -> str | None:
    """A question about a thing, or a caption, that tells ``shown`` from ``other``."""
    telling = sorted(shown.named - other.hinted)
    forms = [
        [f"In which photo {_there_is(name)}?" for name in telling],
        [f"Which photo shows {phrase}?" for phrase, names in shown.phrases if names.intersection(telling)],
    ]
    return rng.choice(rng.choice([form for form in forms if form])) if telling else None


def _phrase(text: str, caption: Caption) -> str | None:
    """A caption as a noun with what it does: "A dog runs in snow ." -> "a dog running in snow"; None if it is not that plain."""
    match, words = PLAIN.fullmatch(caption.shape), text.removesuffix(".").split()
    verb = str(caption.parts[match.start("verb")]) if match and match["verb"] else ""
    if not match or re.search(r'[";:?!()]', text) or (verb and verb not in words):
        return None
    if verb:
        at = words.index(verb)
        words[at] = PARTICIPLES[verb]
        if match["be"]:
            del words[at - 1]
    phrase = re.sub(r" (?=[,.']|-)", "", " ".join(words))
    return phrase[0].lower() + phrase[1:]


PLAIN = re.compile(r"n(?:pn)*(?:(?P<be>i?)(?P<verb>[gv])(?!.*&x)[^vi]*?|)\.?")
"""The shape of a caption that has one verb at most."""
