"""Writing ONNX graphs node by node, with the weights in a separate file that the runtime maps into memory.

A graph has two files: ``NAME.onnx`` (nodes, small constants) and ``NAME.data`` (weights, each aligned to a page).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from triptych.engines.onnx.matrix import BLOCK, Blocks, Columns, Matrix, identity_block, in_full_precision, without
from triptych.evidence import Floats

AnyArray = NDArray[Any]
Dims = Sequence[int | str]

OPSET, CONTRIB = 17, "com.microsoft"
ALIGNMENT = 4096
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: x is rounded to 8 bits in blocks of 32
DIGIT = 63  # the largest digit of ``_multiply_rows``: the sum of two products with int8 then fits the 16 bits of processors without VNNI
INLINE = 1024  # bytes; smaller constants are stored in NAME.onnx
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


class Graph:
    """A graph under construction. Values are names; ``add`` returns the name of a node's output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._weights: dict[str, AnyArray] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def input(self, name: str, shape: Dims, dtype: int = FLOAT) -> str:
        """Declare an input; a string in ``shape`` names a variable size."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Dims) -> None:
        """Declare ``value`` as the output ``name``."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self.declare_output(name, shape)

    def weight(self, array: AnyArray) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, hashlib.blake2b(array.data).digest())
        if key not in self._constants:
            self._constants[key] = name = f"w{len(self._constants)}"
            self._weights[name] = array
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.weight(np.array(values, np.int64))

    def number(self, value: int) -> str:
        """A constant scalar of int64."""
        return self.weight(np.array(value, np.int64))

    def scalar(self, value: float) -> str:
        """A constant scalar of fp32."""
        return self.weight(np.array(value, np.float32))

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.add_outputs(op, 1, *inputs, domain=domain, **attributes)[0]

    def add_outputs(self, op: str, count: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with ``count`` outputs."""
        names = [f"v{self._count + i}" for i in range(count)]
        self._count += count
        self._nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names

    def contrib(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, of an operator of ONNX Runtime's own."""
        return self.add(op, *inputs, domain=CONTRIB, **attributes)

    def raw(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node of ONNX Runtime's own whose outputs have these names ("" = not needed)."""
        self._nodes.append(helper.make_node(op, list(inputs), list(outputs), domain=CONTRIB, **attributes))

    def declare_output(self, name: str, shape: Dims) -> None:
        """Declare the output ``name`` of a node as one of the graph, in fp32."""
        self._outputs.append(helper.make_tensor_value_info(name, FLOAT, list(shape)))

    def reshape(self, x: str, *shape: int) -> str:
        """In ``shape`` 0 keeps a size, and -1 is inferred."""
        return self.add("Reshape", x, self.ints(*shape))

    def layer_norm(self, x: str, weight: AnyArray, bias: AnyArray, eps: float) -> str:
        return self.add("LayerNormalization", x, self.weight(weight), self.weight(bias), axis=-1, epsilon=eps)

    def multiply(self, x: str, matrix: Matrix, bias: Floats | None = None, exact: Columns | None = None) -> str:
        """``x [.., D]`` -> ``x matrix^T + bias [.., N]``; if the matrix has offsets or there are ``exact`` columns, x is ``[T, D]``.

        ``exact``: columns of x that are multiplied in fp32. The others are rounded to 8 bits in blocks of neighbours, so a column of large
        values would make the others in its block inexact. Without them, and with one scale for each row of the matrix, x is rounded to two
        digits of 7 bits, which is more exact and with several rows several times as fast.
        """
        columns = np.arange(0) if exact is None else exact
        if isinstance(matrix, np.ndarray):
            product = self.add("MatMul", x, self.weight(matrix.T))
        elif not len(columns) and (scale := matrix.row_scale) is not None:
            product = self._multiply_rows(x, matrix.codes, scale)
        else:
            product = self._multiply_blocks(x, matrix, columns)
        return product if bias is None else self.add("Add", product, self.weight(bias))

    def multiply_in_16_bits(self, x: str, matrix: Matrix, bias: Floats | None = None) -> str:
        """As ``multiply`` for ``x [T, D]``, with 16 bits: the error of rounding x to 8 bits is itself rounded to 8 bits and multiplied.

        A product with the identity yields the rounded x. Both parts are multiplied together as 2 T rows, so that the weights are read once.
        """
        if isinstance(matrix, np.ndarray):
            return self.multiply(x, matrix, bias)
        width = matrix.shape[1]
        rounded = self._multiply_codes(self.reshape(x, -1, BLOCK), identity_block())
        lost = self.add("Sub", x, self.reshape(rounded, -1, width))
        both = self._multiply_codes(self.add("Concat", x, lost, axis=0), matrix)
        product, fine = self.add_outputs("Split", 2, both, axis=0)
        if matrix.offset is not None:
            product = self._add_full_precision(x, matrix, np.arange(0), product)
        product = self.add("Add", product, fine)
        return product if bias is None else self.add("Add", product, self.weight(bias))

    def _multiply_rows(self, x: str, codes: NDArray[np.uint8], scale: Floats) -> str:
        """The product of integers: each row of x is unit * (first digit + second digit / (2 * DIGIT)). Both digits are multiplied
        together as twice as many rows, so that the weights are read once. ``codes [N, D]``: 128 is 0; ``scale [N]``."""
        largest = self.add("ReduceMax", self.add("Abs", x), axes=[-1], keepdims=1)
        unit = self.add("Mul", self.add("Max", largest, self.scalar(1e-30)), self.scalar(1 / DIGIT))
        digits = self.add("Div", x, unit)
        first = self.add("Round", digits)
        second = self.add("Round", self.add("Mul", self.add("Sub", digits, first), self.scalar(2 * DIGIT)))
        both = self.add("Add", self.add("Concat", first, second, axis=0), self.scalar(DIGIT + 1))
        weights = self.weight((codes ^ np.uint8(128)).view(np.int8).T)
        zero = self.weight(np.array(DIGIT + 1, np.uint8))
        given = self.add("Cast", both, to=TensorProto.UINT8), weights, self.scalar(1), self.weight(scale), zero
        units = self.add("Concat", unit, self.add("Mul", unit, self.scalar(0.5 / DIGIT)), axis=0)
        product = self.add("Mul", self.contrib("MatMulIntegerToFloat", *given), units)
        return self.add("Add", *self.add_outputs("Split", 2, product, axis=0))

    def _multiply_blocks(self, x: str, matrix: Blocks, exact: Columns) -> str:
        rest = x
        if len(exact):
            rest = self.add("Mul", x, self.weight(without(exact, matrix.shape[1])))
        product = self._multiply_codes(rest, matrix)
        if matrix.offset is None and not len(exact):
            return product
        return self._add_full_precision(x, matrix, exact, product)

    def _add_full_precision(self, x: str, matrix: Blocks, exact: Columns, product: str) -> str:
        picked, factors = in_full_precision(matrix, exact)
        return self.add("Gemm", self.add("MatMul", x, self.weight(picked)), self.weight(factors), product)

    def _multiply_codes(self, x: str, matrix: Blocks) -> str:
        """The product without the offsets of the blocks."""
        (rows, width), blocks = matrix.shape, matrix.scale.shape[1]
        codes = matrix.codes
        if matrix.bits == 4:
            codes = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
        return self.contrib(
            "MatMulNBits",
            x,
            self.weight(codes.reshape(rows, blocks, -1)),
            self.weight(matrix.scale),
            K=width,
            N=rows,
            bits=matrix.bits,
            block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def save(self, directory: Path) -> None:
        """Write the two files into an existing directory."""
        initializers, offset = [], 0
        with (directory / f"{self.name}.data").open("wb") as data:
            for name, array in self._weights.items():
                if array.nbytes < INLINE:
                    initializers.append(numpy_helper.from_array(array, name))
                    continue
                offset = -(-offset // ALIGNMENT) * ALIGNMENT
                data.seek(offset)
                data.write(array.data)
                initializers.append(self._external(name, array, offset))
                offset += array.nbytes
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="triptych")
        (directory / f"{self.name}.onnx").write_bytes(model.SerializeToString())

    def _external(self, name: str, array: AnyArray, offset: int) -> onnx.TensorProto:
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{self.name}.data"), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
