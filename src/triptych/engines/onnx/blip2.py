"""BLIP-2 on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.locate import features_fingerprint
from triptych.engines.describe import describe_blip2
from triptych.engines.interface import Array, Blip2Spec, MatchArrays, Piece, SoftPrompt, TextPieces
from triptych.engines.onnx.common import OnnxEncoder, Opened, floats, score_texts
from triptych.engines.onnx.joint import JointText
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.text import HIDDEN, ROOM, EmbeddingTable, Ids, OnnxLanguageModel, TextCache
from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.logits import softmax
from triptych.systems.configs import Blip2Config


class OnnxQFormer:
    """The Q-Former's sessions, opened at their first use, and its word embeddings."""

    def __init__(self, directory: Path, config: Blip2Config, words: EmbeddingTable, positions: Floats) -> None:
        self.directory, self.config, self.words, self.positions = directory, config, words, positions
        self.sessions = SessionFolder(directory)

    def text(self, ids: Ids, start: int = 0) -> Floats:
        """Embeddings of ``ids [R, T]`` at the positions from ``start`` on, ``[R, T, D]``. Raises InputError: more than the positions."""
        end = start + ids.shape[1]
        if end > len(self.positions):
            raise InputError(f"the text has {end} word pieces: the Q-Former reads {len(self.positions)} at most")
        return self.words(ids) + self.positions[start:end]

    def photos(self, features: Sequence[Array]) -> dict[str, Floats]:
        """The keys and values of B photos, the ``image`` of the other methods: computed once for any number of texts."""
        return self.sessions.run("photos", {"features": np.stack([floats(photo) for photo in features])})

    def read(self, image: Mapping[str, Floats], texts: TextPieces | None, wanted: Sequence[str]) -> list[Floats]:
        """The graph ``both`` over B photos alone, or each with K texts, ids and mask ``[B * K, T]``, ordered by photo."""
        sizes, photos = self.config.qformer, len(image["image_keys_0"])
        if texts is None:
            text = np.zeros((photos, 0, sizes.dim), np.float32)
            present = np.ones((photos, sizes.queries), bool)
        else:
            ids, mask = (np.asarray(x) for x in texts)
            text = self.text(ids)
            present = np.concatenate([np.ones((len(ids), sizes.queries), bool), mask.astype(bool)], 1)
        given = {"text": text, "mask": square(present), "by_photo": np.array([photos, -1, sizes.dim])}
        outputs = self.sessions.run("both", given | dict(image), wanted)
        return [outputs[name] for name in wanted]

    def text_features(self, texts: TextPieces) -> Floats:
        """``[K, T]`` -> features for contrast ``[K, F]``, of length 1."""
        ids, mask = (np.asarray(x) for x in texts)
        given = {"text": self.text(ids), "mask": square(mask.astype(bool))}
        return self.sessions.run("texts", given)["itc"]


