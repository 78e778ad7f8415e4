"""What a person does with a model: ``load`` one, then ``caption``, ``ask``, ``compare``, ``match``, ``complete``, ``chat``.

Pictures in, ``Answer`` out, with evidence when asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import torch

from triptych.errors import InputError
from triptych.models import locate
from triptych.models.registry import system_of
from triptych.tasks.answer import Answer, Match
from triptych.tasks.blip2 import Blip2Tasks
from triptych.tasks.chat import Chat
from triptych.tasks.flamingo import FlamingoTasks, Shot
from triptych.tasks.sat import Captioner

__all__ = [
    "Answer",
    "Blip2Tasks",
    "Captioner",
    "Chat",
    "FlamingoTasks",
    "Match",
    "Model",
    "Shot",
    "load",
    "load_answerer",
    "load_completer",
    "load_matcher",
]

Model: TypeAlias = Captioner | FlamingoTasks | Blip2Tasks


def load(model: str | Path = "sat", device: str | torch.device | None = None) -> Model:
    """A model by its name (``"sat"``, ``"flamingo"``, ``"blip2"``) or checkpoint directory, on ``device`` (a GPU where there is one).

    Raises:
        InputError: no such model, or its files are damaged.
        TriptychError: a pretrained part could not be fetched.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    directory = locate(model)
    system = system_of(directory)
    loaded: Model = system.resolve("tasks")(system.resolve("load")(directory), str(model), chosen)
    return loaded


def load_answerer(model: str | Path = "blip2") -> FlamingoTasks | Blip2Tasks:
    """A model that answers questions. Raises as ``load``, and InputError for one that cannot."""
    loaded = load(model)
    if isinstance(loaded, Captioner):
        raise InputError(f"{model} writes captions only: it cannot answer questions; choose flamingo or blip2")
    return loaded


def load_matcher(model: str | Path = "blip2") -> Blip2Tasks:
    """A model that matches photos and texts. Raises as ``load``, and InputError for one that cannot."""
    loaded = load(model)
    if not isinstance(loaded, Blip2Tasks):
        raise InputError(f"{model} writes texts only: it cannot match; choose blip2")
    return loaded


def load_completer(model: str | Path = "flamingo") -> FlamingoTasks:
    """A model that learns from examples in its prompt, and talks. Raises as ``load``, and InputError for one that cannot."""
    loaded = load(model)
    if not isinstance(loaded, FlamingoTasks):
        raise InputError(f"{model} takes no examples and holds no dialogue: choose flamingo")
    return loaded
