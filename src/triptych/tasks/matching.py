"""How well photos and texts match: BLIP-2's contrast (ITC) and matching (ITM), and in the score for sorting the consensus
(``tasks.reranking``) and querybank normalisation (``tasks.querybank``), too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych.engines.interface import Blip2Engine, MatchArrays, TextPieces
from triptych.errors import InputError
from triptych.evidence import Evidence, Floats
from triptych.io.images import ImageSource
from triptych.tasks.answer import Match
from triptych.tasks.asking import Photos, as_list
from triptych.tasks.photos import ArrayMemory, PhotoMemory, over_photos
from triptych.tasks.querybank import Offsets, read_querybank
from triptych.tasks.reranking import Reranking
from triptych.tasks.words import join_word_pieces, sum_over_words

MATCHED_TOGETHER = 256  # pairs of a photo and a text
TEXT_FEATURE_BYTES = 16 * 2**20  # of remembered features of texts


class SearchTexts(NamedTuple):
    """What ``similarity`` needs of K texts."""

    features: Floats  # [K, E] for contrast
    directions: Floats | None  # [K, V], ``Consensus.vectors``; None: there is no consensus
    offsets: Floats  # [K] of the querybank; 0 without one


class Blip2Matching(Reranking):
    """The part of ``Blip2Tasks`` that needs no language model. Features of photos and texts are remembered.

    querybank_file: of its checkpoint; None = it has none."""

    querybank_file: Path | None = None

    def __init__(self, engine: Blip2Engine[Any], name: str) -> None:
        self.engine, self.name, self.spec = engine, name, engine.spec
        self.encode = PhotoMemory(engine)
        self.text_features = ArrayMemory(TEXT_FEATURE_BYTES)

    @cached_property
    def offsets(self) -> Offsets | None:
        """Of its checkpoint's querybank; None = it has none."""
        if self.querybank_file is None or self.consensus is None:
            return None
        return Offsets(read_querybank(self.querybank_file), self.consensus)

    @property
    def explains(self) -> bool:
        """Whether ``explain`` works on this engine; some models need torch for it."""
        return self.engine.explains

    @property
    def matches(self) -> bool:
        """Whether the model has the heads of the first stage."""
        return self.spec.matches

    @property
    def fingerprint(self) -> str:
        """Identifies the weights behind the features for contrast."""
        return self.engine.fingerprint

    def check_matches(self) -> None:
        """Raises InputError: the model has no heads of the first stage."""
        if not self.matches:
            raise InputError(
                f"{self.name} cannot match: its checkpoint has no heads of the first stage; choose another model"
            )

    def word_pieces(self, texts: Sequence[str]) -> TextPieces:
        """The Q-Former's word pieces of texts. Raises InputError: a text is empty or too long."""
        pieces = TextPieces(*self.spec.words.encode_arrays(texts, self.spec.max_pieces))
        if any(np.asarray(pieces.mask).sum(1) <= 2):  # [CLS] and [SEP] alone
            raise InputError("a text is empty: say what to look for")
        return pieces

    def count_pieces(self, texts: Sequence[str]) -> int:
        """The number of word pieces of all texts. Raises as ``word_pieces``."""
        return int(np.asarray(self.word_pieces(texts).mask).sum()) if texts else 0

    def pooled(self, images: Sequence[ImageSource]) -> Floats:
        """The mean of each photo's image features over the grid: ``[B, D]``."""
        return self.engine.pooled(self.encode(images))

    def unknown_texts(self, texts: Sequence[str]) -> list[str]:
        """The texts of which the model knows no word; results for them are random."""
        return [text for text in texts if not self.spec.words.knows_a_word(text)]

    def itc_images(self, images: Sequence[ImageSource]) -> Floats:
        """Features for contrast of each photo's queries, ``[B, Q, E]``, of length 1."""
        self.check_matches()
        return self.engine.itc_images(self.encode(images))

    def itc_texts(self, texts: Sequence[str]) -> Floats:
        """Features for contrast of each text, ``[K, E]``, of length 1."""
        self.check_matches()
        known = {text: self.text_features.get(text) for text in texts}
        new = [text for text, features in known.items() if features is None]
        for first in range(0, len(new), MATCHED_TOGETHER):
            part = new[first : first + MATCHED_TOGETHER]
            for text, features in zip(part, self.engine.itc_texts(self.word_pieces(part)), strict=True):
                known[text] = features
                self.text_features.put(text, features)
        return np.stack([np.asarray(known[text], dtype=np.float32) for text in texts])

    def similarity(self, images: Sequence[ImageSource], texts: Sequence[str]) -> Floats:
        """How close photos and texts are, without matching, which costs much more: the cosine of contrast, plus what the consensus and the
        querybank say: ``[B, K]``."""
        return self.similarity_of_features(*self.search_features(images), texts)

    def search_features(self, images: Sequence[ImageSource]) -> tuple[Floats, Floats]:
        """What ``similarity`` needs of photos: features for contrast ``[B, Q, E]``, pooled ones ``[B, D]``; without a consensus D is 0."""
        self.check_matches()
        features = self.encode(images)
        none = np.zeros((len(features), 0), np.float32)
        return self.engine.itc_images(features), none if self.consensus is None else self.engine.pooled(features)

    def search_texts(self, texts: Sequence[str]) -> SearchTexts:
        """What ``similarity`` needs of texts: computed once for any number of photos."""
        features, none = self.itc_texts(texts), np.zeros(len(texts), np.float32)
        if self.consensus is None:
            return SearchTexts(features, None, none)
        directions = self.consensus.vectors(texts)
        if self.offsets is None:
            return SearchTexts(features, directions, none)
        parts = [slice(first, first + MATCHED_TOGETHER) for first in range(0, len(texts), MATCHED_TOGETHER)]
        offsets = [self.offsets.of_texts(features[part], directions[part]) for part in parts]
        return SearchTexts(features, directions, np.concatenate(offsets))

    def similarity_of_features(self, itc_images: Floats, pooled: Floats, texts: Sequence[str]) -> Floats:
        """The ``similarity`` of photos by their ``search_features`` with texts: ``[B, K]``."""
        return self.similarity_to(self.search_texts(texts), itc_images, pooled)

    def similarity_to(self, texts: SearchTexts, itc_images: Floats, pooled: Floats) -> Floats:
        """``similarity_of_features`` with texts that were read once."""
        agreement = self.normalised_agreement(pooled, itc_images, texts)
        return np.asarray((itc_images @ texts.features.T).max(1) + agreement, np.float32)

    def normalised_agreement(self, pooled: Floats, itc_images: Floats, texts: SearchTexts) -> Floats:
        """The agreement of photos with texts, less the offsets of both, if there is a querybank: ``[B, K]``.

        ``pooled``, ``itc_images``: of the photos, ``[B, D]`` and ``[B, Q, E]``.
        """
        if self.consensus is None or texts.directions is None:
            return np.zeros((len(itc_images), len(texts.features)), np.float32)
        expected = self.consensus.expected(pooled)
        agreement = expected @ texts.directions.T
        if self.offsets is None:
            return agreement
        return agreement - self.offsets.of_photos(itc_images, expected)[:, None] - texts.offsets

    def match(self, images: Photos, texts: str | Sequence[str], *, explain: bool = False) -> list[Match]:
        """How well every photo fits every text, photo by photo.

        ``explain``: also where the model looked for each word (``Match.evidence``).

        Raises:
            InputError: no photo, an empty text, a text too long for the Q-Former, an unreadable photo; a model that cannot match.
        """
        self.check_matches()
        photos, texts = as_list(images), [texts] if isinstance(texts, str) else list(texts)
        if not photos or not texts:
            raise InputError("matching needs at least one photo and one text")
        features = self.encode(photos)
        matches: list[Match] = []
        parts = [texts[first : first + MATCHED_TOGETHER] for first in range(0, len(texts), MATCHED_TOGETHER)]
        read = [(self.word_pieces(part), self.itc_texts(part)) for part in parts]
        searched, together = self.search_texts(texts), max(1, MATCHED_TOGETHER // len(texts))
        for first in range(0, len(photos), together):
            some = features[first : first + together]
            (itc_images, *_), scores = zip(*(self.engine.match(some, *part) for part in read), strict=True)
            columns = MatchArrays(*(np.concatenate(same, 1) for same in zip(*scores, strict=True)))
            agreement = self.normalised_agreement(self.engine.pooled(some), itc_images, searched)
            columns = columns._replace(rerank=columns.rerank + np.float32(self.spec.contrast_weight) * agreement)
            for i in range(len(some)):
                rows = zip(*(column[i].tolist() for column in columns), strict=True)
                matches += [Match(first + i, t, *numbers) for t, numbers in enumerate(rows)]
        if explain:
            matches = [replace(m, evidence=self.match_evidence(photos[m.image], texts[m.text])) for m in matches]
        return matches

    def match_evidence(self, image: ImageSource, text: str) -> Evidence:
        """Where each word of a text was looked for in a photo; then, as one word, where the best query of contrast looked."""
        (features,), pieces = self.encode([image]), self.word_pieces([text])
        vocabulary = self.spec.words.words
        words, spans = join_word_pieces([vocabulary[i] for i in np.asarray(pieces.input_ids)[0, 1:-1].tolist()])
        *by_piece, best = self.engine.match_maps(features, pieces)
        maps = np.concatenate([sum_over_words(np.stack(by_piece), spans), best[None]])[:, None]
        maps = over_photos(maps, [image], self.engine.photos.pixels)
        return Evidence((*words, "(whole text)"), maps, (0.0,) * len(maps))
