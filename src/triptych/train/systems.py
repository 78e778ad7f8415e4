"""Training a system by name, and the runs of recipe files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from triptych.errors import InputError
from triptych.extras import importing
from triptych.io.locks import only_process
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.flamingo.recipe import FlamingoRecipe
from triptych.train.processes import is_main_process
from triptych.train.recipe import Settings, make_recipe
from triptych.train.sat.recipe import SatRecipe
from triptych.train.sources import Sources

MAX_FILE = 1 << 20  # bytes of a recipe file


RECIPES: dict[str, type[Settings]] = {"sat": SatRecipe, "blip2": Blip2Recipe, "flamingo": FlamingoRecipe}


def train_system(name: str, sources: Sources, run: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Train a system in the folder ``run``. Returns the record of the best validation in the main process, None in the others.

    Raises:
        InputError: a setting, the data or the checkpoint to start from cannot be used.
        TriptychError: a package that training needs is missing, the loss is not finite, the disk is full, or another process is training
            in this folder.
    """
    recipe = make_recipe(RECIPES[name], settings)
    with importing("train", "training"):
        from triptych.models.registry import SYSTEMS

        train = SYSTEMS[name].resolve("train")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {run}: {error.strerror}") from None
    busy = f"{run}: another process is training in this folder; wait until it ends, or name another --run"
    with only_process(run, busy) if is_main_process() else nullcontext():
        return train(sources, run, recipe)


class PlannedRun(NamedTuple):
    """One run of a recipe file. ``name``: of its folder."""

    name: str
    sources: Sources
    settings: Mapping[str, Any]


def read_recipe_file(path: Path, data: Path, folder: Path) -> tuple[str, list[PlannedRun]]:
    """The system and the runs of a recipe file, in order.

    The file is TOML: ``system``, and for each run a table ``[[run]]`` with ``name``, ``data`` (a list of data sets), optionally
    ``data_share``, ``drawings``, ``written`` and ``strict``, and the settings of the system by name. ``init`` is the name of an earlier
    run, a shipped model, or a checkpoint.

    Args:
        data: the folder of the data sets.
        folder: the folder for the runs' folders.

    Raises:
        InputError: the file cannot be read, or contains something unknown; every setting is checked before the first run.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise InputError(f"{path} is larger than {MAX_FILE >> 20} MiB, the limit of a recipe file")
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    name, runs = settings.get("system"), settings.get("run")
    if not isinstance(name, str) or name not in RECIPES:
        raise InputError(f"{path}: system is {name!r}, expected {', '.join(RECIPES)}")
    if set(settings) != {"system", "run"} or not isinstance(runs, list) or not runs:
        raise InputError(
            f"{path}: expected system and one table [[run]] or several, found {', '.join(sorted(settings))}"
        )
    planned: list[PlannedRun] = []
    for number, table in enumerate(runs):
        try:
            planned.append(plan_run(table, data, folder, [run.name for run in planned]))
            make_recipe(RECIPES[name], planned[-1].settings)
        except InputError as error:
            raise InputError(f"{path}: run {number + 1}: {error}") from None
    return name, planned


def plan_run(table: Any, data: Path, folder: Path, earlier: list[str]) -> PlannedRun:
    """The run of one table; ``earlier``: the names of the runs before it. Raises InputError: an entry is invalid."""
    if not isinstance(table, dict):
        raise InputError("expected a table")
    settings = dict(table)
    name, sets, shares = settings.pop("name", None), settings.pop("data", None), settings.pop("data_share", [])
    if not isinstance(name, str) or not name.replace("-", "").isalnum() or name in earlier:
        raise InputError(f"name is {name!r}, expected letters, digits and hyphens that no other run is called")
    if not isinstance(sets, list) or not sets or not all(isinstance(each, str) for each in sets):
        raise InputError(f'data is {sets!r}, expected a list of data sets such as ["flickr8k"]')
    if not isinstance(shares, list) or not all(isinstance(share, int | float) for share in shares):
        raise InputError(f"data_share is {shares!r}, expected a list of numbers")
    drawings, strict = settings.pop("drawings", None), settings.pop("strict", False)
    written = settings.pop("written", [])
    if not isinstance(written, list) or not all(isinstance(each, str) for each in written):
        raise InputError(f'written is {written!r}, expected a list of files such as ["written.jsonl"]')
    sources = Sources(
        tuple(data / each for each in sets),
        tuple(map(float, shares)),
        bool(strict),
        None if drawings is None else data / str(drawings),
        tuple(data / each for each in written),
    )
    if settings.get("init") in earlier:
        settings["init"] = str(folder / settings["init"] / "best")
    return PlannedRun(name, sources, settings)


def run_recipe_file(path: Path, data: Path, folder: Path) -> dict[str, dict[str, Any] | None]:
    """Train the runs of a recipe file, each in its folder below ``folder``; runs that are complete are not repeated.

    Returns the record of the best validation of each run. Raises as ``read_recipe_file`` and ``train_system``.
    """
    system, runs = read_recipe_file(path, data, folder)
    return {run.name: train_system(system, run.sources, folder / run.name, run.settings) for run in runs}
