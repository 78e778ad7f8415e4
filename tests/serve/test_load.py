"""Many requests at once: batches, bounds, cancellation, failures that stay alone, shutdown."""

import asyncio
import ctypes
import gc
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import CHAT, client_of, post_all, running, running_app, settings
from toy_models import ToyBlip2, ToySat, data_url, question

from triptych.errors import TriptychError
from triptych.serve import connections
from triptych.serve.app import create_app
from triptych.serve.jobs import MOST_RETRY, Worker


def test_requests_are_batched_and_each_gets_its_own_answer() -> None:
    model = ToyBlip2(delay=0.05)
    with running({"sat": ToySat(), "blip2": model}) as address:
        responses = asyncio.run(post_all(address, [question(data_url(n), text=f"{n}?") for n in range(24)]))
    assert [r.json()["choices"][0]["message"]["content"] for r in responses] == [f"{n}? [{n}]" for n in range(24)]
    assert max(model.batches) > 4 and sum(model.batches) == 24


def test_22_a_request_that_fails_in_a_batch_fails_alone() -> None:
    model = ToyBlip2(delay=0.05)
    numbers = [1, 2, ToySat.FAULTY, 4, 5, 6]
    with running({"sat": ToySat(), "blip2": model}) as address:
        responses = asyncio.run(post_all(address, [question(data_url(n)) for n in numbers]))
    assert [r.status_code for r in responses] == [400 if n == ToySat.FAULTY else 200 for n in numbers]


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(("sent", "drip"), [(b"", b""), (REQUEST, b""), (REQUEST[:-2] + b"X: ", b"a")])
def test_17_connections_without_a_request_are_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes, drip: bytes) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    received, closed = b"", False
    with running() as address, socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
        client.sendall(sent)
        client.settimeout(0.05)
        deadline = time.monotonic() + 5
        while not closed and time.monotonic() < deadline:
            try:
                part = client.recv(1000)
                received, closed = received + part, not part
            except TimeoutError:
                client.sendall(drip)
            except ConnectionError:
                closed = True
    assert closed and (b"200 OK" in received) == (sent == REQUEST)


def test_17_a_slow_answer_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    model = ToySat(delay=0.6)
    with running({"sat": model, "blip2": ToyBlip2()}) as address, httpx.Client() as client:
        for _ in range(2):
            assert client.post(f"{address}{CHAT}", json=question(data_url(), model="sat")).status_code == 200


def test_18_a_full_queue_says_so_and_others_are_answered() -> None:
    model = ToySat()
    model.gate.clear()
    with running({"sat": model, "blip2": ToyBlip2()}, queue=2) as address:
        timer = threading.Timer(1.0, model.gate.set)
        timer.start()
        bodies = [question(data_url(n), model="sat") for n in range(8)]
        responses = asyncio.run(post_all(address, [*bodies, question(data_url(9))]))
        timer.join()
    statuses = [r.status_code for r in responses]
    assert statuses[-1] == 200 and statuses.count(429) >= 3 and statuses.count(200) >= 3
    assert all(r.headers["retry-after"] for r in responses if r.status_code == 429)


def test_18_a_request_to_a_full_queue_is_refused_before_its_pictures_are_read() -> None:
    model = ToySat()
    model.gate.clear()
    with running({"sat": model, "blip2": ToyBlip2()}, queue=1) as address:
        threads = [
            threading.Thread(target=httpx.post, args=(f"{address}{CHAT}",), kwargs={"json": body, "timeout": 20})
            for body in [question(data_url(n), model="sat") for n in range(18)]
        ]
        for thread in threads:
            thread.start()
        broken = question("data:,no picture", model="sat")
        deadline = time.monotonic() + 10
        while (
            status := httpx.post(f"{address}{CHAT}", json=broken).status_code
        ) != 429 and time.monotonic() < deadline:
            time.sleep(0.05)
        model.gate.set()
        for thread in threads:
            thread.join()
    assert status == 429


def test_18_who_is_to_come_again_finds_the_connection_open() -> None:
    assert connections.HEADER_SECONDS > MOST_RETRY + 10


@pytest.mark.parametrize(("seconds", "again"), [(0.01, 2), (0.5, 32), (10.0, 60)])
def test_18_retry_after_is_the_time_in_which_the_queue_is_answered(seconds: float, again: int) -> None:
    worker = Worker("sat", 64)
    assert worker._queue_full().retry_after == 2
    worker.ended.extend(n * seconds for n in range(10))
    assert worker._queue_full().retry_after == again
    worker.close()


