"""A dialogue over pictures, which may come at any turn. Earlier turns are read only once (``tasks.prefix``).

A saved chat is a JSON file that includes its pictures:
``{"triptych_chat": 1, "turns": [{"pictures": [data URL...], "question", "answer"}]}``.
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
from triptych.io.files import json_bytes, write_file
from triptych.io.images import ImageSource, load_image
from triptych.tasks.answer import Answer
from triptych.tasks.words import Pieces, recorded_pieces
from triptych.text.prompt import DEFAULT_PROMPTS, END, IMAGE, Prompts, question_prompt
from triptych.text.questions import (
    claim_asked_about,
    is_about_all,
    one_picture_asked_about,
    plain_question,
    presence_asked_about,
)

CHAT_VERSION = 1
ANSWER_TOKENS = 48  # of an answer at most
MAX_TOKENS = 2048  # of the remembered text
MAX_PICTURES = 32  # remembered
MAX_CHAT_FILE = 64 * 2**20  # bytes
WORDLESS = "What is in the photo?"  # the question of pictures that come without one
PICTURE_SIDE = 1024  # pixels: pictures are shrunk to this


@dataclass(frozen=True)
class Turn:
    """``pictures``: those that came with the question, RGB. ``answer``: as the model wrote it, usually with a leading space."""

    pictures: tuple[Image.Image, ...]
    question: str
    answer: str

    def prompt(self, prompts: Prompts) -> str:
        """The question's part of the prompt, with its pictures. Pictures without a question ask for a description."""
        question = self.question if self.question.replace(IMAGE, "").strip() else WORDLESS
        text = question_prompt(question, max(1, len(self.pictures)), prompts)
        return text if self.pictures else text.replace(IMAGE, "", 1)


class Speaker(Protocol):
    """The methods of a model that a chat needs; ``flamingo.FlamingoTasks`` has them."""

    def search(self, **settings: Any) -> Search: ...
    def ask(self, images: list[ImageSource], question: str, *, explain: bool = ..., **settings: Any) -> Answer: ...
    def length(self, text: str, pictures: int) -> int: ...
    def streamed(self, text: str, images: Sequence[ImageSource], search: Search) -> Pieces: ...
    def write(
        self, prompts: Sequence[tuple[str, Sequence[ImageSource]]], search: Search, explain: bool
    ) -> list[Answer]: ...


