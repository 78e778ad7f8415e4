"""The guard before all routes: checks a request's host, origin, key, content type, and the size and speed of its body.

It is one ASGI layer, so no route receives a request that it refuses. Order: host (against DNS rebinding), origin (against
pages of other sites), key, content type, body.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.serve.errors import ApiError, error_content, retry_header
from triptych.serve.memory import SCOPE_KEY, RequestMemory, SharedMemory
from triptych.serve.settings import ServerSettings, is_loopback

OPEN_PATHS = ("/healthz",)  # without a key
BODY_SECONDS = 20.0  # for a body to arrive
HEADERS = {
    "Cache-Control": "no-cache",  # after an update the page must not be a mix of old and new files
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


class Guard:
    """The ASGI layer around the application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, memory: SharedMemory) -> None:
        self.app, self.settings, self.memory = app, settings, memory
        self.names = {name.lower() for name in (settings.host, *settings.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        memory = scope[SCOPE_KEY] = RequestMemory(self.memory)
        try:
            try:
                headers = Headers(scope=scope)
                self.check(scope["method"], scope["path"], headers)
                has_body = scope["method"] in ("POST", "PUT", "PATCH")
                body = await self.read_body(headers, receive, memory) if has_body else b""
            except ApiError as error:
                await refuse(error, scope["path"], send_with_headers)
                return
            await run_while_connected(self.app, scope, body, receive, send_with_headers)
        finally:
            memory.release()

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raises ApiError: wrong host or origin, no valid key, or another content type."""
        if not self.known_host(headers.get("host")):
            raise ApiError(403, "the Host header names another server; --host-name gives this one further names")
        origin = headers.get("origin")
        if origin is not None and not self.own_origin(origin, headers.get("host", "")):
            raise ApiError(403, "requests from pages of other sites are refused")
        if self.settings.api_key is not None and path not in OPEN_PATHS:
            given = given_key(headers.get("authorization", ""))
            if not hmac.compare_digest(given.encode(), self.settings.api_key.encode()):
                raise ApiError(401, "send the server's key as 'Authorization: Bearer KEY'", code="invalid_api_key")
        if method in ("POST", "PUT", "PATCH"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, f"the body is {kind or 'of no type'}: send JSON as application/json")

    def known_host(self, host: str | None) -> bool:
        if host is None:
            return False
        try:
            name = urlsplit(f"//{host.strip()}").hostname
        except ValueError:
            return False
        if name is None:
            return False
        name = name.lower().rstrip(".")
        return name in self.names or is_loopback(name)

    def own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.strip().lower()

    async def read_body(self, headers: Headers, receive: Receive, memory: RequestMemory) -> bytes:
        """Raises ApiError: the body is too large, alone or beside others, too slow, or the client has gone."""
        most = self.settings.max_body
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise body_too_large(most)
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the connection closed before the request was complete")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    memory.take(len(chunks[-1]))
                    if size > most:
                        raise body_too_large(most)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
        return b"".join(chunks)


def given_key(authorization: str) -> str:
    """The key of ``Bearer KEY``, or the password of ``Basic ...``, which browsers can ask for; empty if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    return ""


def body_too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most >> 20} MB: send fewer or smaller pictures")


async def run_while_connected(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Answer a request whose body was read; cancel the work if the client disconnects."""
    disconnected = asyncio.Event()
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()

    work: asyncio.Task[None] = asyncio.create_task(app(scope, replay, send))  # type: ignore[arg-type]
    watcher = asyncio.create_task(watch())
    try:
        await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        await work
    except asyncio.CancelledError:
        if not disconnected.is_set():
            work.cancel()
            raise
    finally:
        watcher.cancel()


async def refuse(error: ApiError, path: str, send: Send) -> None:
    content = json.dumps(error_content(path, error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in retry_header(error).items()]
    if error.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="Triptych: any name, the key as password"'))
    if error.status in (408, 413, 503):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
