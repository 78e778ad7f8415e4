"""How well photos and texts match: BLIP-2's contrast (ITC) and matching (ITM), and in the score for sorting the consensus
(``tasks.reranking``) and querybank normalisation (``tasks.querybank``), too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

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
        if any(not text.strip() for text in texts):
            raise InputError("a text is empty: say what to look for")
        return TextPieces(*self.spec.words.encode_arrays(texts, self.spec.max_pieces))

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

    def similarity_of_features(self, itc_images: Floats, pooled: Floats, texts: Sequence[str]) -> Floats:
        """The ``similarity`` of photos by their ``search_features`` with texts: ``[B, K]``."""
        itc_texts = self.itc_texts(texts)
        agreement = self.normalised_agreement(pooled, itc_images, texts, itc_texts)
        return np.asarray((itc_images @ itc_texts.T).max(1) + agreement, np.float32)

    def normalised_agreement(
        self, pooled: Floats, itc_images: Floats, texts: Sequence[str], itc_texts: Floats
    ) -> Floats:
        """The agreement of photos with texts, less the offsets of both, if there is a querybank: ``[B, K]``.

        Args:
            pooled, itc_images: of the photos, ``[B, D]`` and ``[B, Q, E]``.
            itc_texts: of the texts, ``[K, E]``.
        """
        if self.consensus is None:
            return self.agreement(pooled, texts)
        directions = self.consensus.expected(pooled)
        agreement = directions @ self.consensus.vectors(texts).T
        if self.offsets is None:
            return agreement
        of_photos = self.offsets.of_photos(itc_images, directions)
        return agreement - of_photos[:, None] - self.offsets.of_texts(itc_texts, texts)

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
        itc_texts, together = self.itc_texts(texts), max(1, MATCHED_TOGETHER // len(texts))
        for first in range(0, len(photos), together):
            some = features[first : first + together]
            (itc_images, *_), scores = zip(*(self.engine.match(some, *part) for part in read), strict=True)
            columns = MatchArrays(*(np.concatenate(same, 1) for same in zip(*scores, strict=True)))
            agreement = self.normalised_agreement(self.engine.pooled(some), itc_images, texts, itc_texts)
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
