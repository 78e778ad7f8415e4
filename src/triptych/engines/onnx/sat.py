"""Show, Attend and Tell on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.engines.describe import describe_sat
from triptych.engines.interface import Array, SatSpec
from triptych.engines.onnx.common import OnnxEncoder, Opened, floats
from triptych.engines.onnx.joint import same_arrays
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.text import EmbeddingTable, Ids
from triptych.evidence import Floats
from triptych.text.vocabulary import BOS

ROWS_TOGETHER = 24  # with more, what the attention adds up for each row and cell does not fit a core's cache


class OnnxCaptionState(NamedTuple):
    """The state of decoding; a ``generate.State``."""

    annotations: Floats  # [B, L, D]
    keys: Floats  # [B, L, A]: the annotations, projected for the attention
    h: Floats  # [B, K, n]
    c: Floats  # [B, K, n]

    def reorder(self, rows: NDArray[np.int64]) -> OnnxCaptionState:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``; the rows of one photo stay together."""
        rows = np.asarray(rows)
        annotations, keys = self.annotations, self.keys
        photos = rows[:, 0] // self.h.shape[1]
        if not np.array_equal(photos, np.arange(len(annotations))):
            annotations, keys = annotations[photos], keys[photos]
        h, c = (x.reshape(-1, x.shape[2])[rows] for x in (self.h, self.c))
        return OnnxCaptionState(annotations, keys, h, c)


class OnnxSat(OnnxEncoder):
    """An ``interface.SatEngine``. ``embed``: the word embeddings."""

    def __init__(self, opened: Opened, spec: SatSpec, embed: EmbeddingTable) -> None:
        super().__init__(opened)
        self.spec, self.embed = spec, embed
        self.annotate, self.start, self.next = (
            open_session(opened.folder / f"{name}.onnx") for name in ("annotations", "start", "step")
        )

    def read(self, features: Sequence[Array]) -> Floats:
        return self.annotate.run(None, {"features": np.stack([floats(photo) for photo in features])})[0]

    def mean(self, annotations: Array) -> Floats:
        return floats(annotations).mean(1)

    def pooled(self, features: Sequence[Array]) -> Floats:
        return self.mean(self.read(features))

    def prefill(self, inputs: Array) -> tuple[Floats, OnnxCaptionState]:
        """``annotations [B, L, D]`` -> logits of the first word ``[B, V]``, and the state after BOS with one row for each photo."""
        annotations = floats(inputs)
        keys, h, c = self.start.run(["keys", "h", "c"], {"annotations": annotations})
        return self.step(np.full(len(annotations), BOS), OnnxCaptionState(annotations, keys, h[:, None], c[:, None]))

    def step(self, ids: Ids, state: OnnxCaptionState) -> tuple[Floats, OnnxCaptionState]:
        """One word for each row: ``ids [B * K]`` -> logits of the next ``[B * K, V]``, and the state after it."""
        embedded = self.embed(np.asarray(ids)).reshape(*state.h.shape[:2], -1)
        logits, h, c = self.next.run(["logits", "new_h", "new_c"], {"embedded": embedded, **state._asdict()})
        return logits, state._replace(h=h, c=c)

    @property
    def explains(self) -> bool:
        return True

    def joint_steps(self) -> JointSat:
        return JointSat(self)

    def maps(self, features: Array, ids: Sequence[int]) -> Floats:
        annotations = self.read([features])
        keys, h, c = self.start.run(["keys", "h", "c"], {"annotations": annotations})
        state, rows = OnnxCaptionState(annotations, keys, h[:, None], c[:, None]), []
        for word in (BOS, *ids[:-1]):
            given = {"embedded": self.embed(np.array([[word]])), **state._asdict()}
            alpha, h, c = self.next.run(["alpha", "new_h", "new_c"], given)
            state = state._replace(h=h, c=c)
            rows.append(alpha.reshape(self.photos.grid))
        return np.stack(rows)

    def info(self) -> dict[str, Any]:
        config = self.opened.config
        return self.with_precision(describe_sat(config, self.photos, len(self.spec.vocabulary), self.size))


class JointSat:
    """An ``interface.JointSteps``: captions with equal numbers of beams are stepped together, ``ROWS_TOGETHER`` rows at a time."""

    enough_rows = 8

    def __init__(self, engine: OnnxSat) -> None:
        self.engine = engine
        self.photos: list[tuple[list[Floats], Floats, Floats]] = []  # of each part of the last step, see ``grids``

    def step(self, ids: Sequence[Ids], states: Sequence[OnnxCaptionState]) -> list[tuple[Floats, OnnxCaptionState]]:
        if len(states) == 1:
            return [self.engine.step(ids[0], states[0])]
        results: dict[int, tuple[Floats, OnnxCaptionState]] = {}
        before, self.photos = self.photos, []
        for group in parts_of([state.h.shape[:2] for state in states]):
            captions = [states[index] for index in group]
            beams = captions[0].h.shape[1]
            h, c = np.concatenate([state.h for state in captions]), np.concatenate([state.c for state in captions])
            self.photos.append(self.grids(before, captions))
            together = OnnxCaptionState(*self.photos[-1][1:], h, c)
            logits, after = self.engine.step(np.concatenate([ids[index] for index in group]), together)
            ends = np.cumsum([len(state.h) for state in captions])[:-1]
            parts = zip(np.split(logits, ends * beams), np.split(after.h, ends), np.split(after.c, ends), strict=True)
            for index, state, (own, h, c) in zip(group, captions, parts, strict=True):
                results[index] = own, state._replace(h=h, c=c)
        return [results[index] for index in range(len(states))]

    def grids(
        self, before: Sequence[tuple[list[Floats], Floats, Floats]], states: Sequence[OnnxCaptionState]
    ) -> tuple[list[Floats], Floats, Floats]:
        """The photos of ``states``, and their annotations and keys in one array each, which are reused while the photos are the same."""
        annotations = [state.annotations for state in states]
        known = next((photos for photos in before if same_arrays(photos[0], annotations)), None)
        if known is None:
            keys = np.concatenate([state.keys for state in states])
            known = annotations, np.concatenate(annotations), keys
        return known


def parts_of(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The indices of states of shapes (photos, beams), in parts with equal beams: single states, or several with at most ``ROWS_TOGETHER``
    rows."""
    parts: list[list[int]] = []
    for beams in sorted({beams for _, beams in shapes}):
        rows = ROWS_TOGETHER
        for index, (photos, own) in enumerate(shapes):
            if own == beams:
                rows += photos * beams
                if rows > ROWS_TOGETHER:
                    parts.append([])
                    rows = photos * beams
                parts[-1].append(index)
    return parts