class Chat:
    """``turns``: the whole dialogue. The model remembers its last turns, from ``first`` on."""

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
        self.waiting: list[Image.Image] = []  # pictures for the next question

    def add(self, image: ImageSource) -> None:
        """Add a picture to the next question. Raises InputError: it cannot be read, or there are too many."""
        if len(self.waiting) == self.max_pictures:
            raise InputError(f"{len(self.waiting)} pictures wait for a question: ask one")
        self.waiting.append(shrink(image))

    def drop(self) -> None:
        """Remove the pictures that wait for the next question."""
        self.waiting = []

    def ask(self, question: str, **settings: Any) -> str:
        """The whole answer; see ``stream``."""
        return "".join(self.stream(question, **settings))

    def stream(self, question: str, **settings: Any) -> Pieces:
        """The answer piece by piece; when it is complete, the turn is added to the dialogue.

        A question that needs no earlier turn is answered by the model's ``ask``, in one piece (``asked_about``). When the dialogue exceeds
        ``max_tokens`` or ``max_pictures``, the oldest turns are forgotten: ``first`` moves on.

        Raises:
            InputError: the question is empty or too long, there is no picture yet, or a setting is out of bounds.
        """
        turn = self.begin(question)
        search = self.model.search(**({"beams": 1, "max_new_tokens": ANSWER_TOKENS} | settings))
        first, text, pictures = self.remembered(turn, search.max_new_tokens)
        if about := self.asked_about(turn):
            reply = self.model.ask(about, question, **settings)
            yield (answer := f"{self.prompts.gap}{reply.text}")
            self.end(first, turn, answer)
            return reply.end
        pieces: list[str] = []
        end = yield from recorded_pieces(self.model.streamed(text, pictures, search), pieces.append)
        self.end(first, turn, "".join(pieces))
        return end

    def answer(self, question: str, *, explain: bool = False, **settings: Any) -> Answer:
        """The answer with its log-probabilities; ``explain``: and with evidence over all remembered pictures. Raises as ``stream``."""
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
        """The pictures that the model's ``ask`` answers this question about; None: the dialogue goes on.

        1. A question about all pictures, or one that names an earlier one: all remembered. The language model would see only the last.
        2. A question that brings several pictures, or asks whether something is there: the latest.
        3. The dialogue's first question, or one whether something is so: the latest, but not for published models.
        """
        if IMAGE in turn.question:
            return None
        question = turn.question if self.prompts.published else plain_question(turn.question)
        remembered = [picture for old in [*self.turns[self.first :], turn] for picture in old.pictures]
        latest = next(old.pictures for old in [turn, *reversed(self.turns)] if old.pictures)
        named = one_picture_asked_about(question, len(remembered)) is not None
        if (named or is_about_all(question)) and len(remembered) > 1 and len(turn.pictures) < 2:
            return [*remembered]
        if len(turn.pictures) > 1 or presence_asked_about(question) is not None:
            return [*latest]
        known = not self.turns or claim_asked_about(question) is not None
        return [*latest] if known and not self.prompts.published else None

    def begin(self, question: str) -> Turn:
        """A turn of the waiting pictures, not yet part of the dialogue. Raises InputError: there is no picture yet."""
        turn = Turn(tuple(self.waiting), question, "")
        if not any(old.pictures for old in [*self.turns, turn]):
            raise InputError("there is no picture yet: add one, then ask")
        return turn

    def end(self, first: int, turn: Turn, answer: str) -> None:
        """Add an answered turn to the dialogue."""
        self.first, self.waiting = first, []
        for mark in (IMAGE, END):  # in the next prompt they would stand for pictures and ends that are not there
            answer = answer.replace(mark, "")
        self.turns.append(Turn(turn.pictures, turn.question, answer))

    def remembered(self, turn: Turn, new_tokens: int) -> tuple[int, str, list[ImageSource]]:
        """As many of the last turns as fit before the new one: the index of the first, the prompt, its pictures.

        Raises:
            InputError: the new turn and the last pictures alone are too long.
        """
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
            f"the question, or the dialogue since the last picture, is too long: a dialogue remembers {self.max_tokens} tokens "
            f"and {self.max_pictures} pictures; add the picture again, or start a new dialogue"
        )

    def undo(self) -> Turn:
        """Remove the last turn; its pictures wait again, and turns forgotten because of it are remembered again.

        Raises InputError: there is no turn.
        """
        if not self.turns:
            raise InputError("there is nothing to undo")
        turn = self.turns.pop()
        self.first = 0  # ``remembered`` moves it on again
        self.waiting = [*turn.pictures, *self.waiting]
        return turn

    def save(self, path: Path) -> None:
        """Write the dialogue as JSON, atomically."""
        turns = [
            {"pictures": [as_url(p) for p in turn.pictures], "question": turn.question, "answer": turn.answer}
            for turn in self.turns
        ]
        write_file(path, json_bytes({"triptych_chat": CHAT_VERSION, "turns": turns}))

    def load(self, path: Path) -> None:
        """Replace this dialogue by a saved one; if the file is refused, nothing changes.

        Raises:
            InputError: the file cannot be read, is truncated, of another version, or not a chat.
        """
        self.turns, self.first, self.waiting = read_chat(path), 0, []


def shrink(image: ImageSource) -> Image.Image:
    """A picture of at most ``PICTURE_SIDE`` pixels on a side."""
    picture = load_image(image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return picture


def as_url(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def read_chat(path: Path) -> list[Turn]:
    """The turns of a saved chat. Raises InputError: see ``Chat.load``."""
    try:
        if path.stat().st_size > MAX_CHAT_FILE:
            raise InputError(f"{path} is larger than {MAX_CHAT_FILE >> 20} MB, the limit of a chat file")
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
                tuple(shrink(url) for url in data_urls(turn["pictures"], path)),
                question_of(turn, len(turn["pictures"])),
                without_marks(turn["answer"]),
            )
            for turn in content["turns"]
        ]
    except (KeyError, TypeError):
        raise InputError(f"{path}: a turn of this chat is not complete") from None


def question_of(turn: Any, pictures: int) -> str:
    """The question of a saved turn. Raises TypeError: it is no text, or marks the places of another number of pictures."""
    question = turn["question"]
    if isinstance(question, str) and question.count(IMAGE) == pictures:
        without_marks(question.replace(IMAGE, ""))
        return question
    return without_marks(question)


def without_marks(text: Any) -> str:
    """``text``. Raises TypeError: it is no text, or contains ``<image>`` or ``<|endofchunk|>``."""
    if not isinstance(text, str) or IMAGE in text or END in text:
        raise TypeError
    return text


def data_urls(urls: Any, path: Path) -> list[str]:
    """The pictures of a turn. Raises InputError: one is a path or another URL, which a chat file may not fetch."""
    if not isinstance(urls, list) or not all(isinstance(url, str) and url.startswith("data:") for url in urls):
        raise InputError(f"{path}: a picture of this chat is not in the file")
    return urls
