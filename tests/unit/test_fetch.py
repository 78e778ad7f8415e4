"""Pictures at addresses, from a server of our own."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pictures import NOISE, PNG, pixels, refusal

from triptych.io import limits

# Addresses


class Site(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.seen.append(self.path)
        page, _, query = self.path.partition("?")
        if page == "/redirect":
            return self.reply(302, b"", Location=query)
        if page == "/missing":
            return self.reply(404, b"")
        if page == "/html":
            return self.reply(200, b"<html>")
        if page == "/endless":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(4096))
            except OSError:
                return None
        if page == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", "9999")
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return None
        if page == "/silent":
            time.sleep(1)
        if page == "/broken":
            self.send_response(200)
            self.send_header("Content-Length", "9999")
            self.end_headers()
            self.wfile.write(PNG[:80])
            self.close_connection = True
            return None
        return self.reply(200, PNG)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_url(site: str) -> None:
    assert np.array_equal(pixels(f"{site}/a.png?size=3#top"), NOISE)
    assert Site.seen[-1] == "/a.png?size=3"
    assert np.array_equal(pixels(f"{site}/사진 1%20.png?q=é"), NOISE)
    assert Site.seen[-1] == "/%EC%82%AC%EC%A7%84%201%20.png?q=%C3%A9"


def test_redirects(site: str, tmp_path: Path) -> None:
    assert np.array_equal(pixels(f"{site}/redirect?/a.png"), NOISE)
    file = tmp_path / "secret.png"
    file.write_bytes(PNG)
    for target in (file.as_uri(), "data:image/png;base64,AAAA", "/redirect?/redirect"):
        refusal(f"{site}/redirect?{target}")
    assert "unknown url type: ftp" in refusal(f"{site}/redirect?ftp://127.0.0.1/a.png")
    assert "404" in refusal(f"{site}/redirect?{site}/missing")


def test_addresses_refused(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "404" in refusal(f"{site}/missing")
    assert "not a picture" in refusal(f"{site}/html")
    assert "damaged" in refusal(f"{site}/broken")
    assert "refused" in refusal("http://127.0.0.1:9/a.png")
    message = refusal(f"{site}/html?token=SECRET#x")
    assert "SECRET" not in message and message.startswith(f"{site}/html: ")
    message = refusal(site.replace("//", "//user:SECRET@") + "/a.png")
    assert "SECRET" not in message and "password" in message
    for address in (
        "http://",
        "http:///a.png",
        "http://[::1/a.png",
        "http://a..b/",
        "http://127.0.0.1:port/",
        "http:x",
    ):
        refusal(address)


def test_address_bounds(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 100_000)
    assert "larger than" in refusal(f"{site}/endless")
    monkeypatch.setattr(limits, "URL_TIMEOUT", 0.3)
    start = time.perf_counter()
    assert "did not arrive" in refusal(f"{site}/slow")
    assert "no answer" in refusal(f"{site}/silent")
    assert time.perf_counter() - start < 2
