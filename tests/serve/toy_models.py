"""Models that answer at once, for the server's tests: they say how red the first pixel of each picture is."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from triptych.errors import InputError
from triptych.evidence import Evidence
from triptych.interruption import check_interruption
from triptych.tasks import Answer, Chat, Match, TextEnd
from triptych.tasks.answer import WrittenToken
from triptych.tasks.words import Pieces


def red(image: Image.Image) -> int:
    return image.getpixel((0, 0))[0]  # type: ignore[index]


def answer(text: str, name: str, explain: bool = False) -> Answer:
    words = tuple(text.split())
    logprobs = (-0.5,) * len(words)
    evidence = (
        Evidence(words, np.ones((len(words), 1, 2, 2), np.float32), logprobs, ("red", "wall")) if explain else None
    )
    tokens = (tuple(WrittenToken(f" {word}", -0.5, ((f" {word}", -0.5), (" or", -2.0))) for word in words),)
    return Answer(text, name, sum(logprobs), words, logprobs, evidence, end=TextEnd(True, 7, len(words), tokens))


def unused(*_: object, **__: object) -> Any:
    raise AssertionError("the server has no use for this")


class ToySat:
    """Captions. ``batches`` are the sizes of its calls; a picture as red as ``FAULTY`` fails; ``delay`` seconds a step."""

    FAULTY = 66
    info = search = pooled = unused
    explains = True

    def __init__(self, name: str = "sat", delay: float = 0.0) -> None:
        self.name, self.delay = name, delay
        self.batches: list[int] = []
        self.settings: list[dict[str, Any]] = []
        self.steps = 0
        self.gate = threading.Event()
        self.gate.set()

    def work(self, images: Sequence[Image.Image], settings: dict[str, Any]) -> None:
        self.batches.append(len(images))
        self.settings.append(settings)
        self.gate.wait(10)
        for _ in range(round(self.delay / 0.01)):
            check_interruption()
            self.steps += 1
            time.sleep(0.01)
        if self.FAULTY in map(red, images):
            raise InputError("this picture is faulty")

    def caption(self, images: Sequence[Image.Image], explain: bool = False, **settings: Any) -> list[Answer]:
        if isinstance(images, Image.Image):
            return self.caption([images], explain, **settings)[0]  # type: ignore[return-value]
        self.work(images, settings)
        answers = [answer(f"A red of {red(image)}.", self.name, explain) for image in images]
        if settings.get("max_new_tokens") == 4:  # as many as there are words, and no more
            answers = [replace(one, end=one.end._replace(finished=False)) for one in answers]
        return answers

    def stream(self, image: Image.Image, question: str | None = None, **settings: Any) -> Pieces:
        words = ("A", " red", " of", f" {red(image)}")[: settings.get("max_new_tokens")]
        for word in words:
            self.work([image], settings)
            yield word
        return TextEnd(len(words) == 4, 0, len(words))


class ToyBlip2(ToySat):
    """Also answers and matches."""

    answers = matches = True
    choose_answer = compare = unknown_texts = presence_logits = unused

    def __init__(self, name: str = "blip2", delay: float = 0.0) -> None:
        super().__init__(name, delay)

    def ask(
        self, images: Any, questions: Any, choices: Sequence[str] | None = None, explain: bool = False, **settings: Any
    ) -> Any:
        if isinstance(questions, str):
            return self.ask([images], [questions], choices, explain, **settings)[0]
        self.work([image for pictures in images for image in pictures], settings)
        scores = {choice: -float(n) for n, choice in enumerate(choices)} if choices else None
        return [
            replace(answer(f"{question} {[red(image) for image in pictures]}", self.name, explain), scores=scores)
            for pictures, question in zip(images, questions, strict=True)
        ]

    def stream(self, image: Image.Image, question: str | None = None, **settings: Any) -> Pieces:
        for piece in (" It", " is", f" {red(image)}"):
            self.work([image], settings)
            yield piece
        return TextEnd(True, 9, 3)

    def count_pieces(self, texts: Sequence[str]) -> int:
        return sum(len(text) for text in texts)

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        return [
            Match(i, t, red(image) / 255, 1.0, red(image) / 255, float(red(image)))
            for i, image in enumerate(images)
            for t, _ in enumerate(texts)
        ]

    def itc_texts(self, texts: Sequence[str]) -> Any:
        return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]

    def itc_images(self, images: Sequence[Image.Image]) -> Any:
        return np.stack([np.full((2, 4), 0.5, np.float32) for _ in images])

    def search_features(self, images: Sequence[Image.Image]) -> Any:
        return self.itc_images(images), np.zeros((len(images), 0), np.float32)

    similarity_of_features = search_texts = similarity_to = unused


def png(value: int = 7, size: tuple[int, int] = (4, 4)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def data_url(value: int = 7) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(value)).decode()}"


def question(*pictures: str, text: str = "What?", model: str = "blip2", **fields: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return {
        "model": model,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        **fields,
    }


class ToyChat(Chat):
    """A dialogue of ``ToyFlamingo``."""

    def answer(self, question: str, *, explain: bool = False, **settings: Any) -> Answer:
        return answer(f"{len(self.turns)} turns before, {len(self.waiting)} pictures now", "flamingo")

    def stream(self, question: str, **settings: Any) -> Pieces:
        reply = self.answer(question)
        yield from (f" {word}" for word in reply.text.split())
        return reply.end


class ToyFlamingo(ToyBlip2):
    """Also completes and talks; it does not match."""

    match = itc_texts = itc_images = None  # type: ignore[assignment]
    interleaved = most_similar = ask_with_examples = unused

    def __init__(self) -> None:
        super().__init__("flamingo")

    def complete(self, image: Image.Image, shots: Sequence[Any], prompt: str = "", choices: Any = None) -> Answer:
        text = choices[0] if choices else f"number {len(shots)}"
        scores = {choice: -float(n) for n, choice in enumerate(choices)} if choices else None
        return replace(answer(text, self.name), scores=scores)

    def chat(self) -> ToyChat:
        return ToyChat(self)  # type: ignore[arg-type]

    def info(self) -> dict[str, Any]:
        return {"gates": {"before block 3": (0.1, -0.4)}}