def test_20_a_client_that_hangs_up_stops_the_work() -> None:
    model = ToySat(delay=5)
    with running({"sat": model, "blip2": ToyBlip2()}) as address:
        with suppress(httpx.TimeoutException):
            httpx.post(f"{address}{CHAT}", json=question(data_url(), model="sat"), timeout=0.4)
        steps = -1
        deadline = time.monotonic() + 3
        while steps != model.steps and time.monotonic() < deadline:
            steps = model.steps
            time.sleep(0.15)
        assert 0 < steps < 200


def test_20_clients_that_hang_up_leave_the_queue() -> None:
    """Else their requests, with their pictures, would keep others out."""
    model = ToySat()
    model.gate.clear()
    app = create_app(settings(queue=2), {"sat": model, "blip2": ToyBlip2()})
    waiting = app.state.served.workers["sat"].queue
    with running_app(app) as address:
        patient = threading.Thread(
            target=httpx.post,
            args=(f"{address}{CHAT}",),
            kwargs={"json": question(data_url(), model="sat"), "timeout": 20},
        )
        patient.start()
        while not model.batches:
            time.sleep(0.01)
        for n in range(3):
            with suppress(httpx.TimeoutException):
                httpx.post(f"{address}{CHAT}", json=question(data_url(n), model="sat"), timeout=0.3)
        deadline = time.monotonic() + 5
        while waiting.qsize() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert waiting.qsize() == 0
        model.gate.set()
        patient.join()
    assert len(model.batches) == 1


def test_a_request_that_takes_too_long_is_given_up() -> None:
    model = ToySat(delay=5)
    with client_of({"sat": model, "blip2": ToyBlip2()}, timeout=0.3) as client:
        response = client.post(CHAT, json=question(data_url(), model="sat"))
        assert response.status_code == 504 and response.headers["retry-after"]
    assert model.steps < 200


def resident() -> int:
    """Bytes of this process, once what it does not use any more is given back."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells a process's memory")
def test_21_memory_stays_flat() -> None:
    bodies = [question(data_url(n % 60), text=f"{n}?") for n in range(1000)]
    with client_of() as client:
        for body in bodies[:200]:
            client.post(CHAT, json=body)
        before = resident()
        for body in bodies[200:] + bodies[:200]:
            assert client.post(CHAT, json=body).status_code == 200
        after = resident()
    assert after < 1.05 * before


def test_25_none_of_many_connections_is_lost() -> None:
    """One request in ten is bad; a server that is full says when to come again."""
    good, bad = ToyBlip2(delay=0.01), question("data:image/png;base64,bm9uZQ==")
    bodies = [question(data_url(100 + n)) if n % 10 else bad for n in range(100)]
    with running({"sat": ToySat(), "blip2": good}, queue=16) as address:
        responses = asyncio.run(post_all(address, bodies))
        statuses = [response.status_code for response in responses]
        assert httpx.get(f"{address}/healthz").status_code == 200
    assert {statuses[n] for n in range(0, 100, 10)} <= {400, 429}
    for n, response in enumerate(responses):
        if n % 10:
            assert response.status_code in (200, 429)
            if response.status_code == 200:
                assert response.json()["choices"][0]["message"]["content"] == f"What? [{100 + n}]"
    assert statuses.count(200) >= 16


def test_23_running_requests_are_finished_at_shutdown() -> None:
    model = ToySat(delay=0.5)
    result: list[int] = []

    def ask(address: str) -> None:
        result.append(httpx.post(f"{address}{CHAT}", json=question(data_url(), model="sat"), timeout=10).status_code)

    with running({"sat": model, "blip2": ToyBlip2()}) as address:
        thread = threading.Thread(target=ask, args=(address,))
        thread.start()
        while not model.batches:
            time.sleep(0.01)
    thread.join()
    assert result == [200]


@pytest.mark.parametrize("failure", [TriptychError("damaged"), RuntimeError("onnxruntime failed")])
def test_models_that_load_or_fail_say_so(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    app = create_app(settings(), {"sat": ToySat()})
    served = app.state.served
    assert not served.ready

    def load(name: str) -> None:
        raise failure

    monkeypatch.setattr("triptych.tasks.load", load)
    served.load()
    assert served.ready and "blip2" in served.failures
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/readyz").json() == {"sat": "ready", "blip2": "failed"}
        assert client.get("/v1/page").json()["failed"] == ["blip2"]
