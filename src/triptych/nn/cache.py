"""The key/value cache of one run of a model. The caller makes it and passes it in; modules never store it.

Buffers are preallocated and double in size when they are full. The cache knows which of its positions are padding, so a ragged batch
gives the same results as its items one by one. A common prompt is read once: ``truncate`` goes back to it without copying,
``fork`` copies it for other rows. For inference only: training reads whole texts and needs no cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPARE_POSITIONS = 64  # of a new cache, behind its prompt


class LayerCache:
    """Keys and values of one layer, ``[B, G, capacity, d]``; the first ``length`` positions are filled."""

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self._capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``[B, G, T, d]`` and return views of everything so far, ``[B, G, length, d]``."""
        start, end = self.length, self.length + keys.shape[2]
        if self._buffers is None or end > self._capacity:
            self._grow(end, keys, values)
        assert self._buffers is not None
        old_keys, old_values = self._buffers
        old_keys[:, :, start:end] = keys
        old_values[:, :, start:end] = values
        self.length = end
        return old_keys[:, :, :end], old_values[:, :, :end]

    def _grow(self, length: int, keys: Tensor, values: Tensor) -> None:
        old = self._buffers
        while self._capacity < length:
            self._capacity *= 2
        fresh = [x.new_empty(*x.shape[:2], self._capacity, x.shape[3]) for x in (keys, values)]
        self._buffers = (fresh[0], fresh[1])
        if old is not None:
            for target, source in zip(fresh, old, strict=True):
                target[:, :, : self.length] = source[:, :, : self.length]

    def select(self, rows: Tensor) -> LayerCache:
        """A new cache whose row i is a copy of the row ``rows[i]``."""
        chosen = LayerCache(self._capacity)
        chosen.length = self.length
        if self._buffers is not None:
            keys, values = self._buffers
            chosen._buffers = keys.index_select(0, rows), values.index_select(0, rows)
        return chosen

    def exchange(self, rows: Tensor, start: int) -> None:
        """From position ``start`` on, row i becomes a copy of row ``rows[i]``; earlier positions and the number of rows stay."""
        for buffer in self._buffers or ():
            tail = buffer[:, :, start : self.length]
            tail.copy_(tail.index_select(0, rows))


class KVCache:
    """The caches of all layers (``cache[i]``), and which positions of each row are tokens. A ``generate.State``."""

    def __init__(self, layers: int, capacity: int = SPARE_POSITIONS) -> None:
        """``capacity``: positions to allocate at first; the buffers grow when needed."""
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self._tokens: Tensor | None = None  # [B]: tokens so far, padding not counted; None while no row has padding
        self._visible: Tensor | None = None  # [B, capacity]: False at padding
        self._shape = (0, 1)  # (inputs, rows of each) since the last reorder
        self._shared = 0  # the rows of an input are equal before this position

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]

    @property
    def length(self) -> int:
        """Positions filled in every row, padding included."""
        return self.layers[0].length

    @property
    def padded(self) -> bool:
        return self._tokens is not None

    def advance(self, new: int, padding_mask: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Announce ``new`` = T positions, before the layers append theirs.

        Args:
            padding_mask: ``[B, T]``, True = a token; None = all are tokens.

        Returns:
            ``position_ids [B, T]``, the position of each new token in its text, padding not counted; and ``[B, S]``, True where one of all
            S positions is a token. Both None while there is no padding: the positions are then ``length .. length + T - 1`` in every row.
        """
        start, end = self.length, self.length + new
        if self._tokens is None:
            if padding_mask is None or bool(padding_mask.all()):
                return None, None
            self._tokens = torch.full((len(padding_mask),), start, device=padding_mask.device)
            self._visible = padding_mask.new_ones(len(padding_mask), end, dtype=torch.bool)
        assert self._visible is not None
        if end > self._visible.shape[1]:
            more = self._visible.new_ones(len(self._visible), end)
            self._visible = torch.cat([self._visible, more], 1)
        if padding_mask is None:
            position_ids = self._tokens[:, None] + torch.arange(new, device=self._tokens.device)
            self._tokens = self._tokens + new
        else:
            self._visible[:, start:end] = padding_mask
            position_ids = (self._tokens[:, None] + padding_mask.cumsum(1) - 1).clamp_min(0)
            self._tokens = self._tokens + padding_mask.sum(1)
        return position_ids, self._visible[:, :end]

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` positions; nothing is copied."""
        for layer in self.layers:
            layer.length = min(length, layer.length)
        self._shared = min(self._shared, length)
        if self._visible is not None:
            self._visible[:, length:] = True
            self._tokens = self._visible[:, :length].sum(1)

    def fork(self, rows: Tensor) -> KVCache:
        """A new cache whose row i is a copy of the row ``rows[i]``; this one stays as it is."""
        new = KVCache(0)
        new.layers = [layer.select(rows) for layer in self.layers]
        if self._tokens is not None and self._visible is not None:
            new._tokens, new._visible = self._tokens[rows], self._visible[rows]
        new._shape = (len(rows), 1)
        return new

    def reorder(self, rows: Tensor) -> KVCache:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``. This cache must not be used afterwards.

        The rows of an input share its prompt, so only the positions after the prompt are copied.
        """
        flat, (inputs, count) = rows.flatten(), rows.shape
        unchanged = torch.arange(len(flat), device=rows.device)
        if self._shape == (inputs, count) and torch.equal(flat // count, unchanged // count):
            if not torch.equal(flat, unchanged):
                for layer in self.layers:
                    layer.exchange(flat, self._shared)
            return self
        new = self.fork(flat)
        new._shape = (inputs, count)
        new._shared = self.length if torch.equal(rows, rows[:, :1].expand_as(rows)) else self._shared
        return new
