"""A dialogue over pictures, which may come at any turn. Earlier turns are not read again, as long as none leaves.

A chat is kept as JSON, its pictures inside: ``{"triptych_chat": 1, "turns": [{"pictures": [data URL...], "question", "answer"}]}``.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from triptych.errors import InputError
from triptych.generate import Search
from triptych.io.files import write_file
from triptych.io.images import ImageSource, load_image
from triptych.tasks.answer import Answer
from triptych.tasks.words import Pieces, noted
from triptych.text.prompt import DEFAULT_PROMPTS, END, IMAGE, Prompts, question_prompt
from triptych.text.questions import is_about_all, thing_asked_for

CHAT_VERSION = 1
ANSWER_TOKENS = 48  # of an answer at most: how two pictures differ takes a sentence
MAX_TOKENS = 2048  # of the text that is remembered
MAX_PICTURES = 32  # that are remembered
MAX_CHAT_FILE = 64 * 2**20  # bytes of a chat's file
PICTURE_SIDE = 1024  # pixels: pictures are kept no larger than this


@dataclass(frozen=True)
class Turn:
    """``pictures``: RGB, those that came with the question. ``answer``: as it was written, mostly with a space in front."""

    pictures: tuple[Image.Image, ...]
    question: str
    answer: str

    def prompt(self, prompts: Prompts) -> str:
        """The question with its pictures in front."""
        text = question_prompt(self.question, max(1, len(self.pictures)), prompts)
        return text if self.pictures else text.replace(IMAGE, "", 1)


class Speaker(Protocol):
    """What a chat asks of a model; ``flamingo.FlamingoTasks`` is one."""

    def search(self, **settings: Any) -> Search: ...
    def ask(self, images: list[ImageSource], question: str, *, explain: bool = ..., **settings: Any) -> Answer: ...
    def length(self, text: str, pictures: int) -> int: ...
    def streamed(self, text: str, images: Sequence[ImageSource], search: Search) -> Pieces: ...
    def write(
        self, prompts: Sequence[tuple[str, Sequence[ImageSource]]], search: Search, explain: bool
    ) -> list[Answer]: ...


class Chat:
    """``turns`` are all that was said; the model remembers the last ones, from ``first`` on."""

    def __init__(
        self,
        model: Speaker,
        max_tokens: int = MAX_TOKENS,
        max_pictures: int = MAX_PICTURES,
        prompts: Prompts = DEFAULT_PROMPTS,
    ) -> None:
        self.model, self.max_tokens, self.max_pictures, self.prompts = model, max_tokens, max_pictures, prompts
        self.turns: list[Turn] = []
        self.first = 0
        self.waiting: list[Image.Image] = []  # pictures that go with the next question

    def add(self, image: ImageSource) -> None:
        """A picture for the next question. Raises InputError: it cannot be read, or there are too many."""
        if len(self.waiting) == self.max_pictures:
            raise InputError(f"{len(self.waiting)} pictures wait for a question: ask one")
        self.waiting.append(small(image))

    def drop(self) -> None:
        """Give up the pictures that wait for a question."""
        self.waiting = []

    def ask(self, question: str, **settings: Any) -> str:
        """The answer, whole; see ``stream``."""
        return "".join(self.stream(question, **settings))

    def stream(self, question: str, **settings: Any) -> Pieces:
        """The answer piece by piece; the turn is part of the dialogue when it is complete.

        A question about several pictures, and whether something is there, is answered as ``ask`` does (in one piece). ``first`` moves
        on where the oldest turns leave, because the dialogue has more than ``max_tokens`` or ``max_pictures``.

        Raises:
            InputError: the question is empty or alone too long, there is no picture yet, or a setting is out of bounds.
        """
        turn = self.begin(question)
        search = self.model.search(**({"beams": 1, "max_new_tokens": ANSWER_TOKENS} | settings))
        first, text, pictures = self.remembered(turn, search.max_new_tokens)
        if about := self.asked_about(turn):
            reply = self.model.ask(about, question, **({"beams": 1} | settings))
            yield (answer := f"{self.prompts.gap}{reply.text}")
            self.end(first, turn, answer)
            return reply.end
        pieces: list[str] = []
        end = yield from noted(self.model.streamed(text, pictures, search), pieces.append)
        self.end(first, turn, "".join(pieces))
        return end

    def answer(self, question: str, *, explain: bool = False, **settings: Any) -> Answer:
        """The answer with its log-probabilities, and with ``explain`` where the model looked in all remembered pictures."""
        turn = self.begin(question)
        search = self.model.search(**({"max_new_tokens": ANSWER_TOKENS} | settings))
        first, text, pictures = self.remembered(turn, search.max_new_tokens)
        if about := self.asked_about(turn):
            reply = self.model.ask(about, question, explain=explain, **settings)
        else:
            (reply,) = self.model.write([(text, pictures)], search, explain)
        self.end(first, turn, f"{self.prompts.gap}{reply.text}")
        return reply

    def asked_about(self, turn: Turn) -> list[ImageSource] | None:
        """The pictures of a question that is answered by itself, not as the dialogue's next line: one about several pictures, which the
        language model would answer from the last one alone; or whether something is there. None for any other question."""
        if IMAGE in turn.question:
            return None
        remembered = [picture for old in [*self.turns[self.first :], turn] for picture in old.pictures]
        latest = next(old.pictures for old in [turn, *reversed(self.turns)] if old.pictures)
        if is_about_all(turn.question) and len(remembered) > 1 and len(turn.pictures) < 2:
            return [*remembered]
        if len(turn.pictures) > 1 or thing_asked_for(turn.question) is not None:
            return [*latest]
        return None

    def begin(self, question: str) -> Turn:
        turn = Turn(tuple(self.waiting), question, "")
        if not any(old.pictures for old in [*self.turns, turn]):
            raise InputError("there is no picture yet: add one, then ask")
        return turn

    def end(self, first: int, turn: Turn, answer: str) -> None:
        self.first, self.waiting = first, []
        for mark in (IMAGE, END):  # written out letter by letter they would stand for pictures that are not there
            answer = answer.replace(mark, "")
        self.turns.append(Turn(turn.pictures, turn.question, answer))

    def remembered(self, turn: Turn, new_tokens: int) -> tuple[int, str, list[ImageSource]]:
        """The last turns and a new one, as many as fit: the first of them, the prompt and its pictures. The last pictures never leave."""
        for first in range(self.first, len(self.turns) + 1):
            kept = [*self.turns[first:], turn]
            pictures: list[ImageSource] = [picture for old in kept for picture in old.pictures]
            if len(pictures) > self.max_pictures:
                continue
            if not pictures:
                break
            earlier = [f"{old.prompt(self.prompts)}{old.answer}{END}" for old in kept[:-1]]
            text = "".join(earlier) + turn.prompt(self.prompts)
            if self.model.length(text, len(pictures)) + new_tokens <= self.max_tokens:
                return first, text, pictures
        raise InputError(
            f"the question, or what was said since the last picture, is too long: a dialogue remembers {self.max_tokens} tokens "
            f"and {self.max_pictures} pictures; show the picture again, or start anew"
        )

    def undo(self) -> Turn:
        """Take back the last turn: its pictures wait again, turns that left for it come back. Raises InputError: there is none."""
        if not self.turns:
            raise InputError("there is nothing to undo")
        turn = self.turns.pop()
        self.first = 0  # the next question finds out how many fit
        self.waiting = [*turn.pictures, *self.waiting]
        return turn

    def save(self, path: Path) -> None:
        """Write the dialogue as JSON, all or nothing."""
        turns = [
            {"pictures": [as_url(p) for p in turn.pictures], "question": turn.question, "answer": turn.answer}
            for turn in self.turns
        ]
        write_file(path, json.dumps({"triptych_chat": CHAT_VERSION, "turns": turns}, ensure_ascii=False).encode())

    def load(self, path: Path) -> None:
        """Go on with a dialogue that was saved; this one is given up. Nothing changes where the file is refused.

        Raises:
            InputError: it cannot be read, is truncated, of another version, or no dialogue.
        """
        self.turns, self.first, self.waiting = read_chat(path), 0, []


def small(image: ImageSource) -> Image.Image:
    """A picture as it is kept."""
    picture = load_image(image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return picture


def as_url(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def read_chat(path: Path) -> list[Turn]:
    try:
        if path.stat().st_size > MAX_CHAT_FILE:
            raise InputError(f"{path} is larger than {MAX_CHAT_FILE >> 20} MB: no chat is")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a whole chat file: it is truncated or of another kind") from None
    version = content.get("triptych_chat") if isinstance(content, dict) else None
    if version is None:
        raise InputError(f"{path} is not a chat file")
    if version != CHAT_VERSION:
        raise InputError(f"{path} is a chat file of version {version!r}: this program reads version {CHAT_VERSION}")
    try:
        return [
            Turn(
                tuple(small(url) for url in data_urls(turn["pictures"], path)),
                said(turn["question"]),
                said(turn["answer"]),
            )
            for turn in content["turns"]
        ]
    except (KeyError, TypeError):
        raise InputError(f"{path}: a turn of this chat is not complete") from None


def said(text: Any) -> str:
    if not isinstance(text, str) or IMAGE in text or END in text:
        raise TypeError
    return text


def data_urls(urls: Any, path: Path) -> list[str]:
    """A chat's pictures are in its file; nothing else is fetched for it."""
    if not isinstance(urls, list) or not all(isinstance(url, str) and url.startswith("data:") for url in urls):
        raise InputError(f"{path}: a picture of this chat is not in the file")
    return urls
