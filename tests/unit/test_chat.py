"""A dialogue over pictures: what is remembered, taken back, kept in a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_flamingo import flamingo_tasks

from triptych.errors import InputError
from triptych.tasks.chat import Chat
from triptych.tasks.flamingo import FlamingoTasks
from triptych.text.prompt import DEFAULT_PROMPTS


@pytest.fixture
def model() -> FlamingoTasks:
    return flamingo_tasks(max_positions=2000)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)) for _ in range(4)]


def ask(chat: Chat, question: str) -> str:
    return chat.ask(question, max_new_tokens=4)


def test_a_dialogue_is_one_interleaved_text(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    chat = model.chat()
    chat.add(photos[0])
    first = ask(chat, "what is it?")
    second = ask(chat, "and now?")
    chat.add(photos[1])
    third = ask(chat, "what is this?")
    text = (
        f"<image>\nQuestion: what is it?\nAnswer:{first}<|endofchunk|>"
        f"\nQuestion: and now?\nAnswer:{second}<|endofchunk|>"
        "<image>\nQuestion: what is this?\nAnswer:"
    )
    expected = model.interleaved(photos[:2], text, max_new_tokens=4)
    assert third.strip() == expected.text
    assert [len(turn.pictures) for turn in chat.turns] == [1, 0, 1] and chat.first == 0


def test_a_question_about_several_pictures_is_answered_as_ask_does(
    model: FlamingoTasks, photos: list[Image.Image]
) -> None:
    chat, alone = model.chat(), flamingo_tasks(max_positions=2000)
    chat.add(photos[0])
    chat.add(photos[1])
    assert ask(chat, "What are they?").strip() == alone.ask(photos[:2], "What are they?", max_new_tokens=4).text
    chat.add(photos[2])
    latest = ask(chat, "What is it?")
    assert latest.strip() != alone.ask(photos[:3], "What is it?", max_new_tokens=4).text
    differ = "How do the photos differ?"  # speaks of all that were shown
    assert ask(chat, differ).strip() == alone.ask(photos[:3], differ, max_new_tokens=4).text
    found = chat.answer("Is there a dog?", explain=True)
    expected = alone.ask(photos[2], "Is there a dog?")
    assert (found.text, found.method) == (expected.text, "caption likelihood")
    assert found.evidence is not None and found.evidence.maps.shape[1] == 1
    assert chat.turns[-1].answer == f" {expected.text}" and len(chat.turns) == 4


def test_a_question_that_needs_no_earlier_turn_is_answered_as_ask_does(
    model: FlamingoTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = model.ask

    def recorded(images: Any, question: str | list[str], *choices: Any, **settings: Any) -> Any:
        asked.extend([question] if isinstance(question, str) else [])
        return answer(images, question, *choices, **settings)

    monkeypatch.setattr(model, "ask", recorded)

    def questions(chat: Chat) -> list[str]:
        asked.clear()
        chat.add(photos[0])
        for question in ("Describe the photo.", "And the dog?", "Is the dog running?", "Is there a dog?"):
            ask(chat, question)
        return asked[:]

    assert questions(model.chat()) == ["Describe the photo.", "Is the dog running?", "Is there a dog?"]
    published = Chat(model, prompts=replace(DEFAULT_PROMPTS, published=True))
    assert questions(published) == ["Is there a dog?"]


def test_earlier_turns_are_not_read_again(
    model: FlamingoTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = model.chat()
    chat.add(photos[0])
    ask(chat, "what is it?")
    ask(chat, "or what?")
    read: list[tuple[int, int]] = []
    forward, media = model.engine.model.forward, model.engine.model.media

    def counted(ids: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        read.append((ids.shape[1], 0))
        return forward(ids, *arguments, **settings)

    def projected(tokens: torch.Tensor, *arguments: Any) -> Any:
        read.append((0, len(tokens)))
        return media(tokens, *arguments)

    monkeypatch.setattr(model.engine.model, "forward", counted)
    monkeypatch.setattr(model.engine.model, "media", projected)
    ask(chat, "and?")
    new = len("\nQuestion: and?\nAnswer:")
    assert new <= read[0][0] <= new + 2  # with the last token and the end of the answer before
    assert all(pictures == 0 for _, pictures in read)
    chat.add(photos[1])
    read.clear()
    ask(chat, "this?")
    assert [pictures for _, pictures in read if pictures] == [1]


def test_undo_takes_back_a_turn_with_its_pictures(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    chat = model.chat()
    chat.add(photos[0])
    ask(chat, "what?")
    chat.add(photos[1])
    second = ask(chat, "and this?")
    assert chat.undo().question == "and this?"
    assert len(chat.waiting) == 1 and len(chat.turns) == 1
    assert ask(chat, "and this?") == second
    chat.undo()
    chat.undo()
    assert len(chat.waiting) == 2
    chat.drop()
    assert not chat.waiting
    with pytest.raises(InputError, match="nothing to undo"):
        chat.undo()


def test_a_question_about_an_earlier_picture_is_asked_about_it(
    model: FlamingoTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = model.chat()
    for photo in photos[:2]:
        chat.add(photo)
        ask(chat, "what?")
    asked: list[list[Any]] = []
    answer = model.ask

    def recorded(images: Any, question: Any, *rest: Any, **settings: Any) -> Any:
        asked.append(images)
        return answer(images, question, *rest, **settings)

    monkeypatch.setattr(model, "ask", recorded)
    ask(chat, "What is in the first picture?")
    assert len(asked[0]) == 2
    asked.clear()
    ask(chat, "What else?")
    assert not asked


def test_the_oldest_turns_leave_and_are_counted(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    chat = Chat(model, max_tokens=120, max_pictures=2)
    chat.add(photos[0])
    ask(chat, "first?")
    chat.add(photos[1])
    ask(chat, "second?")
    assert chat.first == 0
    chat.add(photos[2])
    third = ask(chat, "third?")
    assert chat.first == 1 and len(chat.turns) == 3  # a third picture: the first turn has left
    alone = Chat(model, max_tokens=120, max_pictures=2)
    alone.turns = chat.turns[1:2]
    alone.add(photos[2])
    assert ask(alone, "third?") == third
    ask(chat, "a longer question, so that there is no room for more than that?")
    assert chat.first == 2  # no room in 120 tokens
    with pytest.raises(InputError, match="too long"):
        ask(chat, "one more, and the last picture would have to leave" * 2)
    assert len(chat.turns) == 4 and chat.first == 2
    chat.undo()
    chat.undo()
    chat.drop()
    ask(chat, "more?")
    assert chat.first == 0  # there is room again for what had left


def test_a_question_needs_a_picture_and_words(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    chat = model.chat()
    with pytest.raises(InputError, match="no picture yet"):
        ask(chat, "what?")
    chat.add(photos[0])
    with pytest.raises(InputError, match="question is empty"):
        ask(chat, "  ")
    assert len(chat.waiting) == 1 and not chat.turns


def test_a_saved_dialogue_goes_on(model: FlamingoTasks, photos: list[Image.Image], tmp_path: Path) -> None:
    chat, path = model.chat(), tmp_path / "chat.json"
    chat.add(photos[0])
    ask(chat, "what?")
    chat.save(path)
    expected = ask(chat, "and?")
    other = flamingo_tasks(max_positions=2000).chat()
    other.load(path)
    assert other.turns[0].pictures[0].tobytes() == photos[0].tobytes()
    assert ask(other, "and?") == expected


def test_a_question_that_says_where_its_pictures_stand_is_saved_with_the_rest(
    model: FlamingoTasks, photos: list[Image.Image], tmp_path: Path
) -> None:
    chat, path = model.chat(), tmp_path / "chat.json"
    chat.add(photos[0])
    chat.add(photos[1])
    ask(chat, "Is <image> above <image>?")
    chat.save(path)
    other = model.chat()
    other.load(path)
    assert [turn.question for turn in other.turns] == ["Is <image> above <image>?"]
    assert ask(other, "and?") == ask(chat, "and?")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-20], "truncated"),
        (lambda text: "[]", "not a chat file"),
        (lambda text: text.replace('"triptych_chat": 1', '"triptych_chat": 2'), "version 2"),
        (lambda text: text.replace('"answer"', '"reply"'), "not complete"),
        (lambda text: text.replace("what?", "<image> and <image>?"), "not complete"),
        (lambda text: text.replace("data:image/png;base64,", "/etc/passwd"), "not in the file"),
        (lambda text: text.replace("base64,iVBOR", "base64,AAAAA"), "data URL"),
    ],
)
def test_a_chat_file_that_is_not_right_is_refused(
    model: FlamingoTasks, photos: list[Image.Image], tmp_path: Path, change: Any, reason: str
) -> None:
    chat, path = model.chat(), tmp_path / "chat.json"
    chat.add(photos[0])
    ask(chat, "what?")
    chat.save(path)
    path.write_text(change(path.read_text()))
    turns = chat.turns
    with pytest.raises(InputError, match=reason):
        chat.load(path)
    assert chat.turns is turns
    with pytest.raises(InputError, match="cannot read"):
        chat.load(tmp_path / "none.json")
