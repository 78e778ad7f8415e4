"""The Python API: ``load`` a model, then ``caption``, ``ask``, ``compare``, ``match``, ``complete``, ``chat``.

Pictures in, ``Answer`` out, with evidence on request.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from triptych.checkpoints.locate import load_config
from triptych.convert.opening import find_checkpoint
from triptych.engines.choice import PRECISIONS, gpu_possible, open_onnx
from triptych.errors import InputError
from triptych.extras import importing, torch_installed
from triptych.tasks.answer import Answer, Match, TextEnd
from triptych.tasks.blip2 import Blip2Tasks
from triptych.tasks.capabilities import Answers, Captions, Chats, Completes, Matches, Shot, Streams
from triptych.tasks.chat import Chat
from triptych.tasks.flamingo import FlamingoTasks
from triptych.tasks.querybank import QUERYBANK_FILE
from triptych.tasks.sat import SatTasks
from triptych.text import consensus

if TYPE_CHECKING:
    import torch

__all__ = [
    "Answer",
    "Answers",
    "Blip2Tasks",
    "Captions",
    "Chat",
    "Chats",
    "Completes",
    "FlamingoTasks",
    "Match",
    "Matches",
    "SatTasks",
    "Shot",
    "Streams",
    "TextEnd",
    "load",
    "load_answerer",
    "load_completer",
    "load_matcher",
    "with_engine",
]


TasksT = TypeVar("TasksT", SatTasks, FlamingoTasks, Blip2Tasks)
ON_TORCH = ("bf16", "fp16")  # precisions that ONNX Runtime does not run
SYSTEM_TASKS = {"sat": SatTasks, "flamingo": FlamingoTasks, "blip2": Blip2Tasks}


def load(
    model: str | Path = "sat", device: str | torch.device | None = None, precision: str | None = None
) -> SatTasks | FlamingoTasks | Blip2Tasks:
    """Load a model.

    Args:
        model: a shipped one (``"sat"``, ``"flamingo"``, ``"blip2"``), a checkpoint's folder, or a published model (``find_checkpoint``).
        device: torch's; ``auto`` = spread over GPUs, memory and disk, as far as each has room, or a JSON file with the device of each part
            (``models.placement``). None = a GPU if there is one, else ONNX Runtime on the CPU, without torch.
        precision: of the weights: fp32, int8 or int4 on ONNX Runtime, None = the fastest that keeps the texts; fp32, bf16, fp16 or int8
            (the language model's weights, which int4 stands for as well) on torch, None = fp32 if it fits the memory, else bf16.

    Raises:
        InputError: no such model, or its files are damaged.
        TriptychError: a pretrained part could not be fetched, or a package that the model needs is not installed.
    """
    if precision not in (None, *PRECISIONS, *ON_TORCH):
        known = ", ".join((*PRECISIONS, *ON_TORCH))
        raise InputError(f"the precision is {precision!r}, expected one of {known}")
    if device is not None:
        check_device(device)
    directory = find_checkpoint(model)
    if device is None and gpu_possible() and torch_installed():
        import torch

        device = "cuda" if torch.cuda.is_available() else None
    system = load_config(directory).system
    if device is None and system in SYSTEM_TASKS and precision not in ON_TORCH:
        engine = open_onnx(directory, precision)
        if engine is not None:
            return with_consensus(SYSTEM_TASKS[system](engine, str(model)), directory)
    return with_consensus(load_on_torch(directory, str(model), device or "cpu", precision), directory)


def with_consensus(
    tasks: SatTasks | FlamingoTasks | Blip2Tasks, directory: Path
) -> SatTasks | FlamingoTasks | Blip2Tasks:
    """``tasks``, with what their checkpoint has beside the weights: the consensus to guide captions, the querybank to search with."""
    files = load_config(directory).files
    if consensus.FILE in files:
        tasks.consensus_file = directory / consensus.FILE
    if QUERYBANK_FILE in files and isinstance(tasks, Blip2Tasks):
        tasks.querybank_file = directory / QUERYBANK_FILE
    return tasks


def with_engine(tasks: TasksT, engine: Any) -> TasksT:
    """The same model, with its consensus and querybank, on ``engine``."""
    moved = type(tasks)(engine, tasks.name)
    moved.consensus_file = tasks.consensus_file
    if isinstance(tasks, Blip2Tasks) and isinstance(moved, Blip2Tasks):
        moved.querybank_file = tasks.querybank_file
    return moved


def check_device(device: str | torch.device) -> None:
    """Raises InputError: torch knows no such device, or this machine does not have it."""
    if is_map(device):
        return
    with importing("torch", "choosing a device"):
        import torch
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(
            f"unknown device {str(device)!r}: expected cpu, cuda, cuda:1, mps, auto or a JSON file"
        ) from None
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if not (chosen.index or 0) < available.get(chosen.type, 0):
        names = [name if n == 1 else f"{name}:0 to {name}:{n - 1}" for name, n in available.items() if n]
        raise InputError(f"there is no device {device} here: choose {' or '.join(names)}")


def is_map(device: str | torch.device) -> bool:
    """Whether ``device`` spreads a model over several devices: ``auto``, or a JSON file."""
    return device == "auto" or str(device).endswith(".json")


def load_on_torch(
    directory: Path, name: str, device: str | torch.device, precision: str | None = None
) -> SatTasks | FlamingoTasks | Blip2Tasks:
    """Load a model of any registered system on torch, the reference engine."""
    with importing("torch", f"{name} on this engine"):
        import torch

    from triptych.models.memory import choose_dtype
    from triptych.models.placement import placed_dtype, read_placement
    from triptych.models.registry import system_of

    system = system_of(directory)
    if is_map(device) and load_config(directory).system != "sat":
        placement = read_placement(str(device))
        dtype, chosen = placed_dtype(precision, placement.main), placement.main
        model = system.resolve("load")(directory, dtype=dtype, placement=placement)
    else:
        chosen = read_placement(str(device)).main if is_map(device) else torch.device(device)
        dtype = choose_dtype(directory, precision, chosen)
        model = system.resolve("load")(directory, dtype=dtype)
    engine = system.resolve("engine")(model, chosen)
    loaded: SatTasks | FlamingoTasks | Blip2Tasks = system.resolve("tasks")(engine, name)
    return loaded


def load_answerer(
    model: str | Path = "blip2", precision: str | None = None, device: str | torch.device | None = None
) -> Answers:
    """Load a model that answers questions. Raises as ``load``, and InputError: it cannot."""
    loaded = load(model, device, precision)
    if not isinstance(loaded, Answers):
        raise InputError(f"{model} writes captions only: it cannot answer questions; choose flamingo or blip2")
    return loaded


def load_matcher(
    model: str | Path = "blip2", precision: str | None = None, device: str | torch.device | None = None
) -> Matches:
    """Load a model that matches photos and texts. Raises as ``load``, and InputError: it cannot."""
    loaded = load(model, device, precision)
    if not isinstance(loaded, Matches):
        raise InputError(f"{model} writes texts only: it cannot match; choose blip2")
    return loaded


def load_completer(
    model: str | Path = "flamingo", precision: str | None = None, device: str | torch.device | None = None
) -> FlamingoTasks:
    """Load a model that learns from examples in its prompt and holds dialogues. Raises as ``load``, and InputError: it does not."""
    loaded = load(model, device, precision)
    if not isinstance(loaded, FlamingoTasks):
        raise InputError(f"{model} takes no examples and holds no dialogue: choose flamingo")
    return loaded
