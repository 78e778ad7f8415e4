"""Questions with short answers, made from captions by rule (after COCO-QA: Ren, Kiros and Zemel, 2015).

Answers are one lower-case word, a noun without its article. What captions say is read by `caption_facts`, together by `scenes`.

- object: "What is the man riding?" bike, "Where are the dogs?" beach, "What is in the dog's mouth?" stick, "Who is jumping?" girl,
  "What animal is in the photo?" horse, "What sport is this?" tennis. Asked where all captions that say it agree, and two name
  the thing at least.
- number: "How many dogs are there?" two. Two captions count (for "one": four), and none counts otherwise.
- colour: "What color is the man's shirt?" red. No caption says another color; of an animal, two say this one.
- action: "What is the boy doing?" jumping. Two captions say so, and more than say anything else.
- yes/no: "Is there a horse in the photo?", "Is the dog running?", "Are there two boys?", "Is the ball red?". Yes where two captions
  say so (of a man, a girl..., three). No: a thing that captions seldom leave out (`HINTS`) and of which none has the name, a
  synonym, something more general or special, nor any word that hints at it; an action where two captions say one that rules it
  out; a number or a color where the captions agree on another.

"The man" is asked about only where the captions speak of one man. Where they call one and the same person differently ("man",
"skier", "guy"), the word is one that two captions use and none contradicts, else "person".

A photo gets as many no as yes, and of the no those that the set lacks most: over the set each question has about as many yes as
no, so that the question does not give its answer away. Other questions may ("What is the man riding?" is mostly a bike); how much they
give away is what `question_prior` gets right. Of each kind a photo gets no more than `MOST`, and answers too common are thinned (`KEPT`).
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

from triptych.data.english.caption_facts import Noun
from triptych.data.english.kinds import KEPT, KINDS, MOST, Kind, Question
from triptych.data.english.scenes import ANIMALS, HUMANS, PLAYED, SAME_SCENE, SPORTS, Actor, Scene, one_or_several
from triptych.data.english.word_lists import ACTIVITIES, ANSWERED_BY, ASKED_ABOUT, NUMBERS
from triptych.data.english.yes_no import deny, true_questions
from triptych.data.photos import Photo


def make_questions(photos: Sequence[Photo], seed: int = 0, per_photo: int | None = None) -> list[list[Question]]:
    """For each of ``photos`` its questions, at most ``per_photo``; none for a photo of which the captions agree on nothing.

    A photo's questions are the same whichever other photos there are, except those answered no, which balance the set.
    """
    scenes = [Scene(photo.captions) for photo in photos]
    chosen = [
        _chosen(scene, per_photo, random.Random(f"{seed} {photo.id}"))
        for scene, photo in zip(scenes, photos, strict=True)
    ]
    denied = deny(scenes, chosen, random.Random(seed))
    return [
        sorted(yes + no, key=lambda question: KINDS.index(question.kind))
        for yes, no in zip(chosen, denied, strict=True)
    ]


ANSWERING = ("place", "ride", "thing", "animal", "instrument")


def _chosen(scene: Scene, per_photo: int | None, rng: random.Random) -> list[Question]:
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


def _groups(scene: Scene) -> dict[Kind, list[list[tuple[str, str]]]]:
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
        "yes/no": [[(text, "yes") for text in texts] for texts in true_questions(scene)],
    }


def _about_deeds(scene: Scene) -> Iterator[tuple[str, str]]:
    for actor, actions in scene.actions.items():
        objects: dict[str, list[Noun]] = defaultdict(list)
        for action in chain(*actions):
            if asked_about := ASKED_ABOUT.get(f"{action.verb} {action.preposition}".strip()):
                objects[asked_about] += [
                    noun for noun in action.objects if noun.kind in ANSWERED_BY.get(asked_about, ANSWERING)
                ]
        for asked_about, nouns in objects.items():
            if answer := scene.agreed(nouns):
                yield f"What {actor.be} {actor.text} {asked_about}?", answer


def _about_places(scene: Scene) -> Iterator[tuple[str, str]]:
    place = scene.agreed(chain(*(caption.places() for caption in scene.captions)))
    carried = scene.agreed(chain(*(caption.in_mouth() for caption in scene.captions)))
    if len(scene.actions) == 1 and place:
        (actor,) = scene.actions
        yield f"Where {actor.be} {actor.text}?", place
    for actor in scene.actions:
        if actor.name in ANIMALS and not actor.plural and carried:
            yield f"What is in {actor.text}'s mouth?", carried


def _about_sorts(scene: Scene) -> Iterator[tuple[str, str]]:
    animals = [name for name in ANIMALS if scene.named[name]]
    if len(animals) == 1 and scene.named[animals[0]] >= 2:
        yield "What animal is in the photo?", animals[0]
    played = [match[1] or match[2] for caption in scene.texts for match in PLAYED.finditer(caption.lower())]
    if len(played) >= 2 and len(scene.words.intersection(SPORTS)) == 1:
        yield "What sport is this?", played[0]


def _about_whom(scene: Scene) -> Iterator[tuple[str, str]]:
    alone = one_or_several(scene, HUMANS) is not None
    for actor in scene.actions:
        if alone and actor.name in SAME_SCENE and (verb := _activity(scene, actor)):
            yield f"Who is {verb}?", actor.form


def _about_actions(scene: Scene) -> Iterator[tuple[str, str]]:
    for actor in scene.actions:
        if verb := _activity(scene, actor):
            yield f"What {actor.be} {actor.text} doing?", verb


def _activity(scene: Scene, actor: Actor) -> str | None:
    ranked = [(verb, n) for verb, n in scene.verbs(actor).most_common() if verb in ACTIVITIES]
    (verb, n), (_, less) = (*ranked, ("", 0), ("", 0))[:2]
    return verb if n >= 2 and n > less else None
