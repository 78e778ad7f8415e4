"""What a person sees who starts a server or sends it something wrong."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import CHAT, client_of
from tiny_blip2 import blip2_tasks
from toy_models import ToyBlip2, ToySat, data_url, question

from triptych import load
from triptych.errors import InputError
from triptych.serve.app import listen
from triptych.serve.metrics import Metrics
from triptych.serve.models import Served, check_models
from triptych.serve.settings import ServerSettings
from triptych.tasks import with_engine


def test_an_address_that_is_not_free_is_named_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"cannot listen at 127\.0\.0\.1:{port}: address already in use; .*choose another --port"
        ):
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
    for name in (
        "https://example.org",
        "example.org:8000",
        "*.example.org",
        ".example.org",
        "example.org/a",
        "[::1]",
        "",
    ):
        with pytest.raises(InputError, match=r"--host-name .*: give the name alone"):
            ServerSettings(hosts=(name,))
        with pytest.raises(InputError, match=r"--allow-domain .*: give the name alone"):
            ServerSettings(allow_domains=("example.org", name))
    ServerSettings(hosts=("Photos.example.org", "2001:db8::1"), allow_domains=("10.0.0.1", "xn--bcher-kva.example"))
    for key in ("a key of sixteen or more ", "Schlüssel zum Dienst", "a key of\nsixteen or more"):
        with pytest.raises(InputError, match="no header can carry"):
            ServerSettings(api_key=key)


def test_models_are_served_once_and_by_their_own_names() -> None:
    with client_of({"owner/blip2": ToyBlip2(), "triptych/sat": ToySat()}) as client:
        served = client.app.state.served  # type: ignore[attr-defined]
        again = Served(replace(served.settings, models=("owner/blip2", "triptych/sat") * 2), Metrics(), served.loaded)
        assert again.names == ("owner/blip2", "triptych/sat") and again.ready
        assert client.get("/v1/models/triptych/sat").status_code == 200
        again.close()


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


PHOTOS = Path(__file__).parents[2] / "src" / "triptych" / "examples"


def test_a_server_captions_as_the_command_line_does() -> None:
    """With the consensus of the shipped model, and as many beams."""
    model = load("sat")
    photos = [PHOTOS / f"{name}.jpg" for name in ("dog", "riders", "kitchen")]
    wanted = [(answer.text, answer.logprob) for answer in model.caption(photos)]
    with client_of({"sat": model}) as client:
        for photo, (text, logprob) in zip(photos, wanted, strict=True):
            address = f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"
            answer = client.post("/v1/caption", json={"image": address}).json()
            assert answer["caption"] == text and answer["logprob"] == pytest.approx(logprob, abs=1e-3)
            chat = client.post(CHAT, json=question(address, text="", model="sat")).json()
            assert chat["choices"][0]["message"]["content"] == text


def test_another_engine_keeps_what_a_checkpoint_has_beside_its_weights(tmp_path: Path) -> None:
    tasks = blip2_tasks()
    tasks.consensus_file, tasks.querybank_file = tmp_path / "consensus", tmp_path / "querybank"
    moved = with_engine(tasks, tasks.engine)
    assert moved is not tasks and moved.name == tasks.name
    assert (moved.consensus_file, moved.querybank_file) == (tasks.consensus_file, tasks.querybank_file)


PROGRAM = """
import sys
from toy_models import ToySat
from triptych.serve import app
from triptych.serve.settings import ServerSettings
create = app.create_app
app.create_app = lambda settings: create(settings, {"sat": ToySat(delay=1.0)})
app.run_server(ServerSettings(models=("sat",), port=int(sys.argv[1])))
"""


def test_23_a_request_that_runs_is_answered_after_sigterm() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM, str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None and address in server.stderr.readline()
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(httpx.post, f"{address}{CHAT}", json=question(data_url(), model="sat"), timeout=20)
            time.sleep(0.5)  # a toy takes a second
            server.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        assert server.wait(20) in (0, -signal.SIGTERM) and "Traceback" not in server.stderr.read()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_the_parts_of_an_answer_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
