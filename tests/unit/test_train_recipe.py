"""Recipes: settings that check themselves, the options made from them, and recipe files."""

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.errors import InputError, TriptychError
from triptych.io.locks import only_process
from triptych.models.registry import SYSTEMS
from triptych.train import systems
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.flamingo.recipe import FlamingoRecipe
from triptych.train.recipe import LoopSettings, all_settings, make_recipe, recipe_with
from triptych.train.sat.recipe import SatRecipe
from triptych.train.sources import Sources
from triptych.train.systems import RECIPES, read_recipe_file, run_recipe_file, train_system

RECIPE_FILES = sorted((Path(systems.__file__).parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("system", RECIPES)
def test_settings_have_unique_names_and_help(system: str) -> None:
    items = [item for _, item in all_settings(RECIPES[system]())]
    assert max(Counter(item.name for item in items).values()) == 1
    assert all(item.metadata["help"].endswith(".") for item in items)


def groups_of(kind: type) -> list[type]:
    found = [kind]
    for item in dataclasses.fields(kind):
        if item.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(
            value := item.default_factory()
        ):
            found += groups_of(type(value))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("system", RECIPES)
def test_no_group_of_settings_is_large(system: str) -> None:
    assert {kind.__name__ for kind in groups_of(RECIPES[system]) if len(dataclasses.fields(kind)) > 9} == set()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected a number at least 1"),
        ({"epochs": 2.5}, "epochs is 2.5, expected int"),
        ({"epochs": True}, "epochs is True, expected int"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected a number"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', expected float"),
        ({"warmup": 1.5}, "warmup is 1.5, expected a number at least 0 and at most 1"),
        ({"precision": "fp8"}, "unknown precision 'fp8': choose auto or fp32 or bf16"),
        ({"epoch": 3}, "unknown setting 'epoch': did you mean epochs?"),
        ({"zzz": 3}, "unknown setting 'zzz': choose accumulation"),
        ({"batch_size": 8, "accumulation": 3}, "a batch of 8 cannot be split into 3 equal parts"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_recipe(LoopSettings, given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (SatRecipe, {"objective": "mle"}, "unknown objective 'mle': choose xe or scst"),
        (SatRecipe, {"gate": "door"}, "unknown gate 'door': choose scalar or vector"),
        (SatRecipe, {"objective": "scst", "captions_per_photo": 1}, "captions_per_photo must be 2 or more"),
        (Blip2Recipe, {"stage": 4}, "unknown stage 4: choose 1 or 2 or 3"),
        (Blip2Recipe, {"weights": {"itx": 1}}, "unknown term 'itx'"),
        (Blip2Recipe, {"weights": {"itc": -1}}, "weights: itc is -1, expected a finite number of at least 0"),
        (Blip2Recipe, {"weights": {"caption": 1.0}}, "stage 1 has no language model"),
        (Blip2Recipe, {"batch_size": 1}, "it needs 2 or more"),
        (FlamingoRecipe, {"shares": {"caption": "much"}}, "shares: caption is 'much'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_recipe(kind, given)
    assert message in str(caught.value)


def test_settings_are_found_in_their_groups() -> None:
    recipe = make_recipe(Blip2Recipe, {"epochs": 2, "learning_rate": 1, "cells": 1.0, "lm": "mine"})
    assert recipe.loop.epochs == 2 and recipe.batch.crops.cells == 1.0 and recipe.start.lm == "mine"
    assert recipe.loop.optimizer.learning_rate == 1.0 and isinstance(recipe.loop.optimizer.learning_rate, float)
    assert recipe.loop.optimizer.weight_decay == 0.05  # the system's own default
    assert recipe_with(recipe, {"word_epochs": 0, "strange": 1}).rates.word_epochs == 0


def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sources, Path, dict[str, Any]]]:
    runs: list[tuple[str, Sources, Path, dict[str, Any]]] = []

    def train(system: str, sources: Sources, run: Path, settings: dict[str, Any]) -> dict[str, Any]:
        make_recipe(RECIPES[system], settings)
        runs.append((system, sources, run, settings))
        return {"epoch": 1}

    monkeypatch.setattr("triptych.cli.training.train_system", train)
    monkeypatch.setattr("triptych.train.systems.train_system", train)
    return runs


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("system", RECIPES)
def test_every_setting_is_an_option(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option reaches the setting of its name; what is not given is not changed."""
    runs = trained(monkeypatch)
    plain = run("train", system, "--data", "photos", "--run", "somewhere")
    assert plain.exit_code == 0, plain.output
    assert runs[0][:3] == (system, Sources((Path("photos"),)), Path("somewhere")) and runs[0][3] == {}
    default = RECIPES[system]()
    for group, item in all_settings(default):
        value, metadata = getattr(group, item.name), item.metadata
        flag = metadata.get("option", "--" + item.name.replace("_", "-"))
        if "=" in metadata.get("metavar", ""):
            name = "itc" if system == "blip2" else "caption"
            given, expected = [flag, f"{name}=0.5"], {name: 0.5}
        elif isinstance(value, bool):
            given, expected = [f"--no-{flag[2:]}" if value else flag], not value  # type: ignore[assignment]
        elif metadata["choices"]:
            other = next(choice for choice in metadata["choices"] if choice not in (value, None))
            given, expected = [flag, str(other)], other
        elif isinstance(value, int):
            given, expected = [flag, str(value + 1)], value + 1  # type: ignore[assignment]
        elif isinstance(value, float):
            given, expected = [flag, str(value / 2 + 0.1)], value / 2 + 0.1  # type: ignore[assignment]
        else:
            given, expected = [flag, "7"], 7 if item.name in ("cut", "new_words") else "7"  # type: ignore[assignment]
        found = run("train", system, "--data", "photos", "--run", "somewhere", *given)
        assert found.exit_code == 0, (given, found.output)
        assert runs[-1][3] == {item.name: expected}, item.name


def test_several_data_sets_with_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = trained(monkeypatch)
    sets = ("--data", "a", "--data", "b", "--data-share", "2", "--data-share", "1")
    found = run("train", "flamingo", *sets, "--strict", "--drawings", "d", "--run", "r", "--json")
    assert found.exit_code == 0 and runs[0][1] == Sources((Path("a"), Path("b")), (2.0, 1.0), True, Path("d"))


RECIPE = """
system = "sat"
[[run]]
name = "xe"
data = ["flickr8k", "coco-extra"]
data_share = [2, 1]
cut = 22
epochs = 3
[[run]]
name = "scst"
data = ["flickr8k"]
strict = true
init = "xe"
objective = "scst"
"""


def test_a_recipe_file_is_a_list_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = trained(monkeypatch)
    (tmp_path / "r.toml").write_text(RECIPE)
    found = run("train", "--recipe", tmp_path / "r.toml", "--data-root", tmp_path, "--run", tmp_path / "out", "--json")
    assert found.exit_code == 0, found.output
    xe, scst = runs
    sets = (tmp_path / "flickr8k", tmp_path / "coco-extra")
    assert xe == ("sat", Sources(sets, (2.0, 1.0)), tmp_path / "out" / "xe", {"cut": 22, "epochs": 3})
    settings = {"init": str(tmp_path / "out" / "xe" / "best"), "objective": "scst"}
    assert scst == ("sat", Sources(sets[:1], (), True), tmp_path / "out" / "scst", settings)
    assert found.output.count('"run": ') == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('system = "sat"', 'system = "dalle"', "system is 'dalle', expected sat, blip2, flamingo"),
        ('system = "sat"', "system = sat", "is not TOML"),
        ('system = "sat"', 'system = "sat"\nauthor = "me"', "found author, run, system"),
        ('name = "scst"', 'name = "xe"', "run 2: name is 'xe'"),
        ('name = "scst"', 'name = "../up"', "run 2: name is '../up'"),
        ('data = ["flickr8k"]', 'data = "flickr8k"', "run 2: data is 'flickr8k', expected a list"),
        ("data_share = [2, 1]", "data_share = [2]", "run 1: 2 data sets but 1 shares"),
        ("epochs = 3", "epochs = 0", "run 1: epochs is 0"),
        ("epochs = 3", "epoch = 3", "run 1: unknown setting 'epoch'"),
        ("epochs = 3", 'epochs = "3"', "run 1: epochs is '3', expected int"),
    ],
)
def test_a_recipe_file_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    (tmp_path / "r.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_recipe_file(tmp_path / "r.toml", tmp_path, tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_recipe_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        run_recipe_file(tmp_path / "none.toml", tmp_path, tmp_path)
    (tmp_path / "big.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(InputError, match="larger than 1 MiB"):
        run_recipe_file(tmp_path / "big.toml", tmp_path, tmp_path)


def test_recipe_needs_a_folder_and_no_command(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    assert "--run DIR" in str(run("train", "--recipe", tmp_path / "r.toml").exception)
    both = run("train", "--recipe", tmp_path / "r.toml", "sat", "--data", "x", "--run", "y")
    assert "which system" in str(both.exception)
    assert "sat" in run("train").output


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.name)
def test_shipped_recipes_are_complete(path: Path, tmp_path: Path) -> None:
    """Each begins with its command, the minutes it takes and the figures to expect; its settings are allowed."""
    head = path.read_text().partition("system =")[0]
    assert f"triptych train --recipe {path.name}" in head and "minutes" in head and "triptych eval" in head
    system, runs = read_recipe_file(path, tmp_path, tmp_path)
    assert system == path.stem and runs


def test_each_system_has_a_recipe() -> None:
    assert {path.stem for path in RECIPE_FILES} == set(RECIPES)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Path] = []
    system = SimpleNamespace(resolve=lambda _: lambda sources, run, recipe: trained.append(run))
    monkeypatch.setitem(SYSTEMS, "sat", system)
    sources, run = Sources((tmp_path,)), tmp_path / "run"
    with only_process(run, ""), pytest.raises(TriptychError, match="another process is training"):
        train_system("sat", sources, run, {})
    train_system("sat", sources, run, {})
    with only_process(run, ""):  # the further processes of a run with several
        monkeypatch.setenv("RANK", "1")
        train_system("sat", sources, run, {})
    assert trained == [run, run] and {path.name for path in tmp_path.iterdir()} == {"run"}
