"""Evidence: the attention maps behind each word of a model's answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.errors import TriptychError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """Where a model looked in N pictures for each of the T words that it wrote.

    words:    T words; the caller merges the tokens of a word.
    maps:     [T, N, h, w], >= 0: the attention of word t to each grid cell of picture n.
    logprobs: T natural logarithms of the words' probabilities.
    expected: words that the picture as a whole suggests, the most expected first, where they guided the search for a caption.

    Raises:
        TriptychError: the three have different lengths, or a map holds negative or non-finite values.
    """

    words: tuple[str, ...]
    maps: Floats
    logprobs: tuple[float, ...]
    expected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (
            self.maps.ndim != 4
            or not (len(self.words) == len(self.logprobs) == len(self.maps))
            or 0 in self.maps.shape[1:]
        ):
            raise TriptychError(
                f"evidence needs maps [T, N, h, w] for its {len(self.words)} words and {len(self.logprobs)} "
                f"log probabilities, not {list(self.maps.shape)}"
            )
        if not (np.isfinite(self.maps).all() and (self.maps >= 0).all()):
            raise TriptychError("evidence maps must be finite and not negative")


def check_pictures(count: int, evidence: Evidence) -> None:
    """Check that the evidence is about ``count`` pictures.

    Raises:
        TriptychError: it is about another number of pictures.
    """
    if count != evidence.maps.shape[1]:
        raise TriptychError(f"evidence is about {evidence.maps.shape[1]} pictures, but {count} were given")


def join_evidence(each: Sequence[Evidence | None]) -> Evidence | None:
    """The evidence of answers about one photo each: a word's map is 0 over the other photos. None = there is none."""
    given = [(photo, evidence) for photo, evidence in enumerate(each) if evidence is not None]
    if not given:
        return None
    maps = []
    for photo, evidence in given:
        words, _, *grid = evidence.maps.shape
        over_all = np.zeros((words, len(each), *grid), np.float32)
        over_all[:, photo] = evidence.maps[:, 0]
        maps.append(over_all)
    return Evidence(
        tuple(word for _, evidence in given for word in evidence.words),
        np.concatenate(maps),
        tuple(logprob for _, evidence in given for logprob in evidence.logprobs),
    )
