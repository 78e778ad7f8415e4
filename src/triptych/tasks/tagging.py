"""Keywords of photos: words of a vocabulary that fit by contrast and the captions to expect; the best of them are matched, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.io.images import ImageSource
from triptych.tasks.capabilities import Matches
from triptych.tasks.probability import (
    check_probability,
    everyday_words,
    naming_probability,
    standard_scores,
)

AT_LEAST = 0.3  # probability of a tag: see the guide
MOST_TAGS = 10
MATCHED_TAGS = 32  # words of a photo that are matched
MAX_VOCABULARY = 50_000  # words
MAX_VOCABULARY_BYTES = 4 << 20


@dataclass(frozen=True)
class Tag:
    """A keyword and the probability that people would name it."""

    word: str
    probability: float


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a text file, one a line; empty lines, lines that begin with # and repetitions are left out.

    Raises InputError: it cannot be read, is no UTF-8, or holds no word or too many.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_VOCABULARY_BYTES + 1)
        lines = [] if len(data) > MAX_VOCABULARY_BYTES else data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the vocabulary {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"the vocabulary {path} is not UTF-8 text: save it as UTF-8, one word a line") from None
    words = tuple(
        dict.fromkeys(word for line in lines if (word := " ".join(line.split())) and not word.startswith("#"))
    )
    if len(data) > MAX_VOCABULARY_BYTES or len(words) > MAX_VOCABULARY:
        raise InputError(f"the vocabulary {path} is too large: {MAX_VOCABULARY} words and 4 MB at most")
    if not words:
        raise InputError(f"the vocabulary {path} holds no word: write one a line")
    return words


class Tagger:
    """Photos -> their tags.

    Args:
        matcher: the model.
        vocabulary: the words to choose from; None = ``everyday_words``.
        at_least: the probability of a tag, 0 to 1.
        most: how many tags a photo gets at most.

    Raises:
        InputError: a bound is impossible; the model knows none of the words, or one is too long for it.
    """

    def __init__(
        self,
        matcher: Matches,
        vocabulary: Sequence[str] | None = None,
        at_least: float = AT_LEAST,
        most: int = MOST_TAGS,
    ) -> None:
        check_probability(at_least)
        if not 1 <= most <= MATCHED_TAGS:
            raise InputError(f"{most} tags a photo: choose 1 to {MATCHED_TAGS}")
        words = everyday_words() if vocabulary is None else tuple(vocabulary)
        unknown = frozenset(matcher.unknown_texts(words))
        self.words = tuple(word for word in words if word not in unknown)
        self.left_out = tuple(word for word in words if word in unknown)
        if not self.words:
            raise InputError(f"the model knows none of the {len(words)} words of the vocabulary, such as {words[0]!r}")
        self.matcher, self.at_least, self.most = matcher, at_least, most
        self._everyday = matcher.itc_texts(everyday_words())
        self._texts = matcher.itc_texts(self.words)

    def __call__(self, photos: Sequence[ImageSource]) -> list[list[Tag]]:
        """The tags of each photo, the likeliest first. Raises InputError: a photo cannot be read."""
        features, presence = self.matcher.itc_images(photos), self.matcher.presence_logits(photos, self.words)
        return [self._of(*each) for each in zip(photos, features, presence, strict=True)]

    def _of(self, photo: ImageSource, features: Floats, presence: Floats) -> list[Tag]:
        """``features``: the photo's for contrast, ``[Q, E]``; ``presence``: the logit of each word, ``[V]``."""
        cosines, background = ((features @ texts.T).max(0) for texts in (self._texts, self._everyday))
        scores = standard_scores(cosines, background)
        attainable = naming_probability(scores, np.ones_like(scores), presence)  # if they match for sure
        best = np.argsort(-attainable, kind="stable")[:MATCHED_TAGS]
        best = best[attainable[best] >= self.at_least]
        if not len(best):
            return []
        matches = self.matcher.match([photo], [self.words[i] for i in best])
        itm_prob = np.array([match.itm_prob for match in matches])
        probabilities = naming_probability(scores[best], itm_prob, presence[best])
        order = np.argsort(-probabilities, kind="stable")[: self.most]
        return [Tag(self.words[best[i]], float(probabilities[i])) for i in order if probabilities[i] >= self.at_least]
