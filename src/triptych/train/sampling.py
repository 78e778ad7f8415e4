"""The training items of each step, as a function of the seed and the step alone, so that a killed run continues with the same ones."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch

EPOCH_SEEDS = 1_000_003  # far apart, so that two runs with neighbouring seeds share no epoch


class DataMix(NamedTuple):
    """``sizes``: training items of each data set. ``shares``: relative share of each in an epoch; None = by size, so that an epoch reads
    every item once. ``epoch_items``: items of an epoch; 0 = all."""

    sizes: tuple[int, ...]
    shares: tuple[float, ...] | None = None
    epoch_items: int = 0

    @property
    def items(self) -> int:
        return sum(self.sizes)

    @property
    def per_epoch(self) -> int:
        return self.epoch_items or self.items

    def counts(self) -> list[int]:
        """Items of each data set in an epoch."""
        shares = self.shares or self.sizes
        exact = [self.per_epoch * share / sum(shares) for share in shares]
        ends = [round(sum(exact[: i + 1])) for i in range(len(exact))]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def draw(self, rng: random.Random) -> int:
        """The number of a random item; data sets are drawn by their shares."""
        (index,) = rng.choices(range(len(self.sizes)), self.shares or self.sizes)
        return sum(self.sizes[:index]) + rng.randrange(self.sizes[index])


def steps_per_epoch(mix: DataMix, batch_size: int) -> int:
    return max(1, mix.per_epoch // batch_size)


def batch_rows(step: int, mix: DataMix, batch_size: int, seed: int) -> list[int]:
    """The items of one step, numbered over all data sets, one after another.

    Each epoch has its own shuffle; its last, incomplete batch is left out. A data set with more items than an epoch takes continues in the
    next epoch, and one with fewer is read again in another order: no item is repeated before all others of its data set have been read.
    """
    epoch, index = divmod(step, steps_per_epoch(mix, batch_size))
    order = shuffled(mix.per_epoch, seed, epoch)
    if mix.shares is not None or mix.epoch_items:
        drawn = [row for index in range(len(mix.sizes)) for row in rows_of(mix, index, seed, epoch)]
        order = [drawn[i] for i in order]
    return order[index * batch_size : (index + 1) * batch_size]


def rows_of(mix: DataMix, index: int, seed: int, epoch: int) -> list[int]:
    """The items of data set ``index`` in an epoch."""
    size, count, first = mix.sizes[index], mix.counts()[index], sum(mix.sizes[:index])
    rows: list[int] = []
    while len(rows) < count:
        reading, start = divmod(epoch * count + len(rows), size)
        rows += [first + i for i in shuffled(size, seed, reading)[start : start + count - len(rows)]]
    return rows


def shuffled(items: int, seed: int, number: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * EPOCH_SEEDS + number)
    return torch.randperm(items, generator=generator).tolist()
