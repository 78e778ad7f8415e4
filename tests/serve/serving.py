"""A server of toy models, in this process and on a real port."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from toy_models import ToyBlip2, ToySat

from triptych.serve.app import create_app
from triptych.serve.connections import TimedConnection
from triptych.serve.settings import ServerSettings

CHAT = "/v1/chat/completions"


def settings(**fields: Any) -> ServerSettings:
    return ServerSettings(**{"models": ("sat", "blip2"), **fields})


@contextmanager
def client_of(models: dict[str, Any] | None = None, **fields: Any) -> Iterator[TestClient]:
    models = models or {"sat": ToySat(), "blip2": ToyBlip2()}
    app = create_app(settings(models=tuple(models), **fields), models)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@contextmanager
def running(models: dict[str, Any] | None = None, **fields: Any) -> Iterator[str]:
    """A server on a free port of the loopback; its address."""
    models = models or {"sat": ToySat(), "blip2": ToyBlip2()}
    with running_app(create_app(settings(models=tuple(models), **fields), models)) as address:
        yield address


@contextmanager
def running_app(app: FastAPI) -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=TimedConnection, loop="asyncio", log_level="error", timeout_graceful_shutdown=10)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


async def post_all(address: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
