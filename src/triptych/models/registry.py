"""The systems: one row for each, with the same names for what belongs to it. A new system costs one package and one row.

The names are dotted and resolved at first use, so that nothing here imports what lies further down (tasks, training).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from triptych.checkpoints.locate import load_config
from triptych.errors import InputError


@dataclass(frozen=True)
class System:
    """One system; each field is ``package.module:name``.

    module: the paper's model, an ``nn.Module``. model: it with its frozen parts, tokenizer and search settings (``XModel``).
    load, save: ``load(directory) -> XModel``, ``save(directory, XModel, card, dtype=...)``. engine: the
    reference engine, ``TorchX(XModel, device)``. tasks: ``XTasks(engine, name)``, the model in use. train: the trainer behind
    ``triptych train``.
    """

    module: str
    model: str
    load: str
    save: str
    engine: str
    tasks: str
    train: str

    def resolve(self, field: str) -> Any:
        """What the ``field`` of this row names: ``system.resolve("load")(directory)``."""
        module, _, name = getattr(self, field).partition(":")
        return getattr(import_module(module), name)


SYSTEMS: dict[str, System] = {
    "sat": System(
        module="triptych.systems.show_attend_tell:ShowAttendTell",
        model="triptych.models.sat:SatModel",
        load="triptych.models.sat:load_sat",
        save="triptych.models.sat:save_sat",
        engine="triptych.engines.torch.sat:TorchSat",
        tasks="triptych.tasks.sat:SatTasks",
        train="triptych.train.sat.start:train_sat",
    ),
    "flamingo": System(
        module="triptych.systems.flamingo:Flamingo",
        model="triptych.models.flamingo:FlamingoModel",
        load="triptych.models.flamingo:load_flamingo",
        save="triptych.models.flamingo:save_flamingo",
        engine="triptych.engines.torch.flamingo:TorchFlamingo",
        tasks="triptych.tasks.flamingo:FlamingoTasks",
        train="triptych.train.flamingo.start:train_flamingo",
    ),
    "blip2": System(
        module="triptych.systems.blip2:Blip2",
        model="triptych.models.blip2:Blip2Model",
        load="triptych.models.blip2:load_blip2",
        save="triptych.models.blip2:save_blip2",
        engine="triptych.engines.torch.blip2:TorchBlip2",
        tasks="triptych.tasks.blip2:Blip2Tasks",
        train="triptych.train.blip2.start:train_blip2",
    ),
}


def system_of(directory: Path) -> System:
    """The system whose checkpoint lies in ``directory``.

    Raises:
        InputError: its config cannot be read, or names a system that is not registered.
    """
    name = load_config(directory).system
    if name not in SYSTEMS:
        raise InputError(f"{directory / 'config.json'}: system is {name!r}, expected one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
