"""Sequences of pictures and text: what is learnt of them, and that names are bound by the sequence alone."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_blip2 import byte_tokenizer

from triptych.data import Photo
from triptych.data.english.caption_facts import read_caption
from triptych.data.interleaved import (
    HELD_OUT,
    PicturePart,
    Sequences,
    TextPart,
    binding,
    classes,
    episode,
    in_common,
    made_up_name,
    noun_counts,
    only,
)
from triptych.errors import InputError
from triptych.text.prompt import END, IGNORED, captions_by_picture
from triptych.text.questions import statement
from triptych.train.flamingo.batches import SequenceEncoder, TaskMixture, padded


def photo(i: int, *captions: str) -> Photo:
    return Photo(str(i), "train", captions, {}, Path("none"))


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    photos = []
    for i in range(8):
        photos.append(photo(2 * i, *["a brown dog runs on the grass"] * 3, "a dog is running"))
        photos.append(photo(2 * i + 1, *["two girls swim in the water"] * 3, "girls are swimming"))
    photos += [photo(100 + i, *["a man rides a bike in the snow"] * 4) for i in range(8)]
    drawings = [photo(200 + i, ("red apple", "horse", "cat face", "snowy beach")[i % 4]) for i in range(8)]
    return Sequences(photos, drawings)


def texts(parts: list[PicturePart | TextPart]) -> list[TextPart]:
    return [part for part in parts if isinstance(part, TextPart)]


@pytest.mark.parametrize("task", ["caption", "name", "question", "dialogue", "pair", "compare", "binding"])
def test_every_task_shows_pictures_and_teaches_answers(sequences: Sequences, task: str) -> None:
    made = [parts for seed in range(20) if (parts := sequences.makers[task](random.Random(seed), seed))]
    assert len(made) > 10
    for parts in made:
        assert any(isinstance(part, PicturePart) for part in parts)
        learnt = [said for said in texts(parts) if said.is_label]
        assert learnt and all(said.ends_example for said in learnt)  # answers, not questions
        assert all(said.text.startswith(" ") for said in learnt)
        assert isinstance(parts[-1], TextPart) and parts[-1].ends_example
        assert {p.picture for p in parts if isinstance(p, PicturePart)} <= set(range(len(sequences.photos) + 8))


def test_the_same_seed_makes_the_same_sequence(sequences: Sequences) -> None:
    for make in sequences.makers.values():
        assert make(random.Random("1"), 3) == make(random.Random("1"), 3)


def test_captions_are_of_their_pictures(sequences: Sequences) -> None:
    parts = sequences.captions(random.Random(0), 5)
    pairs = zip(
        [p.picture for p in parts if isinstance(p, PicturePart)],
        [t.text for t in texts(parts) if t.is_label],
        strict=True,
    )
    for picture, text in pairs:
        assert text.strip() in sequences.photos[picture].captions


def test_held_out_nouns_are_never_classes(sequences: Sequences) -> None:
    held_out = {noun for nouns in HELD_OUT.values() for noun in nouns}
    assert {"bike", "snow"} <= held_out
    assert {"bike", "snow"} <= set(classes(sequences.photos))
    assert not held_out & set(sequences.classes) and "dog" in sequences.classes
    assert not held_out & set(sequences.names)
    assert set(sequences.drawn) == {"red apple", "cat face"}
    assert not set(HELD_OUT["test"]) & set(HELD_OUT["val"])


def test_classes_are_what_captions_agree_on() -> None:
    photos = [photo(0, "a dog", "a dog and a cat", "the dog", "a man"), photo(1, "a cat", "a cat", "a dog", "cats")]
    assert classes(photos) == {"dog": [0], "cat": [1]}
    assert set(classes(photos, agree=1)["dog"]) == {0, 1}
    mentions = [set(noun_counts(p)) for p in photos]
    assert only([0], [1], mentions, ("dog", "cat")) == ([], [])
    assert only([0], [1], [{"dog"}, {"cat"}], ("dog", "cat")) == ([0], [1])


def test_a_name_is_learnt_once_all_are_known() -> None:
    parts = binding(random.Random(0), [[1, 2, 3], [7, 8, 9]], ["dax", "wug"], "This is a", [0, 0, 1, 0, 1])
    shown = [p.picture for p in parts if isinstance(p, PicturePart)]
    names = [t for t in texts(parts) if t.ends_example]
    assert [t.text for t in names] == [" dax", " dax", " wug", " dax", " wug"]
    assert [t.is_label for t in names] == [False, False, False, True, True]
    assert [picture > 5 for picture in shown] == [False, False, True, False, True]
    assert len(set(shown)) == 5  # each picture once


def test_an_episode_asks_about_a_new_picture() -> None:
    answers: Counter[int] = Counter()
    for seed in range(40):
        found = episode(random.Random(seed), [[1, 2, 3, 4], [5, 6, 7, 8]], ["dax", "wug"], 3)
        shown = [p.picture for p in found.prompt if isinstance(p, PicturePart)]
        named = [t.text.strip() for t in texts(found.prompt) if t.ends_example]
        assert Counter(named) == {"dax": 3, "wug": 3} and len(set(shown)) == 7
        assert (shown[-1] > 4) == (found.answer == 1)
        assert not texts(found.prompt)[-1].ends_example  # what follows is asked
        answers[found.answer] += 1
    assert min(answers.values()) > 10


def test_made_up_names_of_tests_are_not_those_of_training() -> None:
    rng = random.Random(0)
    train = {made_up_name(rng) for _ in range(500)}
    test = {made_up_name(rng, held_out=True) for _ in range(500)}
    assert not train & test and min(len(train), len(test)) > 300


@pytest.fixture(scope="module")
def rows() -> SequenceEncoder:
    tokenizer = byte_tokenizer()
    return SequenceEncoder(tokenizer, tokenizer.encode("\x01")[0], max_tokens=40)


def test_rows_learn_answers_and_are_cut_behind_whole_examples(rows: SequenceEncoder) -> None:
    ids = rows.tokenizer.encode
    parts = [
        PicturePart(4),
        TextPart(" is"),
        TextPart(" dog", True, True),
        PicturePart(7),
        TextPart(" cat", False, True),
    ]
    row = rows(parts)
    assert row.pictures == [4, 7]
    assert row.input_ids == [rows.image_id, *ids(" is dog"), rows.end, rows.image_id, *ids(" cat"), rows.end]
    learnt = [i for i, label in enumerate(row.labels) if label != IGNORED]
    assert [row.labels[i] for i in learnt] == [*ids(" dog"), rows.end]
    assert all(row.labels[i] == row.input_ids[i + 1] for i in learnt)
    long = rows([*parts, PicturePart(9), TextPart(" a long text that does not fit", True, True)])
    assert long == row
    assert rows([PicturePart(1), TextPart("x" * 50, True, True)]) == ([], [IGNORED], [])


def test_scored_rows_learn_the_answer_alone(rows: SequenceEncoder) -> None:
    row = rows.scored([PicturePart(4), TextPart(" dog", True, True), PicturePart(5), TextPart(" a")], "wug")
    told = [label for label in row.labels if label != IGNORED]
    assert told == [*rows.tokenizer.encode(" wug"), rows.end] and row.pictures == [4, 5]


def test_padding_stands_behind_and_counts_nowhere(rows: SequenceEncoder) -> None:
    made = [
        rows([PicturePart(1), TextPart(" dog", True, True)]),
        rows([TextPart(" a"), TextPart(" longer text", True, True)]),
    ]
    ids, labels, counts = padded(made, rows.end)
    assert ids.shape == labels.shape and counts.tolist() == [1, 0]
    short = len(made[0].input_ids)
    assert (ids[0, short:] == rows.end).all() and (labels[0, short - 1 :] == IGNORED).all()


def test_a_mixture_draws_tasks_by_their_shares(sequences: Sequences) -> None:
    tokenizer = byte_tokenizer()
    rows = SequenceEncoder(tokenizer, tokenizer.encode("\x01")[0], max_tokens=400)
    mixture = TaskMixture(sequences, rows, {"caption": 3.0, "binding": 1.0, "pair": 0.0})
    made, tasks = mixture(range(16), seed=1)
    assert all(any(label != IGNORED for label in row.labels) for row in made)
    assert mixture(range(16), seed=1) == (made, tasks) != mixture(range(16), seed=2)
    drawn = Counter(task for seed in range(20) for task in mixture(range(16), seed)[1])
    assert mixture.tasks == ["caption", "binding"] and 2 < drawn[0] / drawn[1] < 4.5


def test_tasks_that_nothing_can_be_made_of_are_refused(rows: SequenceEncoder) -> None:
    plain = Sequences([photo(i, "what a day") for i in range(3)], [])
    assert plain.bound(random.Random(0), 0) == []
    with pytest.raises(InputError, match="none of the tasks binding, question"):
        TaskMixture(plain, rows, {"binding": 1.0, "question": 1.0})([0], seed=0)
    assert TaskMixture(plain, rows, {"binding": 1.0, "caption": 1.0})([0, 1], seed=0)[1] == [1, 1]


def test_answers_about_pairs_do_not_tell_one_another(sequences: Sequences) -> None:
    """Among the sequences of two answers, alike ones are as frequent as different ones."""
    answers = [
        [said.text for said in texts(sequences.pair(random.Random(seed), seed % 20)) if said.ends_example]
        for seed in range(200)
    ]
    alike = [first == second for first, second, *_ in (found for found in answers if len(found) > 1)]
    assert 0.35 < sum(alike) / len(alike) < 0.65


def test_pictures_are_compared_by_what_is_said_of_them(sequences: Sequences) -> None:
    """Each is captioned as ``prompt.captions_by_picture`` asks, then the question is answered from the captions."""
    kinds: Counter[str] = Counter()
    for seed in range(240):
        parts = sequences.compare(random.Random(seed), seed % 20)
        pictures = [p.picture for p in parts if isinstance(p, PicturePart)]
        *captions, answer = (said.text.strip() for said in texts(parts) if said.is_label)
        assert len(captions) == len(pictures) in (2, 3)
        assert all(text in sequences.photos[i].captions for i, text in zip(pictures, captions, strict=True))
        written = "".join("<image>" if isinstance(p, PicturePart) else p.text + END * p.ends_example for p in parts)
        assert written.startswith(captions_by_picture(captions) + "\nQuestion: ")
        if answer in ("left", "right"):
            kinds["which"] += 1
            question = texts(parts)[-2].text.removeprefix("\nQuestion: ").removesuffix("\nAnswer:")
            asked = {noun.name for noun in read_caption(statement(question)).nouns}
            shown = [asked <= sequences.mentions[picture] for picture in pictures]
            assert asked and shown == [answer == "left", answer == "right"]
        elif " shows " in answer:
            kinds["differ"] += 1
            assert all(text in answer for text in captions)
        else:
            kinds["common"] += 1
            assert answer == in_common(captions)
    assert min(kinds.values()) > 10 and len(kinds) == 3


@pytest.mark.parametrize(
    ("captions", "answer"),
    [
        (["a dog runs on the grass", "two dogs on grass"], "both show a dog and grass"),
        (["a dog runs", "a dog", "the brown dog"], "all show a dog"),
        (["a man runs", "two girls swim"], "both show people"),
        (["a dog", "a cat"], "both show animals"),
        (["a dog", "a man"], "nothing much"),
        (["a beach", "a beach"], "nothing much"),  # a class that few-shot tests ask about
    ],
)
def test_what_captions_have_in_common(captions: list[str], answer: str) -> None:
    assert in_common(captions) == answer


def test_names_are_bound_to_nothing_to_others_or_exchanged(sequences: Sequences) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(300):
        parts = sequences.bound(random.Random(seed), 0)
        pairs = zip(
            [p.picture for p in parts if isinstance(p, PicturePart)],
            [t for t in texts(parts) if t.ends_example],
            strict=True,
        )
        meant: dict[str, set[str]] = {}
        for picture, name in pairs:
            own = {noun for noun, places in (sequences.classes | sequences.drawn).items() if picture in places}
            meant.setdefault(name.text.strip(), set()).update(own)
        if not set(meant) & set(sequences.names):
            kinds["made up"] += 1
        elif all(any(name in own for other, own in meant.items() if other != name) for name in meant):
            kinds["exchanged"] += 1
            assert all(name not in own for name, own in meant.items())
        else:
            kinds["others"] += 1
    assert kinds["made up"] > kinds["exchanged"] > kinds["others"] > 15


def test_captions_that_a_model_wrote_and_other_photos_by_their_share() -> None:
    photos = [replace(photo(i, f"people {i}"), written=(f"model {i}",)) for i in range(4)]
    made = Sequences(photos, [], draw=lambda rng: rng.choice([2, 3])).captions(random.Random(0), 0)
    texts = " ".join(part.text for part in made if isinstance(part, TextPart))
    assert "people" in texts and "model" in texts
    assert {part.picture for part in made if isinstance(part, PicturePart)} == {0, 2, 3}
