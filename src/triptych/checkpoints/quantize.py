"""Weights as 8-bit integers, for checkpoints a quarter the size: each row of a matrix has its own scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.checkpoints.store import DerivedStore, Recipe, TensorStore, as_store, shaped

SCALE_SUFFIX = ".scale"
SMALLEST = 1 << 14  # numbers; smaller tensors stay 16-bit floats


def stored_as(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> TensorStore:
    """The floats among ``tensors`` in another width; ``torch.int8``: see ``quantized``; None: as they are."""
    store = as_store(tensors)
    if dtype is None:
        return store
    if dtype == torch.int8:
        return quantized(store)
    return DerivedStore(store, {name: as_floats(name, dtype) for name in store})


def as_floats(name: str, dtype: torch.dtype) -> Recipe:
    """A tensor of floats in another width, any other as it is."""
    return Recipe(
        (name,),
        lambda x: x[0].to(dtype) if x[0].is_floating_point() else x[0],
        lambda x: shaped(x[0], dtype=dtype) if x[0].is_floating_point() else x[0],
    )


def scales(matrix: Tensor) -> Tensor:
    """``[N, M]`` -> ``[N]``: max |w| / 127 of each row."""
    return matrix.float().abs().amax(1).clamp_min(1e-12) / 127


def codes_of(tensors: list[Tensor]) -> Tensor:
    """``w [N, M]`` -> int8 ``round(w / scale) [N, M]``."""
    return (tensors[0].float() / scales(tensors[0])[:, None]).round().to(torch.int8)


def scales_layout(layouts: list[Tensor]) -> Tensor:
    return shaped(layouts[0], layouts[0].shape[:1], torch.float32)


def quantized(store: TensorStore) -> DerivedStore:
    """Each large matrix ``w [N, M]`` becomes int8 ``round(w / scale)`` and ``scale [N]`` = max |w| / 127 of its row; the rest fp16."""
    recipes = {}
    for name in store:
        layout = store.layout(name)
        if layout.ndim != 2 or layout.numel() < SMALLEST or not layout.is_floating_point():
            recipes[name] = as_floats(name, torch.float16)
            continue
        recipes[name], recipes[name + SCALE_SUFFIX] = int8_recipes(name)
    return DerivedStore(store, recipes)


def int8_recipes(name: str) -> tuple[Recipe, Recipe]:
    """How the codes and the scales of a matrix are made."""
    return (
        Recipe((name,), codes_of, lambda x: shaped(x[0], dtype=torch.int8)),
        Recipe((name,), lambda x: scales(x[0]), scales_layout),
    )


def dequantized(store: TensorStore) -> DerivedStore:
    """What ``quantized`` stored, as fp32 under its own names; tensors without a scale as they are."""
    recipes = {}
    for name in store:
        if name + SCALE_SUFFIX in store:
            recipes[name] = Recipe(
                (name, name + SCALE_SUFFIX),
                lambda x: x[0].float() * x[1][:, None],
                lambda x: shaped(x[0], dtype=torch.float32),
            )
        elif not (name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in store):
            recipes[name] = Recipe((name,), lambda x: x[0])
    return DerivedStore(store, recipes)
