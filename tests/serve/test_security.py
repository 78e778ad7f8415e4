"""Who may reach the server, and what pictures may do to it. Numbers are those of docs/security.md."""

import asyncio
import base64
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image
from serving import client_of, running, settings
from toy_models import ToyBlip2, data_url, png, question

from triptych.errors import InputError
from triptych.io.images import PICTURE_FORMATS, content_hash, load_image
from triptych.serve import fetch, security
from triptych.serve.app import create_app
from triptych.serve.fetch import fetch_allowed, is_public, public_address
from triptych.serve.pictures import base64_bytes, data_url_bytes, folder_bytes
from triptych.serve.settings import ServerSettings

CHAT = "/v1/chat/completions"
KEY = "a key of sixteen or more"


def test_1_other_hosts_need_a_key() -> None:
    with pytest.raises(InputError, match="set a key"):
        ServerSettings(host="0.0.0.0")
    with pytest.raises(InputError, match="at least 16"):
        ServerSettings(api_key="short")
    assert ServerSettings().host == "127.0.0.1"
    assert ServerSettings(host="0.0.0.0", api_key=KEY).api_key == KEY


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1.", 200), ("[::1]:8000", 200), ("127.8.9.1", 200)]
    + [(host, 403) for host in ("evil.example", "localhost.evil.example", "10.0.0.1", "", "[::1", "127.0.0.1@evil")],
)
def test_2_the_host_is_checked_first(client: TestClient, host: str, status: int) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://127.0.0.1:9", "file://", "http://["])
def test_3_foreign_origins_are_refused(client: TestClient, origin: str) -> None:
    response = client.post(CHAT, json=question(data_url()), headers={"Origin": origin})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers
    assert client.get("/healthz", headers={"Origin": "http://127.0.0.1"}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_4_only_json_is_taken(client: TestClient, kind: str) -> None:
    assert client.post(CHAT, content=b"{}", headers={"Content-Type": kind}).status_code == 415


def all_routes(routes: Iterable[Any]) -> list[APIRoute]:
    """Also those of included routers."""
    found: list[APIRoute] = []
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None) or []
        found += [route] if isinstance(route, APIRoute) else all_routes(inner)
    return found


def test_5_every_route_needs_the_key() -> None:
    with client_of(api_key=KEY) as client:
        routes = all_routes(create_app(settings(api_key=KEY)).routes)
        assert len(routes) > 15
        for route in routes:
            for method in route.methods:
                status = client.request(method, route.path, json={}).status_code
                assert status == (200 if route.path == "/healthz" else 401), route.path
        good = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/models", headers=good).status_code == 200
        basic = base64.b64encode(f"me:{KEY}".encode()).decode()
        assert client.get("/", headers={"Authorization": f"Basic {basic}"}).status_code == 200
        assert client.get("/").headers["www-authenticate"].startswith("Basic")
        for wrong in (f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", "Bearer é"):
            assert client.get("/v1/models", headers={"Authorization": wrong.encode()}).status_code == 401  # type: ignore[dict-item]


def test_5_the_key_is_compared_in_constant_time_and_never_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    model = ToyBlip2()
    monkeypatch.setattr(model, "ask", None)  # fails within the model
    with caplog.at_level("DEBUG"), client_of({"blip2": model}, api_key=KEY) as client:
        for key in (KEY, "another key of sixteen"):
            headers = {"Authorization": f"Bearer {key}"}
            client.post(CHAT, json=question(data_url()), headers=headers)
            client.get(f"/v1/models?key={key}", headers=headers)
    assert compared == [(key, KEY.encode()) for key in (KEY.encode(),) * 2 + (b"another key of sixteen",) * 2]
    out, err = capfd.readouterr()
    assert KEY not in caplog.text + out + err


def test_an_unexpected_failure_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ToyBlip2):
        def ask(self, *_: object, **__: object) -> object:
            raise RuntimeError("/home/secret/weights.bin is odd")

    with client_of({"blip2": Broken()}) as client:
        response = client.post(CHAT, json=question(data_url()))
        *_, event, done, _ = client.post(CHAT, json={**question(data_url(1), data_url(2)), "stream": True}).text.split(
            "\n\n"
        )
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    for text in (response.text, event):
        assert "secret" not in text and "Traceback" not in text and "internal error" in text
    assert done == "data: [DONE]" and "secret" in caplog.text  # the server's own log has it


