"""The models of a server, loaded one after another in the background, each with its worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from triptych.engines.interface import Joins
from triptych.engines.onnx.session import physical_cores
from triptych.errors import TriptychError
from triptych.serve.errors import SERVER_LOG, ApiError
from triptych.serve.jobs import Worker
from triptych.serve.metrics import Metrics
from triptych.serve.scheduler import LANES, SharedEngine
from triptych.serve.settings import ServerSettings
from triptych.tasks import Answers, Captions, Chats, Completes, Matches, with_engine
from triptych.tasks.capabilities import Model

CAPABILITIES: Mapping[str, type] = {
    "caption": Captions,
    "ask": Answers,
    "match": Matches,
    "complete": Completes,
    "chat": Chats,
}


def can(model: Model, verb: str) -> bool:
    """Whether a model has a capability and the parts for it. ``verb``: a key of ``CAPABILITIES``."""
    if not isinstance(model, CAPABILITIES[verb]):
        return False
    if isinstance(model, Answers) and verb == "ask":
        return model.answers
    return model.matches if isinstance(model, Matches) and verb == "match" else True


def check_models(names: Sequence[str]) -> None:
    """Raises InputError: there is no such model. Models on the Hugging Face hub are not checked: they are fetched when they are loaded."""
    from triptych.checkpoints.hub import is_model_id
    from triptych.convert.opening import find_checkpoint

    for name in names:
        if not is_model_id(name):
            find_checkpoint(name)


class Served:
    """The models by name. ``start`` loads them, except those that are already ``loaded`` (tests)."""

    def __init__(self, settings: ServerSettings, metrics: Metrics, loaded: dict[str, Any] | None = None) -> None:
        self.names = tuple(dict.fromkeys(settings.models))
        self.settings, self.metrics = settings, metrics
        self.loaded: dict[str, Model] = {}
        self.workers: dict[str, Worker] = {}
        self.failures: dict[str, str] = {}
        self.created = int(time.time())
        for name, model in (loaded or {}).items():
            self.add(name, model)

    def add(self, name: str, model: Any) -> None:
        """Serve a loaded model; several threads share its engine if that can step texts of several requests together (``Joins``)."""
        observe = partial(self.metrics.observe_batch, name)
        shared = None
        if isinstance(engine := getattr(model, "engine", None), Joins):
            shared = SharedEngine(engine, engine.joint_steps, observe, min(LANES, physical_cores()))
            model = with_engine(model, shared)
        remembered = self.metrics.remembered.labels(name).inc
        self.workers[name] = Worker(name, self.settings.queue, observe, shared, remembered)
        self.loaded[name] = model

    def start(self) -> None:
        """Load the models in the background."""
        threading.Thread(target=self.load, name="load-models", daemon=True).start()

    def load(self) -> None:
        """Load the models that are not loaded yet; failures are recorded in ``failures``."""
        from triptych.tasks import load

        for name in self.names:
            if name not in self.loaded:
                started = time.monotonic()
                try:
                    self.add(name, load(name))
                    SERVER_LOG.info("%s is ready (%.1f s)", name, time.monotonic() - started)
                except TriptychError as error:
                    self.failures[name] = str(error)
                    SERVER_LOG.error("cannot load %s: %s", name, error)
                except Exception as error:  # the others are loaded all the same
                    self.failures[name] = f"{type(error).__name__}: {error}"
                    SERVER_LOG.exception("cannot load %s", name)

    @property
    def ready(self) -> bool:
        return len(self.loaded) + len(self.failures) >= len(self.names) and bool(self.loaded)

    def get(self, name: str) -> tuple[Model, Worker]:
        """A model and its worker. The name may have the prefix ``triptych/`` or the suffix ``:latest``.

        Raises ApiError: 404 for an unknown model, 503 while it loads.
        """
        short = name if name in self.names else name.removeprefix("triptych/").removesuffix(":latest")
        if short not in self.names:
            raise ApiError(
                404,
                f"unknown model {name!r}: this server has {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        if short in self.failures:
            raise ApiError(503, f"the model {short} could not be loaded; see the server's log", param="model")
        if short not in self.loaded:
            raise ApiError(503, f"the model {short} is still loading", param="model", retry_after=5)
        return self.loaded[short], self.workers[short]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
