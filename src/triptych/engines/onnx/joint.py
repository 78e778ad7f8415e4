"""Stepping the texts of several callers together, although each caller has its own cache.

A cache that joins is copied once into a shared buffer; from then on its own buffer is a view of that one. Rows leave and join between
steps: the rows of a cache that no longer exists are replaced by the last rows or by new ones.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from triptych.engines.onnx.text import ROOM, Arrays, Ids, LanguageSize, OnnxLanguageModel, TextCache, allocate_cache
from triptych.evidence import Floats

LONG = 1024  # positions; longer texts are stepped alone, so that not all rows need this much room
ENOUGH_ROWS = 16  # each further one costs nearly what it does alone
OUTSIDE = 2**31  # the place of rows that are not in the shared buffer yet


class SharedBuffer:
    """The rows of several caches, one after another, as one cache."""

    def __init__(self, config: LanguageSize) -> None:
        self.config = config
        self.buffer = allocate_cache(config, 0, 0)
        self.whole = TextCache(config, self.buffer, np.zeros(0, np.int32))
        self._members: list[weakref.ref[TextCache]] = []

    def join(self, caches: Sequence[TextCache]) -> list[int]:
        """Make ``whole`` consist of the rows of ``caches``; returns their order (indices of ``caches``).

        Rows of other caches that are still in use are not moved.
        """
        rows, positions = sum(len(cache.lengths) for cache in caches), max(cache.length for cache in caches) + 1
        order = None
        if rows <= self.buffer.shape[1] and positions <= self.buffer.shape[3]:
            order = self._arrange(caches)
        if order is None:
            capacity = min(positions + ROOM, self.config.max_positions)
            self.buffer = allocate_cache(self.config, 2 * rows, max(capacity, positions))
            self._members = []
            order = self._arrange(caches)
            assert order is not None  # an empty buffer has no rows in use
        if self.whole.buffer.base is not self.buffer or len(self.whole.lengths) != rows:
            self.whole = TextCache(self.config, self.buffer[:, :rows], np.zeros(rows, np.int32))
        self.whole.lengths = np.concatenate([caches[index].lengths for index in order])
        return order

    def _arrange(self, caches: Sequence[TextCache]) -> list[int] | None:
        """Fill the buffer with ``caches`` from its beginning, moving as few rows as possible; None: rows in use are in the way."""
        joining = set(map(id, caches))
        in_use = {row for cache in self._alive() if id(cache) not in joining for row in self._rows(cache)}
        places = [self._place(cache) for cache in caches]
        queue = deque(sorted(range(len(caches)), key=places.__getitem__))
        order: list[int] = []
        first = 0
        while queue:
            gap = 0 if places[queue[0]] == OUTSIDE else places[queue[0]] - first
            index = queue.pop() if len(caches[queue[-1]].lengths) <= gap else queue.popleft()
            rows = range(first, first + len(caches[index].lengths))
            if not in_use.isdisjoint(rows):
                return None
            if places[index] != first:
                self._move(caches[index], rows)
            order.append(index)
            first = rows.stop
        return order

    def _move(self, cache: TextCache, rows: range) -> None:
        """Copy a cache to ``rows`` of the buffer, which may overlap its own rows if those come later."""
        for source, target in enumerate(rows):
            length = cache.lengths[source]
            self.buffer[:, target, :, :length] = cache.buffer[:, source, :, :length]
        if self._place(cache) == OUTSIDE:
            self._members.append(weakref.ref(cache))
        cache.buffer, cache.writing = self.buffer[:, rows.start : rows.stop], None

    def _alive(self) -> Iterator[TextCache]:
        self._members = [member for member in self._members if member() is not None]
        return (cache for member in self._members if (cache := member()) is not None)

    def _place(self, cache: TextCache) -> int:
        """The index of its first row in the buffer, or OUTSIDE."""
        if cache.buffer.base is not self.buffer:
            return OUTSIDE
        return int(cache.buffer.ctypes.data - self.buffer.ctypes.data) // self.buffer.strides[1]

    def _rows(self, cache: TextCache) -> range:
        place = self._place(cache)
        return range(0) if place == OUTSIDE else range(place, place + len(cache.lengths))


class JointText:
    """An ``interface.JointSteps`` of a language model."""

    enough_rows = ENOUGH_ROWS

    def __init__(self, lm: OnnxLanguageModel) -> None:
        self.lm, self.shared = lm, SharedBuffer(lm.config)

    def step(
        self,
        ids: Sequence[Ids],
        states: Sequence[TextCache],
        context: Callable[[Sequence[int]], Arrays] | None = None,
    ) -> list[tuple[Floats, TextCache]]:
        """``context``: the graph's further inputs for the states with these indices, in this order."""
        together = [index for index, cache in enumerate(states) if cache.length < LONG]
        if len(together) < 2:
            together = []
        logits: dict[int, Floats] = {}
        for index in range(len(states)):
            if index not in together:
                logits[index] = self.lm.step(ids[index], states[index], context([index]) if context else None)
        if together:
            order = [together[place] for place in self.shared.join([states[index] for index in together])]
            given = context(order) if context else None
            rows = self.lm.step(np.concatenate([ids[index] for index in order]), self.shared.whole, given)
            ends = np.cumsum([len(ids[index]) for index in order])[:-1]
            logits |= zip(order, np.split(rows, ends), strict=True)
            for index in together:
                states[index].lengths += 1
        return [(logits[index], cache) for index, cache in enumerate(states)]


def same_arrays(left: Sequence[object], right: Sequence[object]) -> bool:
    """Whether both contain the same objects (by identity)."""
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
