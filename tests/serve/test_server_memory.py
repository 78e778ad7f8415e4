"""The memory that bodies and pictures of all requests share, and when it is given back. Numbers are those of docs/security.md."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
from PIL import Image
from serving import CHAT, client_of, running_app, settings
from toy_models import ToyBlip2, ToySat, data_url, question

from triptych.errors import InputError
from triptych.serve import pictures
from triptych.serve.app import create_app
from triptych.serve.errors import ApiError
from triptych.serve.memory import RequestMemory, SharedMemory


def picture() -> Image.Image:
    return Image.new("RGB", (4, 4))


def comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_21_a_body_takes_memory_until_its_request_ends() -> None:
    shared = SharedMemory(100)
    first, second = RequestMemory(shared), RequestMemory(shared)
    first.take(80)
    for size, status in ((30, 503), (101, 413)):
        with pytest.raises(ApiError) as refused:
            second.take(size)
        assert refused.value.status == status
    first.release()
    first.release()
    second.take(100)
    assert shared.taken == 100


def test_21_a_picture_takes_memory_as_long_as_it_is_used() -> None:
    shared = SharedMemory(100)
    memory = RequestMemory(shared)
    memory.take(10)
    during: list[int] = []

    def decode() -> Image.Image:
        during.append(shared.taken)
        return picture()

    photo = memory.load(90, 60, decode)
    assert (during, shared.taken) == ([100], 70)
    with pytest.raises(ApiError) as refused:
        memory.load(40, 10, picture)
    assert refused.value.status == 413 and shared.taken == 70
    assert memory.load(30, 10, decode).size == (4, 4) and during == [100, 100]
    memory.release()
    assert shared.taken == 60 and photo.size == (4, 4)  # a model may still read it
    del photo
    assert shared.taken == 0


def test_21_a_picture_that_cannot_be_decoded_takes_nothing() -> None:
    shared = SharedMemory(100)

    def broken() -> Image.Image:
        raise InputError("no picture")

    with pytest.raises(InputError):
        RequestMemory(shared).load(90, 60, broken)
    assert shared.taken == 0


def test_21_pictures_that_only_the_collector_finds_keep_nobody_out() -> None:
    shared = SharedMemory(100)
    circle: list[object] = [RequestMemory(shared).load(80, 80, picture)]
    circle.append(circle)
    del circle
    assert RequestMemory(shared).load(80, 80, picture).size == (4, 4)


def test_21_the_memory_of_answered_and_refused_requests_is_free_again() -> None:
    with client_of() as client:
        memory = client.app.state.memory  # type: ignore[attr-defined]
        for address in (data_url(), "data:,none"):
            client.post(CHAT, json=question(address))
            assert comes_true(lambda: memory.taken == 0)
        memory.taken = memory.most - 10  # by others
        response = client.post(CHAT, json=question(data_url()))
        assert response.status_code == 503 and response.headers["retry-after"] == "2"


@pytest.mark.parametrize("stream", [False, True])
def test_20_the_memory_of_clients_that_hang_up_is_free_again(stream: bool) -> None:
    model = ToySat(delay=5)
    app = create_app(settings(), {"sat": model, "blip2": ToyBlip2()})
    with running_app(app) as address:
        with suppress(httpx.TimeoutException):
            httpx.post(f"{address}{CHAT}", json=question(data_url(), model="sat", stream=stream), timeout=0.4)
        assert comes_true(lambda: app.state.memory.taken == 0)
        assert 0 < model.steps < 200


def test_20_no_more_pictures_are_read_for_a_client_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    decoded: list[int] = []

    def slow(data: bytes) -> Image.Image:
        reading.set()
        go_on.wait(10)
        decoded.append(len(data))
        return picture()

    monkeypatch.setattr(pictures, "load_image", slow)
    app = create_app(settings(), {"sat": ToySat(), "blip2": ToyBlip2()})
    with running_app(app) as address:
        with suppress(httpx.TimeoutException):
            httpx.post(f"{address}{CHAT}", json=question(*[data_url(n) for n in range(4)]), timeout=0.3)
        assert reading.is_set()
        time.sleep(0.3)  # the server learns that the client has gone
        go_on.set()
        assert comes_true(lambda: app.state.memory.taken == 0)
        time.sleep(0.1)
    assert len(decoded) == 1
