"""Recipes: dataclasses of settings with their help, ranges and defaults, in groups.

The name of a setting is unique within its recipe, so that the command line and recipe files need no groups. This module and the
``recipe`` modules of the systems do not import torch, because ``--help`` reads them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from triptych.errors import InputError

R = TypeVar("R", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] = (),
    **texts: str,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        low, high: the smallest and the largest value allowed.
        above: the value must be greater.
        choices: the values allowed.
        texts: for the command line: ``option`` (another name), ``metavar``, ``show_default``.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices, **texts}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Settings:
    """A frozen dataclass that checks each setting against its type and range. Raises InputError."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in settings_in(self):
            value = checked(item, hints[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)


def checked(item: Field[Any], hint: Any, value: Any) -> Any:
    """The value of a setting in its type (1 as 1.0). Raises InputError with the name, the value, and what is expected."""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if isinstance(kind, type)]
    if value is None and type(None) in kinds:
        return None
    if item.metadata["choices"]:
        if value not in item.metadata["choices"]:
            known = [str(choice) for choice in item.metadata["choices"] if choice is not None]
            raise InputError(f"unknown {item.name} {value!r}: choose {' or '.join(known)}")
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, Mapping):
        return weights_of(item.name, value)
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise InputError(f"{item.name} is {value!r}, expected {expected}")
    if isinstance(value, int | float):
        check_range(item, value)
    return value


def check_range(item: Field[Any], value: float) -> None:
    low, high, above = (item.metadata[name] for name in ("low", "high", "above"))
    if (
        not math.isfinite(value)
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        bounds = [
            f"{word} {bound}"
            for word, bound in (("above", above), ("at least", low), ("at most", high))
            if bound is not None
        ]
        raise InputError(f"{item.name} is {value}, expected a number {' and '.join(bounds)}".removesuffix(" "))


def weights_of(name: str, given: Mapping[str, Any]) -> dict[str, float]:
    """``given`` as floats. Raises InputError: one is not a finite number of at least 0."""
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"{name}: {key} is {value!r}, expected a finite number of at least 0")
    return {str(key): float(value) for key, value in given.items()}


def settings_in(group: Any) -> list[Field[Any]]:
    """The settings of one group, without those of the groups in it."""
    return [item for item in fields(group) if "help" in item.metadata]


def all_settings(recipe: Settings) -> Iterator[tuple[Settings, Field[Any]]]:
    """Every setting of a recipe with its group, in the order of their definition."""
    for item in fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, item.name)
        if "help" in item.metadata:
            yield recipe, item
        elif is_dataclass(value):
            yield from all_settings(value)  # type: ignore[arg-type]


def make_recipe(kind: type[R], given: Mapping[str, Any]) -> R:
    """A recipe with the settings in ``given``, by name, and defaults for the others.

    Raises:
        InputError: there is no such setting, or a value is not allowed.
    """
    default = kind()
    known = [item.name for _, item in all_settings(default)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(sorted(known))}"
            raise InputError(f"unknown setting {name!r}: {hint}")
    return recipe_with(default, given)


def recipe_with(recipe: R, given: Mapping[str, Any]) -> R:
    """A copy with the settings in ``given`` that the recipe has."""
    changes: dict[str, Any] = {}
    for item in fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, item.name)
        if "help" not in item.metadata and isinstance(value, Settings):
            changes[item.name] = recipe_with(value, given)
        elif item.name in given:
            changes[item.name] = given[item.name]
    return replace(recipe, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    learning_rate: float = setting(1e-3, "At its height; it climbs there, then falls to zero along a cosine.", above=0)
    weight_decay: float = setting(1e-4, "Of AdamW.", low=0)
    warmup: float = setting(0.05, "The share of the steps in which the learning rate climbs.", low=0, high=1)
    clip: float = setting(1.0, "The norm that gradients are clipped to.", above=0)
    average: float = setting(
        0.0,
        "Decay of a moving average of the weights, which is validated and kept, such as 0.99; 0 = none.",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class LoopSettings(Settings):
    """The length of a run and its steps. ``batch_size``: items of one optimiser step, over all processes."""

    epochs: int = setting(15, "Number of epochs; after each the model is validated.", low=1)
    epoch_items: int = setting(
        0, "Items of an epoch; the next one continues where it stopped.", low=0, show_default="as many as there are"
    )
    batch_size: int = setting(64, "Items per step.", low=1)
    accumulation: int = setting(1, "Parts that a batch is split into, to save memory.", low=1)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    patience: int = setting(4, "Validations without a better one before stopping.", low=1)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "auto, fp32 or bf16.", choices=("auto", "fp32", "bf16")
    )
    seed: int = setting(0, "Of the order of the data, of dropout and of all that is drawn.", low=0, high=2**31 - 1)
    save_minutes: float = setting(3.0, "Minutes between two saves of the state that a stopped run resumes from.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulation:
            raise InputError(f"a batch of {self.batch_size} cannot be split into {self.accumulation} equal parts")


@dataclass(frozen=True)
class CropSettings(Settings):
    """The part of a photo's grid that a step reads (``train.crops``)."""

    mirror: bool = setting(True, "Mirror half of the photos.")
    cells: float = setting(0.5, "Share of the grid's cells that a step reads, drawn at random.", above=0, high=1)
    window: float = setting(
        0.7, "Those cells come from a random window: its least side, as a share of the grid's.", above=0, high=1
    )


@dataclass(frozen=True)
class RewardSettings(Settings):
    """Self-critical training (``train.self_critical``)."""

    temperature: float = setting(0.5, "Sampling temperature of self-critical training.", above=0)
    bleu_weight: float = setting(
        1.0, "Self-critical training: weight of mean BLEU-1 to 4 in the reward; CIDEr-D has 1.", low=0
    )


def encoder_setting(transformers: bool = False) -> Any:
    """``transformers``: the system also reads photos with vision transformers."""
    others = "; or a CLIP, SigLIP, DINOv2 or ViT, by a directory of transformers or timm or its name on the hub"
    return setting("efficientnet-lite2", f"efficientnet-lite2, vgg19 or resnet101{others if transformers else ''}.")


def encoder_weights_setting() -> Any:
    return setting(None, "torchvision's .pth of vgg19 or resnet101.", metavar="FILE")


def image_size_setting() -> Any:
    return setting(320, "Photos are brought to this square, in pixels.", low=32)


def lm_setting() -> Any:
    return setting(
        "smollm2-135m",
        "The frozen language model: smollm2-135m, a GGUF file, a directory of transformers', or a model on the hub.",
        metavar="LM",
    )
