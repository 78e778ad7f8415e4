"""The server on a Ray cluster: Ray Serve runs it in several processes, the replicas, and sends each request to one of them.

A replica is the whole application of ``app.py`` with its own models, queues, limits, memories and metrics. Requests arrive through
Ray's proxy, which checks neither keys nor limits: the replicas do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError

from triptych.cluster import error_line, ray_cluster, room_for_workers
from triptych.errors import InputError, TriptychError
from triptych.serve.app import create_app
from triptych.serve.connections import HEADER_SECONDS
from triptych.serve.models import check_models
from triptych.serve.settings import BATCH_LIMIT, ServerSettings, is_loopback

LIGHT_REQUESTS = 64  # concurrent requests of a replica that need no model: the page, lists, metrics
SHUTDOWN_SECONDS = 60.0  # for running requests to finish


def run_on_cluster(settings: ServerSettings, replicas: int) -> None:
    """Serve until SIGTERM or Ctrl-C on the cluster that ``ray_cluster`` finds; running requests are finished.

    Raises:
        InputError: there is no such model or no room for the replicas, or Ray Serve runs on the cluster already.
        TriptychError: the replicas cannot start.
    """
    check_models(settings.models)
    with ray_cluster():
        start_replicas(settings, replicas)
        print(f"http://{settings.host}:{settings.port}", file=sys.stderr)
        stopped = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        try:
            stopped.wait()
        except KeyboardInterrupt:
            pass
        finally:
            serve.shutdown()


def start_replicas(settings: ServerSettings, replicas: int, open_models: Callable[[], dict[str, Any]] = dict) -> None:
    """Start Ray Serve and the replicas; returns when all have loaded their models. Raises as ``run_on_cluster``.

    ``open_models``: called in each replica; returns models by name that are already loaded (for tests). Must be picklable.
    """
    cpus, room = room_for_workers(wanted=replicas)
    if replicas > room:
        raise InputError(
            f"--replicas {replicas}: the cluster has room for {room}, one processor for each; ask for fewer"
        )
    if settings.port == 0:
        raise InputError("--port 0: name a port, which Ray's proxies listen at")
    if serve.status().proxies:  # its address may be open to others, contrary to --host
        raise InputError("Ray Serve runs on this cluster already, at an address of its own: serve shutdown ends it")
    here = is_loopback(settings.host)
    logs = {"enable_access_log": False}
    requests = len(settings.models) * (settings.queue + BATCH_LIMIT) + LIGHT_REQUESTS
    deployment = serve.deployment(
        serve.ingress(application_builder(settings, open_models))(),
        name="triptych",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=requests,
        max_queued_requests=requests,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        max_constructor_retry_count=2,
        logging_config=logs,
    )
    try:
        serve.start(
            proxy_location="HeadOnly" if here else "EveryNode",
            http_options={"host": settings.host, "port": settings.port, "keep_alive_timeout_s": round(HEADER_SECONDS)},
            logging_config=logs,
        )
        serve.run(deployment.bind(), name="triptych")
    except (RuntimeError, RayError) as error:
        serve.shutdown()
        raise TriptychError(f"the replicas did not start: {error_line(error)}") from None


def application_builder(settings: ServerSettings, open_models: Callable[[], dict[str, Any]]) -> Callable[[], Any]:
    """A function that makes the application in a replica after loading its models. Paths mean what they mean in this process; models
    keep the names that they were given."""
    here = Path.cwd() if any(map(os.path.exists, settings.models)) else None
    absolute = replace(
        settings,
        library=settings.library and settings.library.absolute(),
        allow_folders=tuple(folder.absolute() for folder in settings.allow_folders),
    )

    def build() -> Any:
        if here is not None:
            os.chdir(here)
        app = create_app(absolute, open_models())
        app.state.served.load()
        if failures := app.state.served.failures:
            raise TriptychError("; ".join(f"cannot load {name}: {reason}" for name, reason in failures.items()))
        return app

    return build