def test_6_headers(client: TestClient) -> None:
    headers = client.get("/healthz").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/a.png",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "ftp://x/y",
        "/etc/passwd",
        "\\\\host\\share\\a.png",
        "a.png",
        "http://[",
        "file://[/etc/passwd",
    ],
)
def test_7_addresses_are_switched_off(client: TestClient, address: str) -> None:
    response = client.post(CHAT, json=question(address))
    assert response.status_code == 400 and "data URLs" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "2130706433",
        "0177.0.0.1",
        "224.0.0.1",
        "fe80::1",
        "64:ff9b::10.1.2.3",
        "2002:7f00:1::",
        "::7f00:1",
        "ff02::1",
        "::ffff:10.1.2.3",
    ],
)
def test_8_private_addresses_are_refused(host: str) -> None:
    with pytest.raises(InputError):
        public_address(host, 80)


def test_8_public_addresses_are_known() -> None:
    for host in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"):
        assert is_public(host)


def test_8_one_private_address_of_two_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(InputError, match="not allowed"):
        public_address("two.example", 80)


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/a",
        "http://good.example.evil.example/",
        "http://user@good.example/",
        "ftp://good.example/",
        "http://good.example:99999/",
        "http://good.example/a b",
    ],
)
def test_8_only_allowed_domains(url: str) -> None:
    with pytest.raises(InputError):
        fetch.parse(url, ("good.example",))
    assert fetch.parse("https://img.good.example/x?y", ("good.example",)) == ("img.good.example", 443, True, "/x?y")


class PictureHost:
    """A host on the loopback: answers each path with a status, a location and a body; counts what it is asked."""

    def __init__(self, answers: dict[str, tuple[int, str, bytes]]) -> None:
        self.answers, self.paths, self.requests = answers, list[str](), list[bytes]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(4096))
                self.paths.append(self.requests[-1].split(b" ")[1].decode())
                status, location, body = self.answers[self.paths[-1]]
                head = f"HTTP/1.1 {status} x\r\nLocation: {location}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + body)


@pytest.mark.parametrize("host", ["a..example.com", f"{'a' * 64}.example.com"])
def test_8_a_name_that_no_host_can_have(host: str) -> None:
    with pytest.raises(InputError, match="cannot be resolved"):
        fetch_allowed(f"http://{host}/a.jpg", ("example.com",))


def test_8_redirects_are_checked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    host = PictureHost(
        {
            "/a": (302, "/b", b""),
            "/b": (200, "", b"picture"),
            "/out": (302, "http://127.0.0.1/", b""),
            "/none": (302, "http://[", b""),
            "/loop": (302, "/loop", b""),
        }
    )
    monkeypatch.setattr(fetch, "public_address", lambda name, port: "127.0.0.1")
    base = f"http://good.example:{host.port}"
    assert fetch_allowed(f"{base}/a", ("good.example",)) == b"picture"
    for path in ("/out", "/none"):
        with pytest.raises(InputError, match="not allowed"):
            fetch_allowed(f"{base}{path}", ("good.example",))
    with pytest.raises(InputError, match="redirects"):
        fetch_allowed(f"{base}/loop", ("good.example",))
    assert host.paths.count("/loop") == fetch.HOPS + 1
    monkeypatch.setattr(fetch, "PICTURE_BYTES", 3)
    with pytest.raises(InputError, match="larger"):
        fetch_allowed(f"{base}/b", ("good.example",))
    host.listener.close()