class SessionFolder:
    """The graphs in a folder, each opened at its first use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, Any] = {}

    def run(
        self, name: str, given: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None = None
    ) -> dict[str, Floats]:
        """Outputs by name; all, or those ``wanted``."""
        session = self._open.get(name) or self._open.setdefault(name, open_session(self.directory / f"{name}.onnx"))
        names = [output.name for output in session.get_outputs()] if wanted is None else list(wanted)
        return dict(zip(names, session.run(names, dict(given)), strict=True))


def square(present: NDArray[np.bool_]) -> Floats:
    """``present [R, S]``, True = may be attended to -> the mask that is added to the scores, ``[R, 1, S, S]``."""
    rows, length = present.shape
    hidden = np.where(present, np.float32(0), np.float32(HIDDEN))
    return np.ascontiguousarray(np.broadcast_to(hidden[:, None, None], (rows, 1, length, length)))


class OnnxBlip2(OnnxEncoder):
    """An ``interface.Blip2Engine``. ``temperature``: of contrast; None without the heads of the first stage."""

    def __init__(
        self,
        opened: Opened,
        spec: Blip2Spec,
        qformer: OnnxQFormer,
        lm: OnnxLanguageModel | None,
        temperature: float | None,
    ) -> None:
        super().__init__(opened)
        self.spec, self.qformer, self._lm, self.temperature = spec, qformer, lm, temperature
        self.writer = OnnxCaptionWriter(qformer, spec.words.dec)

    @property
    def lm(self) -> OnnxLanguageModel:
        assert self._lm is not None  # callers check ``spec.tokenizer``
        return self._lm

    @property
    def fingerprint(self) -> str:
        return features_fingerprint(self.opened.config)

    # The language model after the soft prompts

    def read(
        self, features: Sequence[Array], instructions: TextPieces | None, with_cells: bool = False
    ) -> Sequence[SoftPrompt]:
        """The Q-Former over B photos, each with its instruction, and the projection to the language model's width."""
        if with_cells:
            return self.reference.read(features, instructions, True)
        (vectors,) = self.qformer.read(self.qformer.photos(features), instructions, ["soft_prompt"])
        return [SoftPrompt(photo, None) for photo in vectors]

    def prefill(self, inputs: Sequence[Sequence[Piece]]) -> tuple[Floats, TextCache]:
        """Read prompts, row by row: the logits ``[B, V]`` of the next token, and the state to continue with."""
        rows = [np.concatenate([self.embed(piece) for piece in pieces]) for pieces in inputs]
        cache = self.lm.start(len(rows), max(map(len, rows)) + ROOM)
        return np.concatenate([self.lm.read(cache, i, row) for i, row in enumerate(rows)]), cache

    def embed(self, piece: Piece) -> Floats:
        """The embeddings of token ids, or a soft prompt unchanged: ``[n, E]``."""
        return self.lm.embed(np.array(piece, np.int64)) if isinstance(piece, list) else floats(piece)

    def step(self, ids: Ids, state: TextCache) -> tuple[Floats, TextCache]:
        return self.lm.step(np.asarray(ids), state), state

    def joint_steps(self) -> JointText:
        return JointText(self.lm)

    def score(self, logits: Array, state: TextCache, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        return score_texts(self.lm, floats(logits), state, texts)

    def maps(self, pieces: Sequence[Piece], cells: Sequence[Array], ids: Sequence[int]) -> Floats:
        return self.reference.maps(pieces, cells, ids)

    def writer_maps(self, features: Array, ids: Sequence[int]) -> Floats:
        return self.reference.writer_maps(features, ids)

    # Matching

    def itc_images(self, features: Sequence[Array]) -> Floats:
        return self.qformer.read(self.qformer.photos(features), None, ["itc"])[0]

    def itc_texts(self, texts: TextPieces) -> Floats:
        return self.qformer.text_features(texts)

    def match(self, features: Sequence[Array], texts: TextPieces, itc_texts: Floats) -> tuple[Floats, MatchArrays]:
        assert self.temperature is not None  # callers check ``spec.matches``
        image = self.qformer.photos(features)
        (queries,) = self.qformer.read(image, None, ["itc"])
        cosine = (queries @ itc_texts.T).max(1)
        photos, count = cosine.shape
        ids, mask = (np.tile(np.asarray(x), (photos, 1)) for x in texts)
        (itm,) = self.qformer.read(image, TextPieces(ids, mask), ["itm"])
        logits = itm.reshape(photos, count, 2)
        rerank = logits[..., 1] + np.float32(self.qformer.config.contrast_weight) * cosine
        scores = MatchArrays(cosine, cosine / np.float32(self.temperature), softmax(logits)[..., 1], rerank)
        return queries, scores

    def match_maps(self, features: Array, texts: TextPieces) -> Floats:
        return self.reference.match_maps(features, texts)

    def info(self) -> dict[str, Any]:
        return self.with_precision(describe_blip2(self.opened.config, self.photos, self.size))


class WriterState(NamedTuple):
    """Captions being written: the keys and values of every layer, ``[R, S, D]``, by the names of the graph's inputs; the words so far."""

    past: dict[str, Floats]
    words: int

    def reorder(self, rows: NDArray[np.int64]) -> WriterState:
        """Row r continues the old row ``rows.flatten()[r]``."""
        flat = np.asarray(rows).reshape(-1)
        return WriterState({name: array[flat] for name, array in self.past.items()}, self.words)


class OnnxCaptionWriter:
    """The Q-Former as a writer of captions (ITG): a ``StepModel`` over the image features of B photos. ``dec``: the id of [DEC]."""

    def __init__(self, qformer: OnnxQFormer, dec: int) -> None:
        self.qformer, self.dec = qformer, dec

    def prefill(self, inputs: Sequence[Array]) -> tuple[Floats, WriterState]:
        names = [f"past_{name}_{i}" for i in range(self.qformer.config.qformer.layers) for name in ("keys", "values")]
        past = self.qformer.read(self.qformer.photos(inputs), None, names)
        state = WriterState(dict(zip(names, past, strict=True)), 0)
        return self.step(np.full(len(inputs), self.dec), state)

    def step(self, ids: Ids, state: WriterState) -> tuple[Floats, WriterState]:
        text = self.qformer.text(np.asarray(ids)[:, None], state.words)
        outputs = self.qformer.sessions.run("writer", {"text": text} | state.past)
        logits = outputs.pop("logits")
        past = {name.replace("new_", "past_"): array for name, array in outputs.items()}
        return logits, WriterState(past, state.words + 1)
