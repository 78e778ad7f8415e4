"""Questions answered yes or no: what the captions of a photo make true, and what they rule out."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from heapq import nsmallest
from itertools import chain

from triptych.data.english.caption_facts import FORMS, VERB_OF, mention_of
from triptych.data.english.kinds import Question
from triptych.data.english.scenes import HUMANS, Scene
from triptych.data.english.word_lists import COLOURS, HINTS, NUMBERS, RULED_OUT


@cache
def _verbs_hinted_by(word: str) -> frozenset[str]:
    """The verbs of which ``word`` has a form in it, such as "jumper"."""
    return frozenset(verb for form, verb in VERB_OF.items() if form in word)


def there_is(name: str) -> str:
    return f"{'are' if FORMS[name].plural else 'is'} there {mention_of(name)}"


THERE_IS = {f"{there_is(name).capitalize()} in the photo?": name for name in HINTS}


def true_questions(scene: Scene) -> list[list[str]]:
    """What can be asked that is true, in groups of a sort."""
    return [
        [text for text, name in THERE_IS.items() if scene.named[name] >= (3 if name in HUMANS else 2)],
        [
            f"{actor.be.title()} {actor.text} {verb}?"
            for actor in scene.actions
            for verb, n in scene.verbs(actor).items()
            if verb in RULED_OUT and n >= 2
        ],
        [f"Are there {NUMBERS[n]} {plural}?" for plural, n in scene.numbers if n > 1],
        [f"{what.capitalize()} {colour}?" for what, colour in scene.colours],
    ]


def _false(scene: Scene) -> set[str]:
    """What can be asked that is false."""
    texts = {text for text, name in THERE_IS.items() if name not in scene.hinted}
    hinted = set(chain(*map(_verbs_hinted_by, scene.words)))
    for actor in scene.actions:
        said = {verb for verb, n in scene.verbs(actor).items() if n >= 2}
        ruled_out = {verb for verb, others in RULED_OUT.items() if said & others}
        texts |= {f"{actor.be.title()} {actor.text} {verb}?" for verb in ruled_out - hinted}
    for plural, count in scene.numbers:
        texts |= {f"Are there {number} {plural}?" for n, number in enumerate(NUMBERS) if 1 < n != count}
    named = {COLOURS[word] for word in scene.words & COLOURS.keys()}
    for what, _ in scene.colours:
        texts |= {f"{what.capitalize()} {other}?" for other in set(COLOURS.values()) - named}
    return texts


def deny(scenes: Sequence[Scene], chosen: Sequence[list[Question]], rng: random.Random) -> list[list[Question]]:
    """For each scene as many questions answered no as it has answered yes, drawn so that each question gets both equally often.

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
