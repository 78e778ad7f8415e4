"""Running a language model: prompts are read row by row, and all rows are written together; keys and values are updated in place.

Each prompt is read alone, so no row has padding; when writing, every row counts its own positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from triptych.engines.onnx.matrix import BLOCK
from triptych.errors import InputError
from triptych.evidence import Floats

Ids = NDArray[np.int64]

HIDDEN = -1e30  # added to the scores of masked keys
ROOM = 64  # positions of a new cache beyond its prompt

Arrays = Mapping[str, NDArray[Any]]


class LanguageSize(Protocol):
    """The sizes of a language model; ``nn.decoder.DecoderConfig`` is one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def embed_width(self) -> int: ...


class EmbeddingTable:
    """Word embeddings, mapped from the disk, so that only the rows of words in use are read."""

    def __init__(self, codes: NDArray[Any], scale: Floats | None) -> None:
        """``codes``: fp32 ``[V, E]``, or uint8 ``[V, E]`` with a ``scale [V, E / 32]`` for each block (see ``matrix``)."""
        self.codes, self.scale = codes, scale

    def __call__(self, ids: Ids) -> Floats:
        """``ids [..]`` -> ``[.., E]``."""
        codes = self.codes[ids]
        if self.scale is None:
            return np.asarray(codes, np.float32)
        scale = self.scale[ids]
        blocks = codes.reshape(*scale.shape, BLOCK).astype(np.float32) - 128
        return (blocks * scale[..., None]).reshape(codes.shape)


