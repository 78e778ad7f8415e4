"""Clients' messages (OpenAI's and Ollama's) -> a dialogue -> a model's answer."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from triptych.serve.errors import ApiError
from triptych.serve.jobs import Job
from triptych.tasks import Answer, Answers, Captions, Chat, Chats, Streams, TextEnd
from triptych.tasks.capabilities import Model
from triptych.tasks.chat import Turn, shrink
from triptych.tasks.words import in_one_piece


@dataclass
class DialogueTurn:
    """The user's text with its pictures, and the model's answer; None = not yet."""

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
    """Messages ``(role, text, pictures)`` as turns. System messages are put before the first question.

    Raises ApiError: no question at the end, or no picture.
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
    if not any(turn.pictures for turn in turns):
        raise ApiError(400, "there is no picture: these models answer about pictures", param="messages")
    if system and turns[0].text:
        turns[0].text = f"{system} {turns[0].text}"
    return Dialogue(tuple(turns), settings)


def check_picture_role(role: str, place: str) -> None:
    """Raises ApiError: a message of this ``role`` has pictures, at ``place``, which no model would see."""
    if role != "user":
        raise ApiError(
            400,
            f"{place}: pictures of a message with the role {role} are not read: send them as the user's",
            param=place,
        )


def answer_kind(model: Model, talk: Dialogue) -> str:
    """How ``model`` answers: ``caption`` (a picture alone, or a model that only captions), ``chat`` (several turns) or ``ask``.

    Raises ApiError: the model cannot do that.
    """
    answers = isinstance(model, Answers) and model.answers
    if not talk.question.strip() or not answers:
        if len(talk.pictures) != 1:
            what = "send one picture, or ask a question" if answers else "this model captions one picture"
            raise ApiError(400, f"{len(talk.pictures)} pictures: {what}", param="messages")
        return "caption"
    return "chat" if len(talk.turns) > 1 and isinstance(model, Chats) else "ask"


def answer_job(model: Model, kind: str, talk: Dialogue, pictures: bytes) -> Job:
    """The whole answer to a dialogue of a ``kind``. ``pictures``: the digest of their files.

    It is remembered, unless it is a sample or brings log-probabilities, which may be large.
    """
    settings = tuple(sorted(talk.settings.items()))
    key: Hashable = None
    if not talk.settings.get("temperature") and "top_logprobs" not in talk.settings:
        turns = tuple((turn.text, turn.answer, len(turn.pictures)) for turn in talk.turns)
        key = ("chat", kind, settings, turns, pictures)
    return Job((kind, settings), talk, run=lambda talks: answer_batch(model, kind, talks), key=key)


def answer_batch(model: Model, kind: str, talks: Sequence[Dialogue]) -> list[Answer]:
    """The answers to dialogues of one kind with equal settings."""
    settings = dict(talks[0].settings)
    if kind == "chat":
        return [continued(model, talk).answer(talk.question, **settings) for talk in talks]
    if kind == "caption" and isinstance(model, Captions):
        return list(model.caption([talk.pictures[0] for talk in talks], **settings))
    assert isinstance(model, Answers)  # checked by answer_kind
    return list(model.ask([talk.pictures for talk in talks], [talk.question for talk in talks], **settings))


def answer_pieces(model: Model, kind: str, talk: Dialogue) -> Iterator[str | TextEnd]:
    """The answer to one dialogue, piece by piece, and how it ended."""
    settings = dict(talk.settings)
    if kind == "caption" and isinstance(model, Streams):
        end = yield from model.stream(talk.pictures[0], **settings)
    elif isinstance(model, Chats):
        end = yield from continued(model, talk).stream(talk.question, **settings)
    elif len(talk.pictures) == 1 and isinstance(model, Streams):
        end = yield from model.stream(talk.pictures[0], talk.question, **settings)
    else:
        (answer,) = answer_batch(model, kind, [talk])
        end = yield from in_one_piece(answer)
    yield end


def continued(model: Model, talk: Dialogue) -> Chat:
    """The model's chat, after the earlier turns of ``talk`` and with the pictures of the last one, as if it had answered them itself."""
    assert isinstance(model, Chats)  # checked by answer_kind
    chat = model.chat()
    for turn in talk.turns[:-1]:
        earlier = Turn(tuple(map(shrink, turn.pictures)), turn.text, "")
        chat.end(chat.first, earlier, f"{chat.prompts.gap}{turn.answer}")
    for picture in talk.turns[-1].pictures:
        chat.add(picture)
    return chat
