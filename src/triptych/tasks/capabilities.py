"""The capabilities of models as Protocols, so that code can ask for a capability rather than a system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from triptych.generate import Search
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer, Match
from triptych.tasks.asking import PictureQuestion
from triptych.tasks.chat import Chat
from triptych.tasks.matching import SearchTexts
from triptych.tasks.words import Pieces

Shot: TypeAlias = tuple[ImageSource | None, str]  # an example: a picture, or none, and its text
QuestionShot: TypeAlias = tuple[ImageSource | None, str, str]  # a picture, or none, a question, its answer


class Model(Protocol):
    """Every model."""

    @property
    def name(self) -> str: ...
    def info(self) -> dict[str, Any]: ...
    def search(self, **settings: Any) -> Search: ...
    def pooled(self, images: Sequence[ImageSource]) -> NDArray[np.float32]:
        """The mean of each picture's image features over the grid: ``[B, D]``."""
        ...


@runtime_checkable
class Captions(Model, Protocol):
    def caption(self, images: Any, *, explain: bool = ..., **settings: Any) -> Any:
        """One picture -> an ``Answer``; a list of pictures -> a list."""
        ...


@runtime_checkable
class Streams(Model, Protocol):
    def stream(self, images: Any, question: str | None = ..., **settings: Any) -> Pieces:
        """A caption, or the answer to a question, piece by piece."""
        ...


@runtime_checkable
class Answers(Model, Protocol):
    """``answers``: whether this model has the language model that it takes."""

    @property
    def answers(self) -> bool: ...
    def ask(
        self,
        images: Any,
        question: Any,
        choices: Sequence[str] | None = ...,
        *,
        explain: bool = ...,
        **settings: Any,
    ) -> Any:
        """One question -> an ``Answer``; a list of questions -> a list."""
        ...

    def choose_answer(self, question: PictureQuestion, choices: Sequence[str], explain: bool = ...) -> Answer:
        """The most likely choice by the language model, whatever the question."""
        ...

    def compare(
        self, left: ImageSource, right: ImageSource, question: str, choices: Sequence[str] = ..., *, explain: bool = ...
    ) -> Answer: ...


@runtime_checkable
class Matches(Model, Protocol):
    """``matches``: whether this model has the heads of BLIP-2's first stage that it takes."""

    @property
    def matches(self) -> bool: ...
    def unknown_texts(self, texts: Sequence[str]) -> list[str]: ...
    def itc_images(self, images: Sequence[ImageSource]) -> NDArray[np.float32]: ...
    def itc_texts(self, texts: Sequence[str]) -> NDArray[np.float32]: ...
    def search_features(self, images: Sequence[ImageSource]) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    def search_texts(self, texts: Sequence[str]) -> SearchTexts: ...
    def similarity_to(
        self, texts: SearchTexts, itc_images: NDArray[np.float32], pooled: NDArray[np.float32]
    ) -> NDArray[np.float32]: ...
    def match(self, images: Any, texts: str | Sequence[str], *, explain: bool = ...) -> list[Match]: ...
    def presence_logits(self, images: Sequence[ImageSource], things: Sequence[str]) -> NDArray[np.float32]: ...
    def count_pieces(self, texts: Sequence[str]) -> int:
        """Word pieces of all texts."""
        ...


@runtime_checkable
class Completes(Model, Protocol):
    def complete(
        self,
        image: ImageSource,
        shots: Sequence[Shot] = ...,
        prompt: str = ...,
        choices: Sequence[str] | None = ...,
        *,
        similar: int | None = ...,
        explain: bool = ...,
        prototypes: bool = ...,
        **settings: Any,
    ) -> Answer: ...
    def interleaved(
        self,
        images: Sequence[ImageSource],
        text: str,
        choices: Sequence[str] | None = ...,
        explain: bool = ...,
        *,
        prototypes: bool = ...,
        **settings: Any,
    ) -> Answer: ...
    def ask_with_examples(
        self, images: Sequence[ImageSource], questions: Sequence[str], examples: Sequence[QuestionShot], **settings: Any
    ) -> list[Answer]: ...
    def most_similar(self, image: ImageSource, shots: Sequence[Shot], count: int) -> list[Shot]: ...


@runtime_checkable
class Chats(Model, Protocol):
    def chat(self) -> Chat: ...
