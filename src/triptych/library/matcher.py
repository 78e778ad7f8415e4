"""The methods of a model that a library needs, to be made and searched. Shapes: B photos, Q queries, T texts, E width of a feature, D of a
pooled one."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.errors import InputError, TriptychError
from triptych.io.images import ImageSource

TOGETHER = 8  # photos in memory, and in the model, at a time

Notice = Callable[[TriptychError], object]
"""Called with an error for each photo or folder that is left out, and for a text of unknown words."""


class UnreadablePhotosError(InputError):
    """Photos of a library that can no longer be read were left out of a search."""


def unreadable_photos(errors: Sequence[TriptychError]) -> UnreadablePhotosError:
    """One error for those of all photos that were left out."""
    what = f"{len(errors)} photos that cannot be read, the first: " if errors[1:] else "1 photo that cannot be read: "
    return UnreadablePhotosError(f"left out {what}{errors[0]}; index the folder again")


class PairScores(Protocol):
    """How well photo number ``image`` and text number ``text`` fit; ``rerank`` is the score to sort by."""

    @property
    def image(self) -> int: ...
    @property
    def text(self) -> int: ...
    @property
    def itc_cosine(self) -> float: ...
    @property
    def itm_prob(self) -> float: ...
    @property
    def rerank(self) -> float: ...


@runtime_checkable
class PhotoMatcher(Protocol):
    @property
    def fingerprint(self) -> str:
        """Identifies the model's weights: features of different models cannot be compared."""

    def unknown_texts(self, texts: Sequence[str], /) -> list[str]:
        """The texts of which the model knows no word."""

    def itc_images(self, images: Sequence[Image.Image], /) -> NDArray[np.float32]:
        """``[B, Q, E]``, of unit length in E."""

    def search_features(self, images: Sequence[Image.Image], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a search keeps of photos: ``itc_images``, and pooled features ``[B, D]``; D may be 0."""

    def similarity_of_features(
        self, itc_images: NDArray[np.float32], pooled: NDArray[np.float32], texts: Sequence[str], /
    ) -> NDArray[np.float32]:
        """How similar photos are to texts by what was kept of them: ``[B, T]``."""

    def itc_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """``[T, E]``, of unit length."""

    def match(self, images: Sequence[ImageSource], texts: Sequence[str], /) -> Sequence[PairScores]:
        """Every photo with every text."""


def as_matcher(model: object, name: str) -> PhotoMatcher:
    """``model``. Raises InputError: it cannot match."""
    if not isinstance(model, PhotoMatcher):
        raise InputError(f"{name}: this model cannot match photos and texts; a library needs a BLIP-2, such as blip2")
    return model
