"""Reading weights without torch: checkpoints (safetensors) and language models (GGUF).

Tensors are found by the names of our modules; matrices have the precision that they are stored in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.gguf import GGUF
from triptych.engines.onnx.matrix import BLOCK, Blocks, Matrix, dense, rows_of_int8, stack_rows
from triptych.errors import InputError
from triptych.evidence import Floats

SCALE = ".scale"


class Weights(Protocol):
    """Tensors by the names of our modules."""

    def matrix(self, name: str) -> Matrix:
        """A matrix ``[N, D]`` in its stored precision. Raises KeyError."""
        ...

    def array(self, name: str) -> Floats:
        """Any tensor in fp32. Raises KeyError."""
        ...

    def parameters(self) -> int:
        """The number of parameters."""
        ...

    def __contains__(self, name: str) -> bool: ...


@dataclass(frozen=True)
class CheckpointWeights:
    """The tensors of a checkpoint: fp32, fp16, or int8 with a scale for each row. ``prefix``: of their names in the file."""

    tensors: Mapping[str, NDArray[Any]]
    prefix: str = ""

    @classmethod
    def read(cls, path: Path) -> CheckpointWeights:
        """Raises InputError: it cannot be read, has a type that NumPy lacks, or values that are not finite."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
        for name, tensor in tensors.items():
            if tensor.dtype.kind == "f" and tensor.size and not np.isfinite(tensor).all():
                raise InputError(f"{path}: the tensor {name} has values that are not finite")
        return cls(tensors)

    def below(self, prefix: str) -> CheckpointWeights:
        return CheckpointWeights(self.tensors, self.prefix + prefix)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def parameters(self, prefix: str = "") -> int:
        """The number of parameters below ``prefix``, without the scales of int8 rows."""
        return sum(
            tensor.size
            for name, tensor in self.tensors.items()
            if name.startswith(self.prefix + prefix)
            and not (name.endswith(SCALE) and name.removesuffix(SCALE) in self.tensors)
        )

    def matrix(self, name: str) -> Matrix:
        stored = self.tensors[self.prefix + name]
        scale = self.tensors.get(self.prefix + name + SCALE)
        if scale is None:
            return stored.astype(np.float32)
        if stored.shape[1] % BLOCK:
            return stored.astype(np.float32) * scale[:, None]
        return rows_of_int8(stored, scale)

    def array(self, name: str) -> Floats:
        stored = self.tensors[self.prefix + name]
        return dense(self.matrix(name)) if self.prefix + name + SCALE in self.tensors else stored.astype(np.float32)


Q4_0, Q4_1, Q8_0 = 2, 3, 8


@dataclass(frozen=True)
class GGUFWeights:
    """A Llama-like language model in a GGUF file, by the ``table`` of its architecture. ``heads``, ``groups``: of queries and keys, whose
    rows have another order in files of the architecture ``llama``."""

    file: GGUF
    table: Mapping[str, tuple[str, ...]]
    heads: int
    groups: int

    def names(self, name: str) -> list[str]:
        """The names in the file for one of ours; several if our matrix is a stack of theirs, from top to bottom."""
        part, _, kind = name.rpartition(".")
        layer = re.search(r"\.(\d+)\.", part)
        number = layer[1] if layer else ""
        row = self.table.get(re.sub(r"\.\d+\.", ".*.", part), (part,))
        return [f"{theirs.replace('*', number)}.{kind}" for theirs in row]

    def __contains__(self, name: str) -> bool:
        return all(theirs in self.file.entries for theirs in self.names(name))

    def parameters(self) -> int:
        return sum(prod(entry.shape) for name, entry in self.file.entries.items() if not name.startswith("rope_"))

    def matrix(self, name: str) -> Matrix:
        return stack_rows([self.reordered(theirs, self.stored(theirs)) for theirs in self.names(name)])

    def array(self, name: str) -> Floats:
        return np.concatenate([dense(self.reordered(theirs, self.stored(theirs))) for theirs in self.names(name)])

    def reordered(self, theirs: str, stored: Matrix) -> Matrix:
        """llama.cpp rotates pairs of neighbouring rows; ours are half a head apart, as in transformers."""
        heads = self.heads if ".attn_q." in theirs else self.groups if ".attn_k." in theirs else 0
        if not heads or self.file.metadata.get("general.architecture") != "llama":
            return stored
        rows = stored.shape[0]
        order = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
        return stored.take_rows(order) if isinstance(stored, Blocks) else stored[order]

    def stored(self, theirs: str) -> Matrix:
        entry = self.file.entries[theirs]
        data = np.frombuffer(self.file.data, np.uint8, entry.size, entry.start)
        if entry.dtype == Q4_1:
            return read_q4(data.reshape(*entry.shape[:-1], -1, 20), with_minimum=True)
        if entry.dtype == Q4_0:
            return read_q4(data.reshape(*entry.shape[:-1], -1, 18), with_minimum=False)
        if entry.dtype == Q8_0:
            return read_q8(data.reshape(*entry.shape[:-1], -1, 34))
        return self.file.array(theirs)


def read_q4(blocks: NDArray[np.uint8], with_minimum: bool) -> Blocks:
    """GGUF's ``[N, B, bytes]``: the scale d in fp16, with Q4_1 also the minimum m, then 16 bytes of two codes q each.

    Q4_0: w = d (q - 8). Q4_1: w = d q + m = d (q - 8) + (m + 8 d).
    """
    scale = halves(blocks[..., :2])
    codes = blocks[..., 4:] if with_minimum else blocks[..., 2:]
    unpacked = np.concatenate([codes & 15, codes >> 4], -1).reshape(len(blocks), -1)
    return Blocks(4, unpacked, scale, halves(blocks[..., 2:4]) + 8 * scale if with_minimum else None)


def read_q8(blocks: NDArray[np.uint8]) -> Blocks:
    """GGUF's Q8_0 ``[N, B, 34]``: the scale in fp16, then 32 signed codes."""
    return Blocks(8, np.ascontiguousarray(blocks[..., 2:] ^ 128).reshape(len(blocks), -1), halves(blocks[..., :2]))


def halves(data: NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(data).view("<f2")[..., 0].astype(np.float32)
