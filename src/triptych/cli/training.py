"""``triptych train``: the options of each system are the settings of its recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from triptych.cli.application import Application, app
from triptych.cli.common import Json, emit, set_parameters
from triptych.errors import InputError
from triptych.train.recipe import Settings, all_settings
from triptych.train.sources import Sources
from triptych.train.systems import RECIPES, run_recipe_file, train_system

training = Application(help="Train a system on your own photos.")
app.add_typer(training, name="train")

Run = Annotated[
    Path, typer.Option(metavar="DIR", help="The run's folder; the same command continues after an interruption.")
]
DataSets = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="PATH",
        help="Tar shards, a folder with metadata, JSON of Karpathy, COCO or VQA. Repeat for further data sets.",
    ),
]
Shares = Annotated[
    list[float] | None,
    typer.Option(
        "--data-share",
        metavar="S",
        help="How much of an epoch comes from each --data, in their order, relative to one another.",
        show_default="by size",
    ),
]
StrictTraining = Annotated[bool, typer.Option("--strict", help="Stop at a damaged photo instead of leaving it out.")]
Drawings = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Also named pictures, such as `python -m triptych.data.emoji DIR` makes."),
]
Written = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Captions of the training photos that a model wrote, as `eval caption --output` makes them; the language model learns "
        "them in addition to those of people. Repeat for further files.",
    ),
]

HELP = {
    "sat": "Train Show, Attend and Tell. RUN/best is the checkpoint with the best CIDEr-D of generated validation captions.",
    "blip2": "Train BLIP-2. RUN/best is the checkpoint that did best on the validation photos: by CIDEr-D if the language model "
    "learns to caption, else by R@1.\n\n"
    "With --weight question=1 alone, the photos need questions with answers and no captions (judged by right answers).",
    "flamingo": "Train Flamingo. RUN/best is the checkpoint with the best CIDEr-D plus the share of correct answers with new names.",
}
SEVERAL = "With several data sets, the mean of their figures decides."


@training.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train the runs of a recipe file; sat.toml, flamingo.toml and blip2.toml come with the package.",
        ),
    ] = None,
    data_root: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder that holds the data sets of the recipe file.")
    ] = Path(),
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder for the runs' folders.")] = None,
    as_json: Json = False,
) -> None:
    """Train a system on your own photos."""
    if context.invoked_subcommand:
        if recipe is not None:
            raise InputError("--recipe says which system is trained: leave out the command after it")
        return
    if recipe is None:
        typer.echo(context.get_help())
        return
    if run is None:
        raise InputError("--recipe needs --run DIR, the folder for its runs")
    for name, record in run_recipe_file(find_recipe(recipe), data_root, run).items():
        if record is not None:  # None in the processes beside the main one
            emit({"run": name} | record, as_json, f"{run / name / 'best'}: {json.dumps(record)}")


def find_recipe(recipe: Path) -> Path:
    """The recipe file, or where there is none the file of that name in the package."""
    packaged = Path(__file__).parents[1] / "train" / "recipes" / recipe
    return packaged if packaged.is_file() and not recipe.exists() else recipe


@training.command()
def consensus(
    model: Annotated[str, typer.Argument(help="As --model of the other commands.")],
    data: DataSets,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The checkpoint directory to write.", show_default="the checkpoint itself"),
    ] = None,
    labels: Annotated[
        bool, typer.Option(help="Let the labels of the image encoder's own classifier count, if it has one.")
    ] = True,
    strict: StrictTraining = False,
    as_json: Json = False,
) -> None:
    """Add to a checkpoint what captions of photos agree on. It then guides the search for captions and chooses among their beams.

    A closed form over the training photos and their captions by people; the checkpoint's weights stay as they are. A model that matches
    also gets a querybank: a few hundred photos and captions, against
    which a search holds back what is similar to everything.
    """
    from triptych.checkpoints.format import copy_checkpoint
    from triptych.checkpoints.locate import load_config
    from triptych.cli.evaluation import read_photos
    from triptych.convert.opening import find_checkpoint
    from triptych.evaluate.floor import pool
    from triptych.models.encoders import published_classifier
    from triptych.tasks import Blip2Tasks, load
    from triptych.tasks.querybank import QUERYBANK_FILE
    from triptych.text.consensus import FILE
    from triptych.train.consensus import collect_querybank, fit_consensus

    directory = find_checkpoint(model)
    if out is None and directory != Path(model).expanduser():
        raise InputError(
            f"{model} is not a checkpoint directory of yours and is not changed: name a directory for a copy with --out DIR"
        )
    data_sets = [read_photos(path, "train", None, strict, lambda photo: bool(photo.captions)) for path in data]
    photos = [photo for each in data_sets for photo in each]
    classifier = published_classifier(load_config(directory).encoder.name) if labels else None
    loaded = load(model)
    fitted = fit_consensus(pool(loaded, photos), photos, classifier)
    files = {FILE: fitted.to_bytes()}
    if isinstance(loaded, Blip2Tasks) and loaded.matches:
        files[QUERYBANK_FILE] = collect_querybank(loaded, data_sets, fitted).to_bytes()
    target = out or directory
    copy_checkpoint(directory, target, files)
    record = {"checkpoint": str(target), "photos": len(photos), "words": len(fitted.words)}
    emit(record, as_json, f"{target}: {len(fitted.words)} words of the captions of {len(photos)} photos")


def add_command(system: str) -> None:
    """``triptych train SYSTEM`` with an option for each setting of the system's recipe."""
    default = RECIPES[system]()
    settings = {item.name: option(group, item) for group, item in all_settings(default)}

    def command(**given: Any) -> None:
        own = {name: given.pop(name) for name in settings}
        data, shares, drawings = given["data"], given["data_share"] or (), given.get("drawings")
        written = tuple(given.get("written") or ())
        sources = Sources(tuple(data), tuple(shares), given["strict"], drawings, written)
        record = train_system(system, sources, given["run"], changed(default, own))
        if record is not None:  # None in the processes beside the main one
            emit(record, given["as_json"], f"{given['run'] / 'best'}: {json.dumps(record)}")

    common = {
        "data": (DataSets, ...),
        "run": (Run, ...),
        "data_share": (Shares, None),
        "strict": (StrictTraining, False),
    }
    if system != "sat":
        common["written"] = (Written, None)
    if system == "flamingo":
        common["drawings"] = (Drawings, None)
    set_parameters(command, {**common, **settings, "as_json": (Json, False)})
    command.__doc__ = f"{HELP[system]}\n\n{SEVERAL}"
    training.command(system)(command)


