"""Matrices in blocks of 32: what is stored, what is multiplied, and that GGUF's 4 bits are carried over without loss."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from triptych.engines.onnx.graph import Graph
from triptych.engines.onnx.matrix import (
    Blocks,
    at_least_8_bits,
    at_precision,
    in_rows,
    quantize4,
    quantize8,
    quantize_rows,
    rows_of_int8,
    scaled,
    stack_rows,
)
from triptych.engines.onnx.session import container_processors, open_session, physical_cores, threads_per_core
from triptych.engines.onnx.weights import read_q4, read_q8

RNG = np.random.default_rng(0)
VALUES = (RNG.normal(size=(48, 96)) + 0.5).astype(np.float32)


def product(folder: Path, x: np.ndarray, matrix: np.ndarray | Blocks, bias: np.ndarray | None = None) -> np.ndarray:
    graph = Graph("product")
    graph.output(graph.multiply(graph.input("x", ["T", x.shape[1]]), matrix, bias), "y", ["T", matrix.shape[0]])
    graph.save(folder)
    return open_session(folder / "product.onnx").run(None, {"x": x})[0]


@pytest.mark.parametrize(("quantise", "steps"), [(quantize4, 15), (quantize8, 254)])
def test_a_block_loses_at_most_half_a_step(quantise, steps: int) -> None:
    blocks = quantise(VALUES)
    cut = VALUES.reshape(48, 3, 32)
    width = np.ptp(cut, -1) if steps == 15 else 2 * np.abs(cut).max(-1)
    error = np.abs(blocks.dense() - VALUES).reshape(48, 3, 32).max(-1)
    assert (error <= 0.51 * width / steps).all() and error.max() > 0


@pytest.mark.parametrize("quantise", [quantize4, quantize8])
def test_a_block_of_zeros_stays_zero(quantise) -> None:
    assert not quantise(np.zeros((2, 32), np.float32)).dense().any()


@pytest.mark.parametrize(
    ("kind", "size", "read"),
    [
        (GGMLQuantizationType.Q4_1, 20, lambda data: read_q4(data, with_minimum=True)),
        (GGMLQuantizationType.Q4_0, 18, lambda data: read_q4(data, with_minimum=False)),
        (GGMLQuantizationType.Q8_0, 34, read_q8),
    ],
)
def test_ggufs_blocks_are_carried_over_without_loss(kind: GGMLQuantizationType, size: int, read) -> None:
    stored = quantize(VALUES, kind)
    np.testing.assert_allclose(read(stored.reshape(48, 3, size)).dense(), dequantize(stored, kind), rtol=0, atol=1e-6)


def test_int8_with_a_scale_for_each_row_is_carried_over_without_loss() -> None:
    codes = RNG.integers(-127, 128, (4, 64)).astype(np.int8)
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    np.testing.assert_array_equal(rows_of_int8(codes, scale).dense(), codes * scale[:, None])


@pytest.mark.parametrize("matrix", [quantize4(VALUES), quantize8(VALUES), VALUES], ids=["4", "8", "32"])
@pytest.mark.parametrize("rows", [1, 5])
def test_products_are_those_of_the_dense_matrix(tmp_path: Path, matrix: np.ndarray | Blocks, rows: int) -> None:
    """What is left is the rounding of x to 8 bits, which a block's mean and offset do not worsen."""
    x, bias = RNG.normal(size=(rows, 96)).astype(np.float32), RNG.normal(size=48).astype(np.float32)
    values = matrix.dense() if isinstance(matrix, Blocks) else matrix
    wanted = x @ values.T + bias
    error = np.abs(product(tmp_path, x, matrix, bias) - wanted)
    assert error.max() < (0.02 * np.abs(wanted).max() if isinstance(matrix, Blocks) else 1e-4)


@pytest.mark.parametrize("matrix", [quantize4(VALUES), quantize8(VALUES)], ids=["4", "8"])
def test_products_in_16_bits(tmp_path: Path, matrix: Blocks) -> None:
    x = RNG.normal(size=(5, 96)).astype(np.float32)
    x[0], x[1, :32] = 0, 0  # blocks without a scale
    graph = Graph("fine")
    graph.output(graph.multiply_in_16_bits(graph.input("x", ["T", 96]), matrix), "y", ["T", 48])
    graph.save(tmp_path)
    wanted = x @ matrix.dense().T
    fine = np.abs(open_session(tmp_path / "fine.onnx").run(None, {"x": x})[0] - wanted).max()
    assert fine < 0.02 * np.abs(product(tmp_path, x, matrix) - wanted).max()


@pytest.mark.parametrize("matrix", [quantize4(VALUES), quantize8(VALUES)], ids=["4", "8"])
def test_exact_columns_do_not_make_their_neighbours_coarse(tmp_path: Path, matrix: Blocks) -> None:
    x = RNG.normal(size=(5, 96)).astype(np.float32)
    x[:, [3, 70]] *= 1000
    graph = Graph("exact")
    graph.output(graph.multiply(graph.input("x", ["T", 96]), matrix, exact=np.array([3, 70])), "y", ["T", 48])
    graph.save(tmp_path)
    wanted = x @ matrix.dense().T
    error = np.abs(open_session(tmp_path / "exact.onnx").run(None, {"x": x})[0] - wanted).max()
    assert error < 0.02 * np.abs(product(tmp_path, x, matrix) - wanted).max()


