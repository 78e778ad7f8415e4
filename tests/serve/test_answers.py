"""Answers that are remembered: a request that is sent again, or by several clients at the same time, is computed once."""

import asyncio
import base64
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import CHAT, client_of, post_all, running
from toy_models import ToyBlip2, ToyFlamingo, ToySat, data_url, png, question

from triptych.serve.answers import AnswerMemory


def ollama(**fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "What?", "images": [base64.b64encode(png()).decode()]}
    return {"model": "blip2", "messages": [message], "stream": False, **fields}


REQUESTS = [
    (CHAT, question(data_url())),
    (CHAT, question(data_url(), text="")),
    ("/api/chat", ollama()),
    ("/v1/caption", {"model": "blip2", "image": data_url(), "beams": 2}),
    ("/v1/ask", {"images": [data_url()], "question": "What?", "choices": ["a", "b"]}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=[f"{path} {n}" for n, (path, _) in enumerate(REQUESTS)])
def test_a_request_that_is_sent_again_is_not_computed_again(path: str, body: dict[str, Any]) -> None:
    model = ToyBlip2()
    with client_of({"blip2": model}) as client:
        answers = [client.post(path, json=body).json() for _ in range(3)]
        metrics = client.get("/metrics").text
    assert model.batches == [1]
    for answer in answers:
        for name in ("id", "created", "created_at", "total_duration", "eval_duration"):
            answer.pop(name, None)
    assert answers[0] == answers[1] == answers[2]
    assert 'triptych_remembered_answers_total{model="blip2"} 2.0' in metrics


def test_openai_and_ollama_share_them(client: TestClient) -> None:
    texts = [
        client.post(CHAT, json=question(data_url())).json()["choices"][0]["message"]["content"],
        client.post("/api/chat", json=ollama()).json()["message"]["content"],
    ]
    assert texts[0] == texts[1]
    assert 'remembered_answers_total{model="blip2"} 1.0' in client.get("/metrics").text


OTHERS = [
    question(data_url(8)),
    question(data_url(), text="Why?"),
    question(data_url(), max_tokens=5),
    question(data_url(), data_url()),
    question(data_url(), logprobs=True, top_logprobs=1),
    {
        "model": "blip2",
        "messages": [
            *question(data_url(), text="Who?")["messages"],
            {"role": "assistant", "content": "A dog."},
            {"role": "user", "content": "What?"},
        ],
    },
]


@pytest.mark.parametrize("body", OTHERS)
def test_any_difference_is_another_request(body: dict[str, Any]) -> None:
    model = ToyBlip2()
    with client_of({"blip2": model}) as client:
        client.post(CHAT, json=question(data_url()))
        assert client.post(CHAT, json=body).status_code == 200
    assert len(model.batches) == 2


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, lambda picture: question(picture)),
        ("/v1/caption", lambda picture: {"image": picture}),
        ("/v1/ask", lambda picture: {"images": [picture], "question": "What?"}),
        ("/v1/match", lambda picture: {"images": [picture], "texts": ["a dog"]}),
        ("/v1/complete", lambda picture: {"image": picture, "shots": [{"image": data_url(), "text": "a"}]}),
    ],
)
def test_another_picture_is_another_request(path: str, fields: Callable[[str], dict[str, Any]]) -> None:
    with client_of({"blip2": ToyBlip2(), "flamingo": ToyFlamingo()}) as client:
        model = "flamingo" if path == "/v1/complete" else "blip2"
        for value in (7, 90, 7):
            assert client.post(path, json={"model": model, **fields(data_url(value))}).status_code == 200
        assert f'remembered_answers_total{{model="{model}"}} 1.0' in client.get("/metrics").text


def test_examples_and_their_texts_are_part_of_the_request() -> None:
    model = ToyFlamingo()
    calls: list[int] = []
    complete = model.complete
    model.complete = lambda *given, **named: calls.append(1) or complete(*given, **named)  # type: ignore[method-assign, func-returns-value]
    body = {"image": data_url(1), "shots": [{"image": data_url(2), "text": "two"}]}
    others = [{**body, "shots": [{"image": data_url(2), "text": "second"}]}, {**body, "prompt": "a"}]
    others += [{"image": data_url(2), "shots": [{"image": data_url(1), "text": "two"}]}]
    with client_of({"flamingo": model}) as client:
        for one in (body, body, *others, *others):
            assert client.post("/v1/complete", json=one).status_code == 200
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, question(data_url(), temperature=0.7, seed=3)),
        (CHAT, question(data_url(), logprobs=True)),
        ("/v1/caption", {"model": "blip2", "image": data_url(), "explain": True}),
        ("/v1/explain", {"model": "blip2", "image": data_url()}),
        ("/v1/ask", {"images": [data_url()], "question": "What?", "explain": True}),
    ],
)
def test_samples_and_large_answers_are_not_remembered(path: str, body: dict[str, Any]) -> None:
    model = ToyBlip2()
    with client_of({"blip2": model}) as client:
        for _ in range(2):
            assert client.post(path, json=body).status_code == 200
    assert model.batches == [1, 1]


def test_equal_requests_at_the_same_time_are_computed_once() -> None:
    model = ToyBlip2(delay=0.3)
    with running({"blip2": model}, queue=2) as address:
        responses = asyncio.run(post_all(address, [question(data_url())] * 20))
    assert {response.json()["choices"][0]["message"]["content"] for response in responses} == {"What? [7]"}
    assert model.batches == [1]


def test_a_failure_is_not_remembered() -> None:
    model = ToySat()
    with client_of({"sat": model}) as client:
        for _ in range(2):
            body = question(data_url(ToySat.FAULTY), model="sat")
            assert client.post(CHAT, json=body).status_code == 400
    assert model.batches == [1, 1]


def test_who_waits_is_answered_though_the_first_client_hangs_up() -> None:
    model = ToySat(delay=0.6)
    body = question(data_url(), model="sat")

    async def talk(address: str) -> int:
        async with httpx.AsyncClient(base_url=address, timeout=20) as client:
            first = asyncio.create_task(client.post(CHAT, json=body, timeout=0.3))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(client.post(CHAT, json=body))
            with suppress(httpx.TimeoutException):
                await first
            return (await second).status_code

    with running({"sat": model}) as address:
        assert asyncio.run(talk(address)) == 200
    assert model.batches == [1, 1]


def test_each_waits_no_longer_than_its_own_time() -> None:
    model = ToySat(delay=5)
    with running({"sat": model}, timeout=0.4) as address:
        started = time.monotonic()
        responses = asyncio.run(post_all(address, [question(data_url(), model="sat")] * 4))
    assert [response.status_code for response in responses] == [504] * 4 and time.monotonic() - started < 3


def test_the_least_recently_used_are_forgotten() -> None:
    memory, computed = AnswerMemory(limit=2), list[str]()

    async def get(key: str) -> str:
        async def compute() -> str:
            computed.append(key)
            return key.upper()

        answer: str = await memory.get(key, compute)
        return answer

    async def talk() -> None:
        assert [await get(key) for key in "abacab"] == list("ABACAB")

    asyncio.run(talk())
    assert "".join(computed) == "abcb"