def option(group: Settings, item: Field[Any]) -> tuple[Any, Any]:
    """A setting as an option of Typer: its annotation and its default. A mapping is an option that is repeated for each name."""
    metadata, default = item.metadata, getattr(group, item.name)
    extras = {name: metadata[name] for name in ("metavar", "show_default") if name in metadata}
    flag = metadata.get("option", f"--{item.name.replace('_', '-')}")
    kind = get_type_hints(type(group))[item.name]
    if item.metadata["choices"]:
        kind = type(default) if default is not None else str | None
    if isinstance(default, Mapping) or "=" in metadata.get("metavar", ""):
        return Annotated[list[str] | None, typer.Option(flag, help=metadata["help"], **extras)], None
    if kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    low = metadata["low"] if metadata["low"] is not None else metadata["above"]
    ranged = {} if kind is bool else {"min": low, "max": metadata["high"]}
    return Annotated[kind, typer.Option(flag, help=metadata["help"], **ranged, **extras)], default


def changed(recipe: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the recipe, as settings: lists of ``NAME=NUMBER`` as mappings, empty lists left out."""
    options = {}
    for group, item in all_settings(recipe):
        value = given[item.name]
        if "=" in item.metadata.get("metavar", ""):
            if value:
                options[item.name] = named_numbers(value, item.metadata["option"])
        elif value != getattr(group, item.name):
            options[item.name] = value
    return options


def named_numbers(given: list[str], option: str) -> dict[str, float]:
    """``["itc=1", "itm=0.5"]`` as a dict. Raises InputError: a value is not a number of at least 0, or a name is repeated."""
    try:
        numbers = {name: float(value) for name, value in (pair.split("=") for pair in given)}
    except ValueError:
        numbers = {}
    if len(numbers) < len(given) or not all(0 <= number < math.inf for number in numbers.values()):
        raise InputError(
            f"{option} takes NAME=NUMBER, each name once and no number below 0, such as {option} caption=1"
        )
    return numbers


for each in RECIPES:
    add_command(each)