def test_equal_constants_are_kept_once() -> None:
    graph = Graph("g")
    large = np.arange(4096, dtype=np.float32)
    assert graph.weight(large) == graph.weight(large.copy()) != graph.weight(large + 1)
    assert graph.scalar(1) == graph.scalar(1) != graph.number(1)


def test_offsets_add_no_error_of_their_own(tmp_path: Path) -> None:
    blocks = quantize4(VALUES)
    far = Blocks(4, blocks.codes, blocks.scale, blocks.offset + 100)
    x = RNG.normal(size=(3, 96)).astype(np.float32)
    moved = product(tmp_path, x, far) - product(tmp_path, x, blocks)
    np.testing.assert_allclose(moved, np.repeat(100 * x.sum(1, keepdims=True), 48, 1), rtol=0, atol=5e-3)


def test_precisions() -> None:
    four, eight = quantize4(VALUES), quantize8(VALUES)
    assert at_precision(four, "int4") is four and at_precision(eight, "int4") is eight
    assert at_precision(VALUES, "int4").bits == 4 and at_precision(VALUES, "int8").bits == 8
    assert at_precision(four, "int8").bits == 8 and isinstance(at_precision(four, "fp32"), np.ndarray)
    assert at_precision(VALUES[:, :40], "int8") is not None and isinstance(
        at_precision(VALUES[:, :40], "int8"), np.ndarray
    )
    assert [at_least_8_bits(p) for p in ("fp32", "int8", "int4")] == ["fp32", "int8", "int8"]


def test_matrices_are_stacked_as_they_are_where_they_are_of_one_kind() -> None:
    four, eight = quantize4(VALUES), quantize8(VALUES)
    both = stack_rows([four, four])
    assert isinstance(both, Blocks) and both.bits == 4
    np.testing.assert_array_equal(both.dense(), np.concatenate([four.dense()] * 2))
    mixed = stack_rows([four, eight])
    assert isinstance(mixed, np.ndarray)
    np.testing.assert_array_equal(mixed, np.concatenate([four.dense(), eight.dense()]))


@pytest.mark.parametrize("matrix", [quantize4(VALUES), quantize8(VALUES), VALUES], ids=["4", "8", "32"])
def test_a_factor_is_folded_in(matrix: np.ndarray | Blocks) -> None:
    values, tripled = matrix, scaled(matrix, 3.0)
    if isinstance(matrix, Blocks):
        values, tripled = matrix.dense(), tripled.dense()
    np.testing.assert_allclose(tripled, 3 * values, rtol=1e-6, atol=1e-5)


def test_threads_are_bounded_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert physical_cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert physical_cores() >= 1
    monkeypatch.setattr("triptych.engines.onnx.session.container_processors", lambda: 0.5)
    assert physical_cores() == 1


@pytest.mark.parametrize(
    ("siblings", "threads"), [("0", 1), ("0-1", 2), ("0,4", 2), ("0-1,8-9", 4), ("", 1), (None, 1)]
)
def test_the_threads_of_a_core(tmp_path: Path, siblings: str | None, threads: int) -> None:
    if siblings is not None:
        (tmp_path / "siblings").write_text(f"{siblings}\n")
    assert threads_per_core(tmp_path / "siblings") == threads


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "200000 100000"}, 2.0),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_processors_of_a_container(tmp_path: Path, files: dict[str, str], processors: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(f"{content}\n")
    assert container_processors(tmp_path) == processors


ROWS = quantize_rows(VALUES)


def test_a_row_loses_at_most_half_a_step() -> None:
    assert ROWS.row_scale is not None and quantize8(VALUES).row_scale is None and quantize4(VALUES).row_scale is None
    error = np.abs(ROWS.dense() - VALUES).max(-1)
    assert (error <= 0.51 * np.abs(VALUES).max(-1) / 127).all() and error.max() > 0
    assert not quantize_rows(np.zeros((2, 32), np.float32)).dense().any()
    assert in_rows(VALUES, "int8").row_scale is not None and isinstance(in_rows(VALUES, "fp32"), np.ndarray)
    eight = quantize8(VALUES)
    assert in_rows(eight, "int8") is eight and isinstance(in_rows(VALUES[:, :40], "int8"), np.ndarray)


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3)])
def test_products_with_a_scale_for_each_row_are_nearly_exact(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Also of rows of zeros, of rows of very unequal sizes, and of the largest digits everywhere."""
    x, bias = RNG.normal(size=(*shape, 96)).astype(np.float32), RNG.normal(size=48).astype(np.float32)
    flat = x.reshape(-1, 96)
    flat[0] = np.sign(flat[0])
    flat[1:2], flat[2:3] = 0, 1e6 * flat[2:3]
    graph = Graph("product")
    graph.output(
        graph.multiply(graph.input("x", [*"ab"[: len(shape)], 96]), ROWS, bias), "y", [*"ab"[: len(shape)], 48]
    )
    graph.save(tmp_path)
    session = open_session(tmp_path / "product.onnx")
    wanted = x @ ROWS.dense().T
    error = np.abs(session.run(None, {"x": x})[0] - bias - wanted).max(-1)
    assert (error <= 2e-4 * np.abs(wanted).max(-1) + 1e-5).all()
    alone = session.run(None, {"x": x[-1:]})[0]
    np.testing.assert_array_equal(alone, session.run(None, {"x": x})[0][-1:])  # whatever the other rows are
