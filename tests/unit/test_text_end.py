"""How a text ended and how many tokens it took, whole and streamed."""

import pytest
from PIL import Image
from tiny_blip2 import blip2_tasks
from tiny_flamingo import flamingo_tasks

from triptych.tasks import TextEnd
from triptych.tasks.words import Pieces

MODELS = [blip2_tasks, flamingo_tasks]
PHOTO = Image.new("RGB", (20, 10), (200, 30, 60))


def end_of(pieces: Pieces) -> TextEnd:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("tasks", MODELS)
@pytest.mark.parametrize(("ends", "finished", "new_tokens"), [(False, False, 3), (True, True, 0)])
def test_at_the_limit_or_by_itself(tasks, ends: bool, finished: bool, new_tokens: int) -> None:
    model = tasks()
    every = frozenset(range(len(model.spec.tokenizer)))
    settings = {"max_new_tokens": 3, "eos": every if ends else frozenset()}
    answer = model.ask(PHOTO, "what?", **settings)
    assert (answer.finished, answer.end.new_tokens) == (finished, new_tokens)
    assert end_of(model.stream(PHOTO, "what?", **settings)) == answer.end
    one, two = (model.caption(PHOTO, beams=beams, n_best=beams, **settings) for beams in (1, 2))
    assert two.end.new_tokens == 2 * new_tokens and two.finished_alternatives == (finished,)
    assert end_of(model.stream(PHOTO, **settings)) == one.end
    longer = model.ask(PHOTO, "what is it?", **settings).end
    assert longer.prompt_tokens == answer.end.prompt_tokens + len(" is it")  # every byte is a token


def test_a_picture_counts_as_what_is_read_in_its_place() -> None:
    counts = []
    for tasks in MODELS:
        model = tasks()
        one, two = (model.ask([PHOTO] * n, "<image>" * n + "what?").end.prompt_tokens for n in (1, 2))
        counts.append(two - one)
    assert counts == [3, 1]  # BLIP-2's queries, Flamingo's token


def test_choices_and_answers_in_one_piece_are_finished() -> None:
    model = flamingo_tasks()
    for question, choices in (("what?", ["a dog", "a cat"]), ("Is there a dog?", None)):
        assert model.ask(PHOTO, question, choices).finished
    assert end_of(model.stream(PHOTO, "Is there a dog?")).finished
    chat = model.chat()
    chat.add(PHOTO)
    assert end_of(chat.stream("what?", max_new_tokens=2, eos=frozenset()))[::2] == (False, 2)
