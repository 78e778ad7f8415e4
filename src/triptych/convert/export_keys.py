"""Our tensors under published names: the tables that read published checkpoints, run the other way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from triptych.checkpoints.store import DerivedStore, Recipe, TensorStore, shaped, stacked_layout
from triptych.checkpoints.tables.keys import Table
from triptych.errors import InputError, TriptychError
from triptych.nn.configs import DecoderConfig, T5Config

Axes = Mapping[str, int]  # of their names: how many axes of length 1 stand in front of ours


def published_recipes(tensors: TensorStore, table: Table, axes: Axes) -> dict[str, Recipe]:
    """Their name -> how it is made of ours, for each row of ``table`` whose tensors are there."""
    recipes = {}
    for theirs, ours in table.items():
        names = (ours,) if isinstance(ours, str) else ours
        pattern = re.compile(re.escape(names[0]).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias|)")
        for name in tensors:
            if match := pattern.fullmatch(name):
                *number, leaf = match.groups()
                sources = tuple(own.replace("*", "".join(number)) + leaf for own in names)
                key = theirs.replace("*", "".join(number)) + leaf
                front = (1,) * axes.get(theirs, 0)
                recipes[key] = Recipe(sources, partial(joined, front), partial(joined_layout, front))
    return recipes


def joined(front: tuple[int, ...], tensors: list[Tensor]) -> Tensor:
    whole = torch.cat(tensors) if tensors[1:] else tensors[0]
    return whole.view(*front, *whole.shape) if front else whole


def joined_layout(front: tuple[int, ...], layouts: list[Tensor]) -> Tensor:
    whole = stacked_layout(layouts)
    return shaped(whole, (*front, *whole.shape))


def language_recipes(
    tensors: TensorStore, table: Mapping[str, tuple[str, ...]], lm: DecoderConfig | T5Config, prefix: str
) -> dict[str, Recipe]:
    """What was stacked is cut again: queries, keys and values by their heads, the rest into equal parts. ``prefix``: of their names."""
    recipes = {}
    for ours, theirs in table.items():
        for layer in range(layers_of(lm, ours) if "*" in ours else 1):
            for leaf in (".weight", ".bias"):
                name = f"lm.{ours.replace('*', str(layer))}{leaf}"
                if name not in tensors:
                    continue
                sizes = [len(tensors.layout(name)) // len(theirs)] * len(theirs)
                if isinstance(lm, DecoderConfig) and ours.endswith("attention.qkv") and theirs[1:]:
                    sizes = [lm.heads * lm.head_width, *[lm.groups * lm.head_width] * 2]
                for place, their in enumerate(theirs):
                    cut = partial(kept_rows, sum(sizes[:place]), sizes[place])
                    recipes[f"{prefix}{their.replace('*', str(layer))}{leaf}"] = Recipe((name,), cut, cut)
    return recipes


def layers_of(lm: DecoderConfig | T5Config, name: str) -> int:
    return lm.decoder_layers if isinstance(lm, T5Config) and name.startswith("decoder.") else lm.layers


def kept_rows(start: int, count: int, tensors: list[Tensor]) -> Tensor:
    return tensors[0].narrow(0, start, count)


def complete(
    tensors: TensorStore, recipes: Mapping[str, Recipe], peer: str, left_out: tuple[str, ...] = ()
) -> DerivedStore:
    """The tensors of these recipes. ``left_out``: beginnings of our names that the ``peer`` does without.

    Raises:
        InputError: one of ours has no place there.
    """
    used = {source for recipe in recipes.values() for source in recipe.sources}
    if left := sorted(name for name in tensors.keys() - used if not name.startswith(left_out or ("\0",))):
        more = f" and {len(left) - 1} more" if left[1:] else ""
        raise InputError(f"{left[0]}{more}: no place in {peer}")
    return DerivedStore(tensors, recipes)


def write_torch_file(target: Path, tensors: TensorStore, under: str | None = None) -> int:
    """Write a state dict as a file of PyTorch's; returns how many tensors it has.

    Args:
        under: the name that it has within the file; None = it is all that the file holds.

    Raises:
        InputError: ``target`` is there.
        TriptychError: the disk is full or not writable.
    """
    if target.exists():
        raise InputError(f"{target} is there: name another file")
    state = {name: tensors[name].clone() for name in tensors}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state if under is None else {under: state}, target)
    except (OSError, RuntimeError) as error:
        target.unlink(missing_ok=True)
        raise TriptychError(f"cannot write {target}: {error}") from None
    return len(state)
