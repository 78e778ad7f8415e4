"""The server on a cluster: two replicas with equal answers share the requests, and stand in for each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from typing import Any

import httpx
import pytest
from serving import CHAT, settings
from toy_models import ToySat, data_url, question

KEY = "a key of more than sixteen characters"
SERVER = """
import os, sys, tempfile
from pathlib import Path
import ray
from local_ray import start_ray
from toy_models import ToyBlip2, ToySat
from triptych.cluster import ray_cluster
from triptych.serve.cluster import start_replicas
from triptych.serve.settings import ServerSettings

PIDS = Path(sys.argv[2])

class Named(ToySat):
    def caption(self, images, **settings):
        (PIDS / str(os.getpid())).touch()
        return super().caption(images, **settings)

def open_models():
    return {"sat": Named(), "blip2": ToyBlip2()}

start_ray(cpus=2)
settings = ServerSettings(("sat", "blip2"), port=int(sys.argv[1]), api_key=sys.argv[3], max_body=1 << 20)
start_replicas(settings, 2, open_models)
try:
    start_replicas(settings, 1, open_models)
except Exception as error:
    print(error, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path, str]]:
    """Two replicas of toy models: a client with the key, the folder with a file for each process that captioned, and what was printed."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'triptych[cluster]'")
    pids = tmp_path_factory.mktemp("pids")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), str(pids), KEY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((here, *sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        refused = run.stdout.readline()
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ) as client:
            yield client, pids, refused
        run.communicate()


def caption(client: httpx.Client, red: int) -> tuple[int, str]:
    reply = client.post("/v1/caption", json={"model": "sat", "image": data_url(red)})
    return reply.status_code, reply.json().get("caption", reply.text)


def test_replicas_share_the_requests_and_stand_in_for_each_other(served: tuple[httpx.Client, Path, str]) -> None:
    client, pids, _ = served
    reds = list(range(1, 33))
    right = [(200, f"A red of {red}.") for red in reds]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(partial(caption, client), reds)) == right
        both = {int(file.name) for file in pids.iterdir()}
        assert len(both) == 2
        os.kill(both.pop(), signal.SIGKILL)
        time.sleep(1)
        assert list(threads.map(partial(caption, client), reds)) == right
    events = client.post(CHAT, json=question(data_url(), stream=True)).text
    assert events.rstrip().endswith("[DONE]")


def test_a_model_is_found_where_the_server_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from triptych.serve.cluster import application_builder

    (tmp_path / "mine").mkdir()
    opened: list[Path] = []
    monkeypatch.setattr("triptych.tasks.load", lambda name: opened.append(Path(name).resolve()) or ToySat())
    monkeypatch.chdir(tmp_path)
    build = application_builder(settings(models=("mine",)), dict)
    monkeypatch.chdir("/")  # a replica starts elsewhere
    app = build()
    assert opened == [tmp_path.resolve() / "mine"] and app.state.served.names == ("mine",)
    app.state.served.close()


def test_the_guard_is_in_every_replica(served: tuple[httpx.Client, Path, str]) -> None:
    client, _, refused = served
    assert "runs on this cluster already" in refused  # and would listen where another run said
    for headers, status in (
        ({"Host": "elsewhere.example"}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Authorization": "Bearer none"}, 401),
    ):
        assert client.get("/v1/models", headers=headers).status_code == status
    body: dict[str, Any] = {"model": "sat", "image": "x" * (2 << 20)}
    assert client.post("/v1/caption", json=body).status_code == 413


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--host", "0.0.0.0"], "set a key"), ([], "--replicas needs ray: pip install 'triptych[cluster]'")],
)
def test_what_is_refused_before_ray_starts(options: list[str], message: str) -> None:
    probe = "import sys; sys.modules['ray'] = None; from triptych.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", probe, "serve", "--replicas", "2", *options],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "TRIPTYCH_API_KEY"},
    )
    assert ended.returncode in (1, 2) and message in ended.stderr and ended.stderr.count("\n") == 1
