"""Weight matrices in the precisions that the runtime multiplies with: fp32, or 4 and 8 bits in blocks of 32 columns.

In a block, w = scale * (code - 2 ** (bits - 1)) + offset. The runtime's fast kernel has no offset, so the offsets' share of a product,
the sum over blocks of offset * (sum of x over the block), is computed as a separate product in fp32, 1/32 of the size. So files with a
scale and a minimum for each block (GGUF's Q4_1) are converted without loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from triptych.engines.choice import Precision
from triptych.evidence import Floats

BLOCK = 32


@dataclass(frozen=True)
class Blocks:
    """A matrix ``[N, D]``, D a multiple of 32: ``codes`` uint8 ``[N, D]``, ``scale`` and ``offset`` ``[N, D / 32]``."""

    bits: Literal[4, 8]
    codes: NDArray[np.uint8]
    scale: Floats
    offset: Floats | None = None  # None = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def row_scale(self) -> Floats | None:
        """``[N]`` if these are 8-bit integers with one scale for each row; None = they are not."""
        equal = self.bits == 8 and self.offset is None and bool((self.scale == self.scale[:, :1]).all())
        return self.scale[:, 0] if equal else None

    def dense(self) -> Floats:
        """``[N, D]`` in fp32."""
        codes = self.codes.reshape(*self.scale.shape, BLOCK).astype(np.float32) - (1 << self.bits - 1)
        values = codes * self.scale[..., None]
        if self.offset is not None:
            values += self.offset[..., None]
        return values.reshape(self.shape)

    def columns(self, chosen: Columns) -> Floats:
        """``[N, len(chosen)]`` in fp32."""
        at = chosen // BLOCK
        values = (self.codes[:, chosen].astype(np.float32) - (1 << self.bits - 1)) * self.scale[:, at]
        return values if self.offset is None else values + self.offset[:, at]

    def take_rows(self, order: NDArray[np.int64]) -> Blocks:
        """The rows ``order``."""
        return Blocks(
            self.bits, self.codes[order], self.scale[order], None if self.offset is None else self.offset[order]
        )


Matrix = Floats | Blocks
Columns = NDArray[np.int64]


def dense(matrix: Matrix) -> Floats:
    return matrix.dense() if isinstance(matrix, Blocks) else matrix


def identity_block() -> Blocks:
    """The identity over one block of columns."""
    codes = np.eye(BLOCK, dtype=np.uint8) + np.uint8(8)
    return Blocks(4, codes, np.ones((BLOCK, 1), np.float32))


def without(columns: Columns, width: int) -> Floats:
    """``[width]``: 0 at the columns, else 1."""
    mask = np.ones(width, np.float32)
    mask[columns] = 0
    return mask


def in_full_precision(matrix: Blocks, exact: Columns) -> tuple[Floats, Floats]:
    """The part of a product with ``x [T, D]`` that is computed in fp32, the offsets and the ``exact`` columns, as x @ picked @ factors.

    Returns ``picked [D, P]`` and ``factors [P, N]``.
    """
    width, blocks = matrix.shape[1], matrix.scale.shape[1]
    picked, factors = np.zeros((width, len(exact)), np.float32), matrix.columns(exact).T
    picked[exact, np.arange(len(exact))] = 1
    if matrix.offset is not None:
        sums = np.repeat(np.eye(blocks, dtype=np.float32), BLOCK, 0) * without(exact, width)[:, None]
        picked, factors = np.concatenate([sums, picked], 1), np.concatenate([matrix.offset.T, factors])
    return picked, factors


def stack_rows(parts: Sequence[Matrix]) -> Matrix:
    """Matrices of equal width stacked by rows; in blocks if all are, with equal bits, and all or none have offsets."""
    if len(parts) == 1:
        return parts[0]
    blocks = [part for part in parts if isinstance(part, Blocks)]
    kinds = {(part.bits, part.offset is None) for part in blocks}
    if len(blocks) < len(parts) or len(kinds) > 1:
        return np.concatenate([dense(part) for part in parts])
    offsets = [part.offset for part in blocks if part.offset is not None]
    return Blocks(
        blocks[0].bits,
        np.concatenate([part.codes for part in blocks]),
        np.concatenate([part.scale for part in blocks]),
        np.concatenate(offsets) if offsets else None,
    )


def quantize8(values: Floats) -> Blocks:
    """``[N, D]`` -> 8 bits: each block's largest magnitude becomes 127."""
    cut = values.reshape(len(values), -1, BLOCK)
    scale = np.abs(cut).max(-1) / 127
    codes = np.rint(cut / np.where(scale > 0, scale, 1)[..., None]) + 128
    return Blocks(8, codes.astype(np.uint8).reshape(values.shape), scale.astype(np.float32))


def quantize4(values: Floats) -> Blocks:
    """``[N, D]`` -> 4 bits: each block's smallest value becomes code 0 and its largest 15."""
    cut = values.reshape(len(values), -1, BLOCK)
    low, high = cut.min(-1), cut.max(-1)
    scale = ((high - low) / 15).astype(np.float32)
    codes = np.rint((cut - low[..., None]) / np.where(scale > 0, scale, 1)[..., None])
    return Blocks(4, codes.astype(np.uint8).reshape(values.shape), scale, (low + 8 * scale).astype(np.float32))


def quantize_rows(values: Floats) -> Blocks:
    """``[N, D]`` -> 8 bits: each row's largest magnitude becomes 127."""
    scale = np.abs(values).max(-1) / 127
    codes = np.rint(values / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    return rows_of_int8(codes, scale)


def rows_of_int8(codes: NDArray[np.int8], scale: Floats) -> Blocks:
    """A checkpoint's matrix, int8 ``[N, D]`` with one ``scale [N]`` for each row, in blocks with the same values."""
    blocks = codes.shape[1] // BLOCK
    return Blocks(8, codes.view(np.uint8) ^ np.uint8(128), np.repeat(scale[:, None].astype(np.float32), blocks, 1))


def at_precision(matrix: Matrix, precision: Precision) -> Matrix:
    """``matrix`` in a precision. With ``int4`` blocks keep their bits. A matrix whose width is not a multiple of 32 is fp32."""
    if precision == "fp32" or matrix.shape[1] % BLOCK:
        return dense(matrix)
    if isinstance(matrix, Blocks) and (precision == "int4" or matrix.bits == 8):
        return matrix
    return quantize8(dense(matrix)) if precision == "int8" else quantize4(dense(matrix))


def in_rows(matrix: Matrix, precision: Precision) -> Matrix:
    """As ``at_precision``, but 8 bits with one scale for each row, which several rows of x are multiplied with faster."""
    if precision != "int8" or isinstance(matrix, Blocks) or matrix.shape[1] % BLOCK:
        return at_precision(matrix, precision)
    return quantize_rows(matrix)


def scaled(matrix: Matrix, factor: float) -> Matrix:
    """``factor * matrix``."""
    if not isinstance(matrix, Blocks):
        return matrix * np.float32(factor)
    offset = None if matrix.offset is None else matrix.offset * np.float32(factor)
    return Blocks(matrix.bits, matrix.codes, matrix.scale * np.float32(factor), offset)


def at_least_8_bits(precision: Precision) -> Precision:
    """The precision of everything except the language model's blocks: the other parts are small, and its output layer must be exact."""
    return "fp32" if precision == "fp32" else "int8"
