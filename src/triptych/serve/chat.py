"""A dialogue as clients send it (OpenAI's and Ollama's messages) -> a question to a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from triptych.serve.errors import ApiError
from triptych.serve.settings import PICTURE_LIMIT


@dataclass
class DialogueTurn:
    """What the person said, with the pictures that came with it, and what the model answered; None = not yet."""

    text: str = ""
    pictures: list[Image] = field(default_factory=list)
    answer: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """All turns; the last one waits for an answer. ``settings``: fields of ``generate.Search``."""

    turns: tuple[DialogueTurn, ...]
    settings: Mapping[str, Any]

    @property
    def question(self) -> str:
        return self.turns[-1].text

    @property
    def pictures(self) -> list[Image]:
        return [picture for turn in self.turns for picture in turn.pictures]


def read_dialogue(messages: Sequence[tuple[str, str, list[Image]]], settings: Mapping[str, Any]) -> Dialogue:
    """Messages ``(role, text, pictures)`` as turns. A system message is put before the first question.

    Raises ApiError: no question at the end, no picture or too many.
    """
    turns: list[DialogueTurn] = []
    system = " ".join(text for role, text, _ in messages if role in ("system", "developer") and text)
    for role, text, pictures in messages:
        if role == "user":
            if turns and turns[-1].answer is None:
                turns[-1].text = f"{turns[-1].text} {text}".strip()
                turns[-1].pictures += pictures
            else:
                turns.append(DialogueTurn(text, list(pictures)))
        elif role == "assistant" and turns:
            turns[-1].answer = f"{turns[-1].answer or ''} {text}".strip()
    if not turns or turns[-1].answer is not None:
        raise ApiError(400, "the last message is not the user's: end with a question", param="messages")
    count = sum(len(turn.pictures) for turn in turns)
    if not count:
        raise ApiError(400, "there is no picture: these models answer about pictures", param="messages")
    if count > PICTURE_LIMIT:
        raise ApiError(400, f"{count} pictures: a request may have {PICTURE_LIMIT} at most", param="messages")
    if system and turns[0].text:
        turns[0].text = f"{system} {turns[0].text}"
    return Dialogue(tuple(turns), settings)


def answer_kind(model: Any, talk: Dialogue) -> str:
    """How ``model`` answers: ``caption`` (a picture alone, or a model that only captions), ``chat`` (several turns) or ``ask``.

    Raises ApiError: the model cannot do that.
    """
    if not talk.question.strip() or not hasattr(model, "ask"):
        if len(talk.pictures) != 1:
            what = (
                "it captions one picture"
                if not hasattr(model, "ask")
                else "without a question there must be one picture"
            )
            raise ApiError(400, f"{len(talk.pictures)} pictures: {what}", param="messages")
        return "caption"
    return "chat" if len(talk.turns) > 1 and hasattr(model, "chat") else "ask"


def answer_batch(model: Any, kind: str, talks: list[Dialogue]) -> list[Any]:
    """The answers (``tasks.Answer``) to dialogues of one kind with equal settings."""
    settings = dict(talks[0].settings)
    if kind == "caption":
        return list(model.caption([talk.pictures[0] for talk in talks], **settings))
    if kind == "ask":
        return list(model.ask([talk.pictures for talk in talks], [talk.question for talk in talks], **settings))
    return [continued(model, talk).answer(talk.question, **settings) for talk in talks]


def answer_pieces(model: Any, kind: str, talk: Dialogue) -> Iterator[str]:
    """The answer to one dialogue, piece by piece."""
    settings = dict(talk.settings)
    if kind == "caption":
        yield from spaced(model, model.stream(talk.pictures[0], **settings))
    elif kind == "chat" or hasattr(model, "chat"):
        yield from continued(model, talk).stream(talk.question, **settings)
    elif len(talk.pictures) == 1:
        yield from model.stream(talk.pictures[0], talk.question, **settings)
    else:
        yield model.ask(talk.pictures, talk.question, **settings).text


def spaced(model: Any, pieces: Iterator[str]) -> Iterator[str]:
    """Whole words (of a model with a word vocabulary) with spaces between them; pieces of a tokenizer as they are."""
    words = not hasattr(model, "ask")
    for number, piece in enumerate(pieces):
        yield f" {piece}" if words and number and not piece.startswith("'") else piece


def continued(model: Any, talk: Dialogue) -> Any:
    """The model's chat, after the earlier turns of ``talk`` and with the pictures of the last one."""
    from triptych.tasks.chat import Turn as ChatTurn

    chat = model.chat()
    for turn in talk.turns[:-1]:
        chat.turns.append(ChatTurn(tuple(turn.pictures), turn.text, f" {turn.answer}"))
    for picture in talk.turns[-1].pictures:
        chat.add(picture)
    return chat
