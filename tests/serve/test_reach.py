"""Who and what is reached, over whole requests, beside test_security.py. Numbers are those of docs/security.md."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from serving import CHAT, client_of
from test_security import KEY, PictureHost
from toy_models import data_url, png, question

from triptych.errors import InputError
from triptych.serve import fetch
from triptych.serve.fetch import fetch_allowed
from triptych.serve.settings import ServerSettings

PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.7"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example", "Origin": "null", "Content-Type": "text/plain"}, 403),
        ({"Origin": "null", "Content-Type": "text/plain"}, 403),
        ({"Content-Type": "text/plain"}, 401),
        ({"Content-Type": "text/plain", "Authorization": f"Bearer {KEY}"}, 415),
        ({"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}, 400),
    ],
)
def test_2_host_origin_key_and_type_are_checked_in_this_order(headers: dict[str, str], status: int) -> None:
    with client_of(api_key=KEY) as client:
        response = client.post(CHAT, content=b"no JSON", headers=headers)
    assert response.status_code == status
    assert ("another server" in response.text) == (headers.get("Host") == "evil.example")


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/v1/models", "/no/such/page"])
@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_6_every_answer_has_the_headers(client: TestClient, path: str, host: str) -> None:
    headers = client.get(path, headers={"Host": host}).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers


def test_7_what_is_allowed_allows_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with client_of(allow_domains=("good.example",)) as client:
        for address in (
            f"file://{tmp_path}/a.png",
            f"{tmp_path}/a.png",
            "http://evil.example/a.png",
            "ftp://good.example/a",
        ):
            assert client.post(CHAT, json=question(address)).status_code == 400, address
    with client_of(allow_folders=(tmp_path,)) as client:
        for address in ("http://good.example/a.png", f"{tmp_path}/a.png", f"ftp://{tmp_path}/a.png"):
            assert client.post(CHAT, json=question(address)).status_code == 400, address


@pytest.fixture
def host() -> Iterator[PictureHost]:
    host = PictureHost({"/a.png": (200, "", png(9)), "/inside": (302, "http://inside.good.example/a.png", b"")})
    yield host
    host.listener.close()


def test_8_a_picture_of_an_allowed_domain_is_answered(host: PictureHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, port, *_, **__: [(2, 1, 6, "", ("127.0.0.1", port))])
    with client_of(allow_domains=("good.example",)) as client:
        body = question(f"http://img.good.example:{host.port}/a.png")
        assert client.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == "What? [9]"


def test_8_each_hop_is_resolved_and_checked(host: PictureHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first name is public; the second, in the same domain, is not."""
    addresses = {"good.example": PUBLIC, "inside.good.example": PRIVATE}
    connected: list[str] = []
    connect = socket.create_connection

    def reach(address: tuple[str, int], **options: float) -> socket.socket:
        connected.append(address[0])
        return connect(("127.0.0.1", host.port), **options)

    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, port, *_, **__: [(2, 1, 6, "", (addresses.get(name, name), port))]
    )
    monkeypatch.setattr(socket, "create_connection", reach)
    with pytest.raises(InputError, match="not allowed"):
        fetch_allowed("http://good.example/inside", ("good.example",))
    assert connected == [PUBLIC] and host.paths == ["/inside"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://good.example/a", b"good.example"),
        ("https://good.example:443/a", b"good.example"),
        ("https://good.example:80/a", b"good.example:80"),
        ("http://good.example/a", b"good.example"),
        ("http://good.example:443/a", b"good.example:443"),
    ],
)
def test_8_a_host_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch, url: str, name: bytes) -> None:
    """With a port if it is not the usual one. Here nothing is encrypted."""
    host, connect = PictureHost({"/a": (200, "", b"picture")}), socket.create_connection
    tls = SimpleNamespace(wrap_socket=lambda raw, **_: raw)
    monkeypatch.setattr(fetch.ssl, "create_default_context", lambda: tls)
    monkeypatch.setattr(fetch, "public_address", lambda name, port: "127.0.0.1")
    monkeypatch.setattr(socket, "create_connection", lambda _, **options: connect(("127.0.0.1", host.port), **options))
    assert fetch_allowed(url, ("good.example",)) == b"picture"
    assert b"\r\nHost: " + name + b"\r\n" in host.requests[0]
    host.listener.close()


@pytest.mark.parametrize("length", ["100000000", "1000000000000000000000"])
def test_10_a_hundred_megabytes_are_refused_before_they_are_read(client: TestClient, length: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": length}
    response = client.post(CHAT, content=b"{}", headers=headers)
    assert (
        response.status_code == 413 and f"{ServerSettings().max_body >> 20} MB" in response.json()["error"]["message"]
    )


def test_14_the_order_of_pictures_is_part_of_a_question(client: TestClient) -> None:
    for first, second in ((10, 20), (20, 10), (10, 20)):
        body = client.post(CHAT, json=question(data_url(first), data_url(second))).json()
        assert body["choices"][0]["message"]["content"] == f"What? [{first}, {second}]"