class TextCache:
    """Keys and values of B rows, ``[2 * layers, B, G, C, d]``, and the number of filled positions of each row."""

    def __init__(self, config: LanguageSize, buffer: Floats, lengths: NDArray[np.int32]) -> None:
        self.config, self.buffer, self.lengths = config, buffer, lengths
        self.writing: Writing | None = None
        self._inputs = 0  # the number of inputs, since the last reorder; 0 = none yet
        self._shared = 0  # the rows of an input are equal before this position

    @property
    def capacity(self) -> int:
        """Positions that each row has room for."""
        return int(self.buffer.shape[3])

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return int(self.lengths.max(initial=0))

    def make_room(self, positions: int) -> None:
        """Make room for this number of positions in every row. Raises InputError: more than the model can read."""
        if positions > self.config.max_positions:
            raise InputError(
                f"the text has {positions} tokens: the language model reads {self.config.max_positions} at most"
            )
        if positions > self.capacity:
            old, kept = self.buffer, self.length
            capacity = min(max(positions, 2 * self.capacity), self.config.max_positions)
            self.buffer = allocate_cache(self.config, len(self.lengths), capacity)
            self.buffer[:, :, :, :kept] = old[:, :, :, :kept]

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` positions; nothing is copied."""
        np.minimum(self.lengths, length, out=self.lengths)
        self._shared = min(self._shared, length)

    def fork(self, rows: Ids) -> TextCache:
        """A new cache whose row i is a copy of the row ``rows[i]``; this one stays as it is."""
        new = TextCache(self.config, allocate_cache(self.config, len(rows), self.capacity), self.lengths[rows])
        for target, source in enumerate(rows):
            length = self.lengths[source]
            new.buffer[:, target, :, :length] = self.buffer[:, source, :, :length]
        new._inputs = len(rows)
        return new

    def reorder(self, rows: Ids) -> TextCache:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``. This cache must not be used afterwards.

        The rows of an input share its prompt, so only the positions after the prompt are copied.
        """
        flat, (inputs, count) = rows.reshape(-1), rows.shape
        unchanged = np.arange(len(flat))
        if len(flat) == len(self.lengths) and np.array_equal(flat, unchanged):
            return self
        same_inputs = self._inputs == inputs and len(flat) == len(self.lengths)
        if same_inputs and np.array_equal(flat // count, unchanged // count):
            tail = slice(self._shared, self.length)
            self.buffer[:, :, :, tail] = self.buffer[:, :, :, tail][:, flat]
            self.lengths = self.lengths[flat]
            return self
        new = self.fork(flat)
        expanded = bool((rows == rows[:, :1]).all())
        new._inputs, new._shared = inputs, int(new.lengths.min()) if expanded else self._shared
        return new


def allocate_cache(config: LanguageSize, rows: int, capacity: int) -> Floats:
    return np.empty((2 * config.layers, rows, config.groups, capacity, config.head_width), np.float32)


class OnnxLanguageModel:
    """A language model's session and its word embeddings. The state of a text is passed in and out, so one model serves many texts."""

    def __init__(self, session: ort.InferenceSession, config: LanguageSize, embed: EmbeddingTable) -> None:
        self.session, self.config, self.embed = session, config, embed

    def start(self, rows: int, capacity: int = ROOM) -> TextCache:
        buffer = allocate_cache(self.config, rows, min(capacity, self.config.max_positions))
        return TextCache(self.config, buffer, np.zeros(rows, np.int32))

    def read(
        self, cache: TextCache, row: int, inputs: Floats, context: Arrays | None = None, scored: Ids | None = None
    ) -> Floats:
        """Read the next tokens of one row.

        Args:
            inputs: their embeddings ``[S, E]``.
            context: further inputs of the graph.
            scored: the tokens among the S whose logits are returned; None = the last.

        Returns:
            logits ``[N, V]`` after each of them.

        Raises:
            InputError: there is no token, or the text is longer than the model can read.
        """
        if not len(inputs):
            raise InputError("the prompt is empty: the language model needs at least one token")
        length = int(cache.lengths[row]) + len(inputs)
        cache.make_room(length)
        scored = np.array([len(inputs) - 1]) if scored is None else scored
        logits = np.empty((len(scored), self.config.vocab_size), np.float32)
        given: dict[str, NDArray[Any]] = {
            "embeddings": np.ascontiguousarray(inputs[None], np.float32),
            "last_positions": np.array([length - 1], np.int32),
            "total": np.array([length], np.int32),
            "scored": scored,
        }
        binding = bind_cache(self.session, cache.buffer[:, row : row + 1])
        bind_inputs(binding, given | dict(context or {}))
        bind_output(binding, "logits", logits)
        self.session.run_with_iobinding(binding)
        cache.lengths[row] = length
        return logits

    def step(self, ids: Ids, cache: TextCache, context: Arrays | None = None) -> Floats:
        """One token for each row: ``ids [B]`` -> the logits ``[B, V]`` of the next."""
        cache.make_room(cache.length + 1)
        writing = cache.writing
        if writing is None or writing.buffer is not cache.buffer:
            writing = cache.writing = Writing(self.session, cache)
        writing.embeddings[:, 0] = self.embed(ids)
        writing.total[0] = cache.length + 1
        writing.last_positions[:] = cache.lengths
        if context is not writing.context:
            bind_inputs(writing.binding, context or {})
            writing.context = context
        logits = np.empty((len(ids), self.config.vocab_size), np.float32)
        bind_output(writing.binding, "logits", logits)
        self.session.run_with_iobinding(writing.binding)
        cache.lengths += 1
        return logits


class Writing:
    """The memory that a step over all rows of a cache reads and writes, bound once."""

    def __init__(self, session: ort.InferenceSession, cache: TextCache) -> None:
        rows = len(cache.lengths)
        self.buffer = cache.buffer
        self.embeddings = np.empty((rows, 1, cache.config.embed_width), np.float32)
        self.last_positions, self.total = np.empty(rows, np.int32), np.empty(1, np.int32)
        self.scored = np.arange(rows)
        self.context: Arrays | None = None
        self.binding = bind_cache(session, cache.buffer)
        names = ("embeddings", "last_positions", "total", "scored")
        bind_inputs(self.binding, {name: getattr(self, name) for name in names})


def bind_cache(session: ort.InferenceSession, buffer: Floats) -> ort.IOBinding:
    """A binding whose keys and values ``[2 * layers, B, G, C, d]`` are read and written in place."""
    binding = session.io_binding()
    for index, array in enumerate(buffer):
        name = f"{('keys', 'values')[index % 2]}_{index // 2}"
        bind_inputs(binding, {name: array})
        bind_output(binding, f"new_{name}", array)
    return binding


def bind_inputs(binding: ort.IOBinding, arrays: Arrays) -> None:
    """Bind contiguous arrays, which must be kept in place as long as the binding is used."""
    for name, array in arrays.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
