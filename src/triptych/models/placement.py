"""A model spread over GPUs, memory and the disk, by accelerate's hooks (``--device auto``, ``--device MAP.json``).

What may lie elsewhere than the rest are the blocks of the image encoder and of the language model, most of the weights. On another GPU
they are computed there; in memory or on the disk they come to the main device when they are needed, and go again. The disk is the
checkpoint itself: nothing is copied.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.place import fill
from triptych.checkpoints.store import SafetensorsFile, TensorStore
from triptych.checkpoints.weight_files import read_json
from triptych.errors import InputError
from triptych.extras import importing
from triptych.models.frozen import frozen_prefixes, with_int8_layers
from triptych.models.memory import WIDTHS, bytes_available
from triptych.nn.decoder import Block
from triptych.nn.linear import CpuProduct
from triptych.nn.t5 import T5DecoderBlock
from triptych.nn.vit import ViTBlock

DISK = "disk"
BESIDES = 500_000_000  # bytes on the main device for torch itself and what is computed
SHARE = 0.9  # of free memory that weights may take; the rest is for what is computed


@dataclass(frozen=True)
class Placement:
    """Where a model lies.

    main: the device of all that ``places`` does not name, and of inputs and outputs.
    places: blocks by their names, or what their names begin with, -> a device of torch's or ``disk``; None = chosen by what is free.
    """

    main: torch.device
    places: Mapping[str, str] | None = field(default_factory=dict)


def read_placement(device: str) -> Placement:
    """``auto``, or the path of a JSON file: ``{"lm.blocks": "cpu", "lm.blocks.7": "disk", "": "cuda:0"}``, ``""`` naming the main device.

    Raises:
        InputError: the file cannot be read, or names something else than places.
    """
    main = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device == "auto":
        return Placement(main, None)
    places = read_json(Path(device))
    for name, place in places.items():
        if place != DISK:
            check_place(name, place, device)
    named = places.pop("", None)
    if named == DISK:
        raise InputError(f'{device}: the main device ("") is disk, expected one that computes')
    return Placement(main if named is None else torch.device(named), places)


def placed_dtype(precision: str | None, main: torch.device) -> torch.dtype:
    """The ``precision`` that is asked for, else bf16 on a GPU and fp32 elsewhere. Raises InputError: it is one of integers."""
    if precision in ("int8", "int4"):
        raise InputError(f"--precision {precision} goes with one device: name one, or choose bf16")
    if precision in WIDTHS:
        return WIDTHS[precision]
    return torch.bfloat16 if main.type == "cuda" else torch.float32


def check_place(name: str, place: Any, source: str) -> None:
    """Raises InputError: it is no device, or not here."""
    with suppress(RuntimeError, TypeError):
        chosen = torch.device(place)
        count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (chosen.index or 0) < count.get(chosen.type, 0):
            return
    raise InputError(
        f"{source}: {name!r} is on {json.dumps(place)}, expected disk or a device that is here, such as cpu"
    )


def movable_parts(model: nn.Module) -> dict[str, bool]:
    """The names of what may lie elsewhere, in the order in which it is computed; whether it can also be computed elsewhere.

    Of blocks of a T5's decoder only the layers within may: they are not computed as a whole.
    """
    parts: dict[str, bool] = {}
    for name, module in model.named_modules():
        if isinstance(module, Block | ViTBlock):
            parts[name] = True
        elif isinstance(module, T5DecoderBlock):
            inner = (child for child in module.named_modules() if not [*child[1].children()])
            parts |= {f"{name}.{part}": False for part, leaf in inner if [*leaf.parameters()]}
    return parts


def choose_places(model: nn.Module, placement: Placement, dtype: torch.dtype) -> dict[str, str]:
    """The place of each part that does not lie on the main device.

    Raises:
        InputError: the placement names what is no part, or what cannot lie there; or what must lie on the main device does not fit.
    """
    parts = movable_parts(model)
    if placement.places is None:
        return fitting_places(model, parts, placement.main, dtype)
    chosen: dict[str, str] = {}
    for name, place in sorted(placement.places.items(), key=lambda item: len(item[0])):
        named = [part for part in parts if f"{part}.".startswith(f"{name}.")]
        if not named:
            raise InputError(
                f"{name!r} is no part that can lie on {place}: those begin with "
                f"{', '.join(sorted({part.partition('blocks.')[0] for part in parts}))}"
            )
        if place not in (DISK, "cpu", str(placement.main)) and not all(parts[part] for part in named):
            raise InputError(f"{name!r} cannot be computed on {place}: choose cpu or disk")
        chosen |= dict.fromkeys(named, place)
    return {part: place for part, place in chosen.items() if place != str(placement.main)}


def fitting_places(
    model: nn.Module, parts: Mapping[str, bool], main: torch.device, dtype: torch.dtype
) -> dict[str, str]:
    """The parts on the main device as far as it has room, then on other GPUs, in memory, on the disk.

    Raises:
        InputError: not even the rest fits the main device.
    """
    sizes = {part: sum(p.numel() for p in model.get_submodule(part).parameters()) * dtype.itemsize for part in parts}
    rest = sum(p.numel() for p in model.parameters()) * dtype.itemsize - sum(sizes.values())
    free = free_bytes(main)
    free[str(main)] -= rest + max(sizes.values(), default=0) + BESIDES
    if free[str(main)] < 0:
        needed = (rest + max(sizes.values(), default=0) + BESIDES) / 1e9
        raise InputError(f"{main} has no room for the {needed:.1f} GB that must lie there: free some memory")
    chosen = {}
    for part, size in sizes.items():
        there = (name for name in free if free[name] >= size and (parts[part] or name in ("cpu", str(main))))
        place = next(there, DISK)
        if place != DISK:
            free[place] -= size
        if place != str(main):
            chosen[part] = place
    return chosen


def free_bytes(main: torch.device) -> dict[str, float]:
    """Room for weights by device, the main one first."""
    devices = [main]
    if main.type == "cuda":
        devices += [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count()) if i != (main.index or 0)]
        devices.append(torch.device("cpu"))
    available = {str(device): bytes_available(device) for device in devices}
    return {name: SHARE * (float("inf") if free is None else free) for name, free in available.items()}


class ModelFiles(NamedTuple):
    """What fills a model: the tensors of the checkpoint in ``directory``."""

    directory: Path
    config: CheckpointConfig[Any]
    tensors: TensorStore


def fill_model(model: nn.Module, files: ModelFiles, dtype: torch.dtype, placement: Placement | None) -> None:
    """Give a model the tensors of a checkpoint, as ``dtype`` (int8: see ``with_int8_layers``), all in memory or where ``placement`` says.

    Raises:
        InputError: the tensors do not fit the model, or it does not fit the placement.
    """
    directory, config, tensors = files
    if dtype == torch.int8:
        tensors, dtype = with_int8_layers(model, tensors), torch.bfloat16
    places = {} if placement is None else choose_places(model, placement, dtype)
    check_on_disk(places, directory, config)
    on_disk = [part for part, place in places.items() if place == DISK]
    prefixes = frozen_prefixes(config)
    fill(model, tensors, source=directory, optional_prefixes=prefixes, dtype=dtype, left_out=on_disk)
    if placement is not None and places:
        spread_model(model, placement.main, places, files)


def spread_model(model: nn.Module, main: torch.device, places: Mapping[str, str], files: ModelFiles) -> None:
    """Attach what brings the parts where they are computed. Parts on the disk have no memory, all others their tensors."""
    with importing("train", "a model on several devices"):
        from accelerate import dispatch_model
        from accelerate.utils.modeling import named_module_tensors

    weights = str(files.directory / files.config.weights)
    index = {}
    for part, place in places.items():
        module = model.get_submodule(part)
        for product in module.modules():
            if isinstance(product, CpuProduct):
                product.keeps_packed = False
        if place == DISK:
            for name, tensor in named_module_tensors(module, recurse=True):
                dtype = str(tensor.dtype).removeprefix("torch.")
                index[f"{part}.{name}"] = {"safetensors_file": weights, "dtype": dtype}
    rest = modules_without(model, places)
    for name, tensor in named_module_tensors(model, recurse=True):
        if name in rest:  # a parameter beside modules, which no hook moves
            tensor.data = tensor.data.to(main)
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it warns of parameters without memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of those parameters
        dispatch_model(
            model,
            {name: str(main) for name in rest} | dict(places),
            main_device=str(main),
            offload_index=index or None,
            force_hooks=True,
        )


def check_on_disk(places: Mapping[str, str], directory: Path, config: CheckpointConfig[Any]) -> None:
    """Raises InputError: a part should lie on the disk, and the checkpoint has not its tensors as they are."""
    stored = SafetensorsFile(directory / config.weights)
    for part, place in places.items():
        names = [name for name in stored if name.startswith(f"{part}.")]
        if place == DISK and not (names and all(stored.layout(name).is_floating_point() for name in names)):
            raise InputError(
                f"{directory} does not hold {part} in floats: only what a checkpoint stores, and not in 8 bits, can stay on the disk"
            )


def modules_without(model: nn.Module, parts: Mapping[str, str], prefix: str = "") -> list[str]:
    """The largest modules (and parameters beside them) that hold none of the ``parts``."""
    names = [
        f"{prefix}{name}" for name, _ in (*model.named_parameters(recurse=False), *model.named_buffers(recurse=False))
    ]
    for name, child in model.named_children():
        own = f"{prefix}{name}"
        if own in parts:
            continue
        names += modules_without(child, parts, f"{own}.") if any(p.startswith(f"{own}.") for p in parts) else [own]
    return names