def test_8_a_name_that_changes_between_check_and_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resolved once, and the connection goes to the address that was checked."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    called: list[str] = []

    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (next(answers), 80))]

    def connect(address: tuple[str, int], **_: object) -> None:
        called.append(address[0])
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_allowed("http://good.example/a", ("good.example",))
    assert called == ["93.184.216.34"]


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"], ids=["head", "body"])
def test_8_pictures_that_drip_in_are_given_up(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(head)
            while not stop.wait(0.05):
                connection.sendall(b"H")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    monkeypatch.setattr(fetch, "public_address", lambda name, port: "127.0.0.1")
    monkeypatch.setattr(fetch, "SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(InputError, match="did not arrive"):
        fetch_allowed(f"http://good.example:{listener.getsockname()[1]}/", ("good.example",))
    assert time.monotonic() - started < 5
    stop.set()
    thread.join(5)
    listener.close()


def test_9_a_file_that_becomes_a_link_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, secret = tmp_path / "open", tmp_path / "secret.png"
    folder.mkdir()
    secret.write_bytes(png())
    (folder / "a.png").write_bytes(png())
    open_file = os.open

    def swapped(name: str, flags: int) -> int:
        Path(name).unlink()
        Path(name).symlink_to(secret)
        return open_file(name, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(InputError, match="outside"):
        folder_bytes(str(folder / "a.png"), (folder,))


def test_9_allowed_folders(tmp_path: Path) -> None:
    folder, outside = tmp_path / "open", tmp_path / "closed"
    folder.mkdir()
    outside.mkdir()
    (folder / "a.png").write_bytes(png())
    (outside / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    assert folder_bytes(str(folder / "a.png"), (folder,)) == png()
    assert folder_bytes(str(folder / "loop" / "a.png"), (folder,)) == png()
    for name in (
        outside / "secret.png",
        folder / ".." / "closed" / "secret.png",
        folder / "link.png",
        folder / "pipe",
        "/dev/zero",
        folder,
        folder / "gone",
        "a\0b",
        "/\ud800",
    ):
        with pytest.raises(InputError, match="outside"):
            folder_bytes(str(name), (folder,))
    with client_of(allow_folders=(folder,)) as client:
        assert client.post(CHAT, json=question(f"file://{folder}/a.png")).status_code == 200
        for path in (f"{folder}/%2e%2e/closed/secret.png", f"{outside}/secret.png"):
            assert client.post(CHAT, json=question(f"file://{path}")).status_code == 400


@pytest.mark.parametrize("text", ["", "====", "é", "a", "data", "AAAA*"])
def test_10_base64_that_is_none(text: str) -> None:
    if text == "data":
        assert base64_bytes(text)
    else:
        with pytest.raises(InputError):
            base64_bytes(text)
    with pytest.raises(InputError):
        data_url_bytes(f"data:image/png{text}")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs() -> Iterator[bytes]:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    yield b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    yield (
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)
    )  # a directory that follows itself
    yield b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    yield b"%PDF-1.7\n"
    yield b"8BPS\0\1" + bytes(40)
    yield b"\0\0\1\0\1\0" + bytes(40)


@pytest.mark.parametrize("data", list(bombs()), ids=["png", "tiff", "eps", "pdf", "psd", "ico"])
def test_11_12_bombs_and_other_formats(client: TestClient, data: bytes) -> None:
    started = time.process_time()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert client.post(CHAT, json=question(url)).status_code == 400
    assert time.process_time() - started < 1


@pytest.mark.parametrize("form", PICTURE_FORMATS)
def test_13_pictures_cut_short_are_no_server_errors(client: TestClient, form: str) -> None:
    file = BytesIO()
    try:
        Image.effect_noise((24, 24), 50).convert("RGB").save(file, form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {form}")
    data = file.getvalue()
    for cut in range(0, len(data), 64):
        url = f"data:;base64,{base64.b64encode(data[:cut]).decode()}"
        assert client.post(CHAT, json=question(url)).status_code in (200, 400), cut


def test_14_palettes_and_neighbours_are_told_apart(client: TestClient) -> None:
    def palette(red: int) -> str:
        image = Image.new("P", (4, 4), 0)
        image.putpalette([red, 0, 0])
        file = BytesIO()
        image.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    body = client.post(CHAT, json=question(palette(10), palette(20))).json()
    assert body["choices"][0]["message"]["content"] == "What? [10, 20]"
    assert (
        len({content_hash(load_image(data_url_bytes(palette(red)))) for red in (10, 20)}) == 2
    )  # the keys of features


def test_17_bodies_are_bounded_in_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(max_body=1000) as client:
        assert client.post(CHAT, json=question(data_url() + "A" * 2000)).status_code == 413
        chunks = (b"x" * 500 for _ in range(10))
        assert client.post(CHAT, content=chunks, headers={"Content-Type": "application/json"}).status_code == 413
    monkeypatch.setattr(security, "BODY_SECONDS", 0.2)
    with running() as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(
                b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            slow.settimeout(5)
            assert b"408" in slow.recv(100)


def test_a_request_without_a_host_is_refused() -> None:
    async def call() -> int:
        status = 0

        async def send(message: dict[str, object]) -> None:
            nonlocal status
            status = int(str(message.get("status", status)))

        scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": [], "query_string": b""}
        await create_app(settings())(scope, lambda: asyncio.sleep(0), send)  # type: ignore[arg-type]
        return status

    assert asyncio.run(call()) == 403
