"""Questions with choices: which of two photos shows something, in both orders; and one photo, with several wordings of the choices."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from triptych.data import Photo
from triptych.data.english.pairs import TRIES, PairQuestion, make_pairs
from triptych.errors import InputError
from triptych.evaluate.calibration import expected_calibration_error, sureness
from triptych.evaluate.hallucination import categories_of, mentioned_things, things_in
from triptych.evaluate.progress import progress
from triptych.evaluate.vqa import vqa_questions
from triptych.tasks import Answers, Matches
from triptych.tasks.asking import PictureQuestion
from triptych.text.articles import with_article
from triptych.text.questions import statement

ORDER = ("left", "right")
REWORDED = {
    "dog": "hound", "man": "guy", "woman": "lady", "boy": "lad", "child": "kid", "children": "kids", "bike": "bicycle", "street": "road",
    "couch": "sofa", "hat": "cap", "beach": "shore", "ocean": "sea", "water": "lake", "field": "meadow", "stick": "branch",
    "people": "persons",
}  # fmt: skip
WORDINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda word: word,
    "article": with_article,
    "capitals": str.capitalize,
    "plural": lambda word: word if word.endswith("s") else f"{word}s",
    "synonym": lambda word: REWORDED.get(word, word),
}


def choice_metrics(model: Answers | Matches, photos: Sequence[Photo], pairs: int, seed: int) -> dict[str, Any]:
    """Accuracy in percent, by matching and by the language model.

    Over random pairs of photos, each in both orders; ``boxes``: the same about things with boxes; ``wording``: over single photos with two
    choices, one of them reworded (``wording_metrics``).

    Raises:
        InputError: there are fewer than two photos.
    """
    if len(photos) < 2:
        raise InputError(f"pairs need at least two photos with captions or boxes, found {len(photos)}: give more")
    questions = make_pairs(photos, pairs, seed)
    record: dict[str, Any] = {"pairs": len(questions), "seed": seed, **pair_metrics(model, photos, questions)}
    if of_things := thing_pairs(photos, pairs, seed):
        record["boxes"] = {"pairs": len(of_things), **pair_metrics(model, photos, of_things)}
    if isinstance(model, Answers) and model.answers:
        record["wording"] = wording_metrics(model, photos, pairs, seed)
    return record


def pair_metrics(
    model: Answers | Matches, photos: Sequence[Photo], questions: Sequence[PairQuestion]
) -> dict[str, Any]:
    """``accuracy`` by matching and by the language model, as far as the model has them; each question in both orders."""
    both = [q for question in questions for q in (question, swapped(question))]
    matched, chosen = [], []
    for question in progress(both, "pairs"):
        images = [photos[question.left].image(), photos[question.right].image()]
        if isinstance(model, Matches) and model.matches:
            scores = [match.rerank for match in model.match(images, statement(question.question))]
            matched.append(ORDER[scores[1] > scores[0]])
            if isinstance(model, Answers) and model.answers:
                chosen.append(model.choose_answer(PictureQuestion([*images], question.question), ORDER))
        elif isinstance(model, Answers):
            chosen.append(model.compare(images[0], images[1], question.question))
    record: dict[str, Any] = {}
    if matched:
        record["matching"] = accuracy(matched, both)
    if chosen:
        right = [answer.text == question.answer for answer, question in zip(chosen, both, strict=True)]
        error = {"calibration error": expected_calibration_error([sureness(answer) for answer in chosen], right)}
        record["language model"] = accuracy([answer.text for answer in chosen], both) | error
    return record


def thing_pairs(photos: Sequence[Photo], count: int, seed: int) -> list[PairQuestion]:
    """At most ``count`` questions "Which photo shows a THING?" about photos with boxes: one photo has a box of the thing, and the other
    neither a box nor a caption that names it."""
    rng = random.Random(seed)
    boxed = {i: categories for i, photo in enumerate(photos) if (categories := categories_of(photo))}
    things = {i: things_in(photos[i]) for i in boxed}
    questions: list[PairQuestion] = []
    for _ in range(TRIES * count if len(boxed) > 1 else 0):
        if len(questions) == count:
            break
        photo, other = rng.sample(sorted(boxed), 2)
        category = rng.choice(sorted(boxed[photo]))
        if category not in boxed[other] and not mentioned_things(category) & things[other]:
            question = f"Which photo shows {with_article(category)}?"
            left_first = PairQuestion(question, photo, other, "left")
            questions.append(left_first if len(questions) % 2 else swapped(left_first))
    return questions


def swapped(question: PairQuestion) -> PairQuestion:
    """The same question with the photos in the other order."""
    answer = ORDER[question.answer == "left"]
    return PairQuestion(question.question, question.right, question.left, answer)  # type: ignore[arg-type]


def accuracy(answers: Sequence[str], questions: Sequence[PairQuestion]) -> dict[str, float]:
    """Percentages. ``position``: how often the first photo was chosen, which is right in half of the questions. Chance is 50%."""
    right = [answer == question.answer for answer, question in zip(answers, questions, strict=True)]

    def share(chosen: Sequence[bool]) -> float:
        return round(100 * sum(chosen) / max(1, len(chosen)), 1)

    return {
        "accuracy": share(right),
        **{
            f"when {side}": share([r for r, q in zip(right, questions, strict=True) if q.answer == side])
            for side in ORDER
        },
        "in both orders": share([a and b for a, b in zip(right[::2], right[1::2], strict=True)]),
        "position: left chosen": share([answer == "left" for answer in answers]),
    }


def wording_metrics(model: Answers, photos: Sequence[Photo], count: int, seed: int) -> dict[str, float]:
    """Accuracy in percent of questions about a thing in one photo with two choices, for each of ``WORDINGS`` of the right choice and then
    of the wrong one; chance is 50%. ``same answer``: how often all wordings have the same result."""
    pairs = [pair for pair in vqa_questions(photos, seed, per_photo=4) if pair[1].kind == "object"][:count]
    answers = sorted({question.answer for _, question in pairs})
    rng, right, same = random.Random(seed), defaultdict[str, list[bool]](list), []
    for photo, question in progress(pairs, "wordings") if len(answers) > 1 else ():
        other = rng.choice([answer for answer in answers if answer != question.answer])
        image, marks = photo.image(), list[bool]()
        for name, reword in WORDINGS.items():
            for choices in ([reword(question.answer), other], [question.answer, reword(other)]):
                if len(set(choices)) == 2:
                    mark = model.ask(image, question.question, choices).text == choices[0]
                    right[name].append(mark)
                    marks.append(mark)
        same.append(len(set(marks)) == 1)
    return {name: round(100 * sum(x) / max(1, len(x)), 1) for name, x in (right | {"same answer": same}).items()}
