"""What a person does with a model: ``load`` one, then ``caption``, ``ask``, ``compare``, ``match``, ``complete``, ``chat``.

Pictures in, ``Answer`` out, with evidence when asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from triptych.errors import InputError
from triptych.tasks.answer import Answer, Match
from triptych.tasks.blip2 import Blip2Tasks
from triptych.tasks.capabilities import Answers, Captions, Chats, Completes, Matches, Shot
from triptych.tasks.chat import Chat
from triptych.tasks.flamingo import FlamingoTasks
from triptych.tasks.sat import SatTasks

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
    "load",
    "load_answerer",
    "load_completer",
    "load_matcher",
]


def load(model: str | Path = "sat", device: str | torch.device | None = None) -> SatTasks | FlamingoTasks | Blip2Tasks:
    """A model by its name (``"sat"``, ``"flamingo"``, ``"blip2"``) or checkpoint directory, on ``device`` (a GPU where there is one).

    Raises:
        InputError: no such model, or its files are damaged.
        TriptychError: a pretrained part could not be fetched.
    """
    import torch

    from triptych.checkpoints.locate import locate
    from triptych.models.registry import system_of

    directory = locate(model)
    system = system_of(directory)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    engine = system.resolve("engine")(system.resolve("load")(directory), chosen)
    loaded: SatTasks | FlamingoTasks | Blip2Tasks = system.resolve("tasks")(engine, str(model))
    return loaded


def load_answerer(model: str | Path = "blip2") -> Answers:
    """A model that answers questions. Raises as ``load``, and InputError for one that cannot."""
    loaded = load(model)
    if not isinstance(loaded, Answers):
        raise InputError(f"{model} writes captions only: it cannot answer questions; choose flamingo or blip2")
    return loaded


def load_matcher(model: str | Path = "blip2") -> Matches:
    """A model that matches photos and texts. Raises as ``load``, and InputError for one that cannot."""
    loaded = load(model)
    if not isinstance(loaded, Matches):
        raise InputError(f"{model} writes texts only: it cannot match; choose blip2")
    return loaded


def load_completer(model: str | Path = "flamingo") -> FlamingoTasks:
    """A model that learns from examples in its prompt, and talks. Raises as ``load``, and InputError for one that cannot."""
    loaded = load(model)
    if not isinstance(loaded, FlamingoTasks):
        raise InputError(f"{model} takes no examples and holds no dialogue: choose flamingo")
    return loaded
