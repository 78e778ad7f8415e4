"""What a person sees who starts a server or sends it something wrong."""

import socket
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from serving import CHAT
from toy_models import data_url, question

from triptych.errors import InputError
from triptych.serve.app import listen
from triptych.serve.models import check_models
from triptych.serve.settings import ServerSettings


def test_an_address_that_is_not_free_is_named_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen at 127\.0\.0\.1:{port}: .*choose another --port"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen at no-such-host\.invalid:80"):
        listen("no-such-host.invalid", 80)


def test_the_loopback_of_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = listen("::1", 0)
    except InputError:
        pytest.skip("no IPv6 here")
    with listener:
        assert listener.family == socket.AF_INET6


def test_what_cannot_be_served_is_refused_at_start(tmp_path: Path) -> None:
    check_models(("sat", "blip2", "owner/name"))
    with pytest.raises(InputError, match="unknown model 'nope'"):
        check_models(("sat", "nope"))
    with pytest.raises(InputError, match="no such library; triptych index makes one"):
        ServerSettings(library=tmp_path / "photos.library")


WRONG = [
    (b'{"model":', "the body is not valid JSON: Expecting value at character 9", None),
    (b"[]", "the body is not a JSON object", None),
    (b'{"model": "sat"}', "messages is missing", "messages"),
    (b'{"model": "sat", "messages": [{"role": "user", "content": 7}]}', "messages[0].content: ", "messages[0].content"),
    (b'{"model": "sat", "messages": [{"role": "x"}]}', "messages[0].role: ", "messages[0].role"),
]


@pytest.mark.parametrize(("body", "message", "param"), WRONG)
def test_a_wrong_body_is_explained(client: TestClient, body: bytes, message: str, param: str | None) -> None:
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400 and error["message"].startswith(message) and error["param"] == param


def test_a_wrong_route_or_method_says_what_there_is(client: TestClient) -> None:
    missing = client.post("/v1/completions", json={"model": "sat", "prompt": "x"})
    assert missing.status_code == 404 and CHAT in missing.json()["error"]["message"]
    method = client.get(CHAT)
    assert method.status_code == 405 and method.json()["error"]["message"].endswith("does not take GET: use POST")
    assert client.post(CHAT, json=question(data_url())).status_code == 200
