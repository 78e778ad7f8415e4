"""The application: routes, guard, metrics, start and shutdown."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from errno import EADDRINUSE
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from triptych.errors import InputError
from triptych.serve.errors import SERVER_LOG, install_handlers
from triptych.serve.lecture import lecture_router
from triptych.serve.memory import SharedMemory
from triptych.serve.metrics import Metrics, RequestMetrics
from triptych.serve.models import Served, check_models
from triptych.serve.native import native_router
from triptych.serve.ollama import ollama_router
from triptych.serve.openai import openai_router
from triptych.serve.security import Guard
from triptych.serve.settings import FETCH_LIMIT, MEMORY_LIMIT, ServerSettings

if TYPE_CHECKING:
    from triptych.library import SearchedLibrary


def create_app(settings: ServerSettings, loaded: dict[str, Any] | None = None) -> FastAPI:
    """The server as an ASGI application. ``loaded``: models by name that are already loaded (for tests)."""
    metrics = Metrics()
    served = Served(settings, metrics, loaded)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.start()
        yield
        served.close()
        app.state.fetchers.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.settings, app.state.served, app.state.metrics = settings, served, metrics
    app.state.memory = SharedMemory(MEMORY_LIMIT)
    app.state.fetchers = ThreadPoolExecutor(FETCH_LIMIT, thread_name_prefix="fetch")
    app.state.library = searched_library(settings)
    install_handlers(app)
    for routes in (openai_router, ollama_router, native_router, lecture_router):
        app.include_router(routes)

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> JSONResponse:
        state = {
            name: "ready" if name in served.loaded else "failed" if name in served.failures else "loading"
            for name in served.names
        }
        return JSONResponse(state, 200 if served.ready else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        for name, worker in list(served.workers.items()):
            metrics.waiting.labels(name).set(worker.queue.qsize())
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.add_middleware(Guard, settings=settings, memory=app.state.memory)
    app.add_middleware(RequestMetrics, metrics=metrics)  # outermost: what the guard refuses is counted, too
    return app


def searched_library(settings: ServerSettings) -> SearchedLibrary | None:
    if settings.library is None:
        return None
    from triptych.library import SearchedLibrary

    return SearchedLibrary(settings.library)


def run_server(settings: ServerSettings) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests are finished. Progress goes to stderr.

    Raises:
        InputError: there is no such model, or the address is not free.
    """
    import uvicorn

    from triptych.serve.connections import HEADER_SECONDS, TimedConnection

    check_models(settings.models)
    with listen(settings.host, settings.port) as listener:
        config = uvicorn.Config(
            create_app(settings),
            http=TimedConnection,
            loop="asyncio",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=2048,
            timeout_keep_alive=round(HEADER_SECONDS),
            timeout_graceful_shutdown=60,
            h11_max_incomplete_event_size=64 << 10,
        )
        log_to_stderr()
        host, port = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        SERVER_LOG.info("%s: open it in a browser; Ctrl-C ends the server", where)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run([listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError: another program listens there, or this machine has no such address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit it: the second part of an answer does not wait until the client has acknowledged the first, which takes 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        hint = "end the program that listens there, or choose another --port" if error.errno == EADDRINUSE else ""
        reason = (error.strerror or str(error)).partition(" (")[0].lower()  # Python adds the address in brackets
        raise InputError(f"cannot listen at {host}:{port}: {reason}{hint and f'; {hint}'}") from None


def log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    SERVER_LOG.handlers = [handler]
    SERVER_LOG.setLevel(logging.INFO)
    SERVER_LOG.propagate = False
