"""The wire formats: OpenAI's and Ollama's, by plain requests and by their own clients."""

import base64
import json

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import client_of, running
from toy_models import ToyBlip2, ToySat, data_url, png, question

from triptych.extras import importing
from triptych.serve import lecture
from triptych.serve.openai import UNSUPPORTED
from triptych.serve.settings import TEXT_LIMIT

CHAT = "/v1/chat/completions"


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_question_with_pictures_in_order(client: TestClient) -> None:
    body = client.post(CHAT, json=question(data_url(1), data_url(2), text="Which?", unknown_field=1)).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Which? [1, 2]", "refusal": None}
    assert body["object"] == "chat.completion" and body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@pytest.mark.parametrize(
    "address",
    [
        data_url(9),
        data_url(9).replace("image/png", "application/x-whatever"),
        data_url(9).rstrip("="),
        f"data:;base64,{base64.urlsafe_b64encode(png(9)).decode()}",
        data_url(9)[:60] + "\n  " + data_url(9)[60:],
        data_url(9).replace("=", "%3D"),
    ],
)
def test_forms_of_a_picture(client: TestClient, address: str) -> None:
    assert text_of(client.post(CHAT, json=question(address))) == "What? [9]"
    bare = {"type": "image_url", "image_url": address}
    message = {"role": "user", "content": [bare, {"type": "text", "text": "What?"}]}
    assert text_of(client.post(CHAT, json={"model": "blip2", "messages": [message]})) == "What? [9]"


def test_captions_turns_and_system(client: TestClient) -> None:
    assert text_of(client.post(CHAT, json=question(data_url(5), model="sat"))) == "A red of 5."
    assert text_of(client.post(CHAT, json=question(data_url(5), text=""))) == "A red of 5."
    first = question(data_url(1), text="One?")["messages"]
    later = [*first, {"role": "assistant", "content": "yes"}, *question(data_url(2), text="Two?")["messages"]]
    body = {"model": "blip2", "messages": [{"role": "system", "content": "Be brief."}, *later]}
    assert text_of(client.post(CHAT, json=body)) == "Two? [1, 2]"  # all pictures, the last question
    for role in ("system", "developer"):
        body = {"model": "blip2", "messages": [{"role": role, "content": "Be brief."}, *first]}
        assert text_of(client.post(CHAT, json=body)) == "Be brief. One? [1]"
    ended = {"model": "blip2", "messages": [*first, {"role": "assistant", "content": "yes"}]}
    assert "end with a question" in client.post(CHAT, json=ended).json()["error"]["message"]


def test_settings_reach_the_model() -> None:
    model = ToyBlip2()
    with client_of({"blip2": model, "sat": ToySat()}) as client:
        fields = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "n": 2, "max_completion_tokens": 5}
        client.post(CHAT, json=question(data_url(), **fields))
        client.post(CHAT, json=question(data_url(), max_tokens=6, temperature=0, seed=1))
    assert model.settings == [
        {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3, "n_best": 2},
        {"max_new_tokens": 6, "seed": 1},
    ]


def events(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.text.splitlines() if line]


def test_streaming_usage_and_stop(client: TestClient) -> None:
    body = question(data_url(8), stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events(client.post(CHAT, json=body))
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "It is 8"
    assert json.loads(usage)["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert done == "[DONE]"
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "stop"
    *chunks, done = events(client.post(CHAT, json=question(data_url(8), stream=True, stop=["is"])))
    assert "".join(json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks) == "It "
    assert text_of(client.post(CHAT, json=question(data_url(8), stop=" ["))) == "What?"
    *chunks, done = events(client.post(CHAT, json=question(data_url(8), model="sat", stream=True)))
    assert "".join(json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks) == "A red of 8"


def test_why_a_text_ended(client: TestClient) -> None:
    """By itself or at a stop: stop. At the limit, even where nothing is cut off: length."""
    cases = ({}, "stop"), ({"max_tokens": 4}, "length"), ({"max_tokens": 4, "stop": "of"}, "stop")
    for fields, reason in cases:
        body = client.post(CHAT, json=question(data_url(5), model="sat", **fields)).json()
        assert body["choices"][0]["finish_reason"] == reason
    for fields, reason in ({}, "stop"), ({"max_tokens": 2}, "length"), ({"max_tokens": 2, "stop": "red"}, "stop"):
        body = question(data_url(5), model="sat", stream=True, stream_options={"include_usage": True}, **fields)
        *_, last, usage, _ = events(client.post(CHAT, json=body))
        assert json.loads(last)["choices"][0]["finish_reason"] == reason
        assert json.loads(usage)["usage"]["completion_tokens"] == fields.get("max_tokens", 4)
    image = base64.b64encode(png(6)).decode()
    for stream in (False, True):
        body = {"model": "sat", "images": [image], "stream": stream, "options": {"num_predict": 4}}
        last = json.loads(client.post("/api/generate", json=body).text.splitlines()[-1])
        assert last["done_reason"] == ("stop" if stream else "length") and last["eval_count"] == 4


def test_an_error_within_a_stream_is_an_event(client: TestClient) -> None:
    lines = events(client.post(CHAT, json=question(data_url(ToySat.FAULTY), stream=True)))
    assert json.loads(lines[1])["error"]["message"] == "this picture is faulty" and lines[-1] == "[DONE]"


def test_logprobs(client: TestClient) -> None:
    body = client.post(CHAT, json=question(data_url(8), logprobs=True, top_logprobs=1, stop="8")).json()
    assert body["choices"][0]["message"]["content"] == "What? ["
    content = body["choices"][0]["logprobs"]["content"]
    assert [c["token"] for c in content] == ["What?", " [8]"] and content[0]["logprob"] == -0.5
    assert content[1]["top_logprobs"] == [{"token": " [8]", "logprob": -0.5, "bytes": [32, 91, 56, 93]}]
    for fields, wanted in (({"logprobs": True}, []), ({}, None)):
        logprobs = client.post(CHAT, json=question(data_url(8), **fields)).json()["choices"][0]["logprobs"]
        assert (logprobs and logprobs["content"][0]["top_logprobs"]) == wanted


BAD = [
    (question(data_url(), model="gpt-4"), 404, "model"),
    (question(data_url(), tools=[{"type": "function"}]), 400, "tools"),
    (question(data_url(), response_format={"type": "json_object"}), 400, "response_format"),
    (question(data_url(), n=9), 400, "n"),
    (question(data_url(), n=2), 400, "n"),
    (question(data_url(), max_tokens=0), 400, "max_tokens"),
    (question(data_url(), max_tokens=100_000), 400, "max_tokens"),
    (question(data_url(), temperature=-1), 400, "temperature"),
    (question(data_url(), top_p=0), 400, "top_p"),
    (question(data_url(), stop=["a"] * 5), 400, "stop"),
    (question(data_url(), logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    (question(data_url(), top_logprobs=2), 400, "top_logprobs"),
    (question(), 400, "messages"),
    (question(*[data_url()] * 17), 400, "messages[0].content[16].image_url"),
    (question(data_url(), text="x" * 20_000), 400, "messages[0].content"),
    (question("data:image/png;base64"), 400, "messages[0].content[0].image_url"),
    (question("data:image/png;base64,"), 400, "messages[0].content[0].image_url"),
    (question("data:image/png;base64,!!!!"), 400, "messages[0].content[0].image_url"),
    (question("data:text/plain;base64,aGVsbG8="), 400, "messages[0].content[0].image_url"),
    (question("data:image/png,raw"), 400, "messages[0].content[0].image_url"),
    ({"model": "blip2", "messages": []}, 400, "messages"),
    (
        {"model": "blip2", "messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        400,
        "messages[0].content[0]",
    ),
    ({"model": "blip2", "messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
    ({"model": "blip2", "messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400, "messages[0].content[0]"),
    ({"model": "blip2", "messages": [{"role": "user", "content": "x"}] * 65}, 400, "messages"),
    *(
        ({"model": "blip2", "messages": [message, *question(data_url())["messages"]]}, 400, "messages[0].content[0]")
        for role in ("system", "assistant")
        for message in [{**question(data_url())["messages"][0], "role": role}]
    ),
    *((question(data_url(), **{name: {"a": 1}}), 400, name) for name in UNSUPPORTED),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD)
def test_bad_requests_name_the_field(client: TestClient, body: object, status: int, param: str) -> None:
    response = client.post(CHAT, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    assert "Traceback" not in error["message"] and "/site-packages" not in error["message"]


LIMITS = [
    ("/v1/caption", {"image": data_url(), "beams": 9}, "beams"),
    ("/v1/caption", {"image": data_url(), "max_new_tokens": 513}, "max_new_tokens"),
    ("/v1/ask", {"images": [data_url()] * 17, "question": "?"}, "images"),
    ("/v1/ask", {"images": [data_url()], "question": "x" * 16_385}, "question"),
    ("/v1/ask", {"images": [data_url()], "question": "?", "choices": [str(n) for n in range(33)]}, "choices"),
    ("/v1/match", {"images": [data_url()], "texts": [str(n) for n in range(33)]}, "texts"),
    ("/v1/embeddings", {"model": "blip2", "input": ["x"] * 257}, "input"),
    ("/v1/rerank", {"query": "x", "documents": [data_url()] * 33}, "documents"),
    ("/v1/complete", {"image": data_url(), "shots": [{"image": data_url(), "text": "a"}] * 16}, "shots"),
    ("/v1/find", {"query": "x", "k": 101}, "k"),
]


PICTURES_WITH_TEXTS = [
    ("/v1/embeddings", {"input": ["a", {"text": "a dog", "image": data_url()}]}, "input[1]"),
    ("/v1/embeddings", {"input": [{"image": data_url(), "image_url": {"url": data_url()}}]}, "input[0]"),
    ("/v1/rerank", {"query": "red", "documents": [{"text": "a dog", "image": data_url()}]}, "documents[0]"),
]


@pytest.mark.parametrize(("path", "body", "param"), PICTURES_WITH_TEXTS)
def test_an_item_is_a_text_or_a_picture(client: TestClient, path: str, body: object, param: str) -> None:
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(("path", "body", "param"), LIMITS)
def test_19_limits_of_the_other_routes(client: TestClient, path: str, body: object, param: str) -> None:
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_content_may_be_a_text(client: TestClient) -> None:
    picture = {"role": "user", "content": question(data_url(4))["messages"][0]["content"][:1]}
    body = {"model": "blip2", "messages": [picture, {"role": "user", "content": "Hm?"}]}
    assert text_of(client.post(CHAT, json=body)) == "Hm? [4]"


def test_two_pictures_in_one_request_are_two_pictures(client: TestClient) -> None:
    assert text_of(client.post(CHAT, json=question(data_url(3), data_url(3)))) == "What? [3, 3]"


def test_models_embeddings_rerank(client: TestClient) -> None:
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["sat", "blip2"]
    assert client.get("/v1/models/blip2").json()["id"] == "blip2"
    assert client.get("/v1/models/x").status_code == 404
    body = {"model": "blip2", "input": ["a dog", {"image": data_url()}]}
    vectors = [row["embedding"] for row in client.post("/v1/embeddings", json=body).json()["data"]]
    assert vectors[0] == [0, 1, 0, 0] and vectors[1] == pytest.approx([0.5] * 4)
    assert client.post("/v1/embeddings", json=body).json()["usage"]["prompt_tokens"] == 5  # as the model counts
    coded = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert len(base64.b64decode(coded)) == 16
    ranked = client.post("/v1/rerank", json={"query": "red", "documents": [data_url(4), data_url(200)]}).json()
    assert [row["index"] for row in ranked["results"]] == [1, 0]
    assert client.post("/v1/rerank", json={"query": "red", "documents": ["no picture"]}).status_code == 400
    assert client.post("/v1/embeddings", json={"model": "sat", "input": "x"}).json()["error"]["param"] == "model"


def test_answers_come_without_maps_where_the_engine_has_none(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToySat, "explains", False)
    body = client.post("/v1/caption", json={"image": data_url(4), "explain": True}).json()
    assert body["caption"] == "A red of 4." and body["evidence"] is None
    asked = {"images": [data_url(4)], "question": "Q?", "explain": True}
    assert client.post("/v1/ask", json=asked).json()["evidence"] is None


@pytest.mark.parametrize("tokens", [1, 4])
def test_the_masks_of_the_page_are_those_of_the_model(tokens: int) -> None:
    masks = pytest.importorskip("triptych.nn.masks")
    drawn = lecture.masks(3, tokens)
    assert drawn == {name: getattr(masks, name)(3, tokens).tolist() for name in ("itc", "itm", "itg")}


def test_the_page_knows_what_each_model_can_do(client: TestClient) -> None:
    state = client.get("/v1/page").json()
    sat, blip2 = state["models"]
    assert sat == {"name": "sat", "can": ["caption", "explain"]}
    assert blip2 == {"name": "blip2", "can": ["caption", "ask", "match", "explain"]}
    assert not state["loading"] and state["failed"] == []
    for example in (state["examples"][0], state["drawings"][0]):
        assert client.get(f"/page/examples/{example}").headers["content-type"].startswith("image/")
    for name in ("credits.json", "..%2fapp.js", "drawings%2f..%2fdog.jpg", "drawings/credits.json"):
        assert client.get(f"/page/examples/{name}").status_code == 404
    assert client.get("/v1/gates").status_code == 404


def test_a_route_that_needs_a_missing_package_names_the_extra(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def caption(*_: object, **__: object) -> None:
        with importing("torch", "explain"):
            import no_such_package  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setattr(ToySat, "caption", caption)
    response = client.post("/v1/explain", json={"image": data_url(4)})
    assert response.status_code == 501
    assert response.json()["error"]["message"] == "explain needs no_such_package: pip install 'triptych[torch]'"


def test_our_own_routes(client: TestClient) -> None:
    body = client.post("/v1/caption", json={"image": data_url(4), "explain": True}).json()
    assert body["caption"] == "A red of 4." and body["evidence"]["words"][0] == "A"
    assert body["evidence"]["maps"][0] == [[[1.0, 1.0], [1.0, 1.0]]]
    assert body["evidence"]["expected"] == ["red", "wall"]
    body = client.post("/v1/ask", json={"images": [data_url(4)], "question": "Q?"}).json()
    assert body["answer"] == "Q? [4]"
    body = client.post("/v1/match", json={"images": [data_url(51)], "texts": ["a", "b"]}).json()
    assert [m["itm_prob"] for m in body["matches"]] == pytest.approx([0.2, 0.2])
    body = client.post("/v1/explain", json={"image": data_url(4)}).json()
    assert body["figure"].startswith("data:image/png;base64,") and body["text"] == "A red of 4."
    assert client.post("/v1/complete", json={"model": "sat", "image": data_url()}).status_code == 400
    assert client.post("/v1/find", json={"query": "dog"}).status_code == 404
    assert client.get("/healthz").text == "ok" and client.get("/readyz").json() == {"sat": "ready", "blip2": "ready"}
    client.get("/v1/models", headers={"Host": "elsewhere.example"})
    counts = client.get("/metrics").text
    assert 'triptych_requests_total{route="/healthz",status="200"} 1.0' in counts
    assert 'triptych_requests_total{route="other",status="403"} 1.0' in counts


def test_ollama_routes(client: TestClient) -> None:
    image = base64.b64encode(png(6)).decode()
    body = client.post(
        "/api/generate", json={"model": "sat:latest", "images": [image], "prompt": "", "stream": False}
    ).json()
    assert body["response"] == "A red of 6." and body["done"]
    message = {"role": "user", "content": "What?", "images": [image]}
    lines = client.post("/api/chat", json={"model": "blip2", "messages": [message]}).text.splitlines()
    parts = [json.loads(line) for line in lines]
    assert "".join(part["message"]["content"] for part in parts) == "It is 6" and parts[-1]["done"]
    assert [model["name"] for model in client.get("/api/tags").json()["models"]] == ["sat", "blip2"]
    assert "vision" in client.post("/api/show", json={"model": "sat"}).json()["capabilities"]
    assert client.post("/api/show", json={"model": "x"}).status_code == 404 and client.get("/api/version").json()


def test_ollama_clients_load_models_ask_for_stops_and_read_errors_as_texts(client: TestClient) -> None:
    image = base64.b64encode(png(6)).decode()
    asked = {"model": "sat", "images": [image], "options": {"stop": [" of"], "seed": -1}}
    whole = client.post("/api/generate", json={**asked, "stream": False}).json()
    assert (whole["response"], whole["done_reason"]) == ("A red", "stop") and whole["eval_duration"] > 0
    lines = [json.loads(line) for line in client.post("/api/generate", json=asked).text.splitlines()]
    assert "".join(line["response"] for line in lines).rstrip() == "A red" and lines[-1]["done"]
    assert lines[-1]["done_reason"] == "stop" and lines[-1]["eval_count"] == whole["eval_count"] == 4
    for path, field in (("generate", "response"), ("chat", "message")):
        loaded = client.post(f"/api/{path}", json={"model": "sat"}).json()
        assert loaded["done_reason"] == "load" and field in loaded
    assert [model["name"] for model in client.get("/api/ps").json()["models"]] == ["sat", "blip2"]
    for body, said in (
        ({"model": "x"}, "unknown model"),
        ({"model": "sat", "images": ["bm9uZQ=="]}, "images[0]"),
        ({"model": "sat", "images": [image], "format": "json"}, "format is not supported"),
        ({}, "model is missing"),
        ({"model": "sat", "images": [""] * 17}, "images: List should have at most 16 items"),
        ({"model": "sat", "options": {"num_predict": 513}}, "options.num_predict: Input should be less than"),
    ):
        assert said in client.post("/api/generate", json=body).json()["error"]
    answered = [{"role": "user", "content": "?", "images": [image]}, {"role": "assistant", "images": [image]}]
    refused = client.post("/api/chat", json={"model": "blip2", "messages": [*answered, answered[0]]})
    assert refused.status_code == 400 and "messages[1].images" in refused.json()["error"]
    assert "no such route" in client.get("/api/none").json()["error"]
    assert "other sites" in client.get("/api/tags", headers={"Origin": "https://example.org"}).json()["error"]


def test_seeds_stops_and_names_as_clients_send_them(client: TestClient) -> None:
    assert client.post(CHAT, json=question(data_url(), temperature=1, seed=-1)).status_code == 200
    assert client.post(CHAT, json=question(data_url(), temperature=1, seed=2**40)).status_code == 200
    for path in ("/", "/healthz", "/readyz"):
        assert client.head(path).status_code == 200
    assert client.get("/v1/models/triptych/sat").json()["id"] == "triptych/sat"
    assert client.get("/v1/models/other/sat").json()["error"]["code"] == "model_not_found"


LONG = "a" * (TEXT_LIMIT + 1)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": LONG}, "input[0]"),
        ("/v1/embeddings", {"input": [{"text": LONG}]}, "input[0]"),
        ("/v1/match", {"images": [data_url()], "texts": ["a", LONG]}, "texts[1]"),
        ("/v1/ask", {"images": [data_url()], "question": "Q?", "choices": ["a", LONG]}, "choices[1]"),
        (CHAT, question(data_url(), stop=[LONG]), "stop[0]"),
        (CHAT, question(data_url(), model=LONG), "model"),
    ],
)
def test_19_every_text_is_bounded(client: TestClient, path: str, body: dict[str, object], param: str) -> None:
    error = client.post(path, json=body).json()["error"]
    assert error["param"] == param and len(error["message"]) < 200


def test_the_official_clients() -> None:
    openai = pytest.importorskip("openai")
    ollama = pytest.importorskip("ollama")
    with running() as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        messages = question(data_url(8))["messages"]
        done = client.chat.completions.create(model="blip2", messages=messages)
        assert done.choices[0].message.content == "What? [8]"
        stream = client.chat.completions.create(model="blip2", messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "It is 8"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4", messages=messages)
        assert [model.id for model in client.models.list()] == ["sat", "blip2"]
        assert len(client.embeddings.create(model="blip2", input="a dog").data[0].embedding) == 4
        client.close()
        other = ollama.Client(host=address)
        reply = other.chat(model="blip2", messages=[{"role": "user", "content": "What?", "images": [png(3)]}])
        assert reply.message.content == "What? [3]"
        assert "".join(p.response for p in other.generate("sat", "", images=[png(3)], stream=True)) == "A red of 3"
        with pytest.raises(ollama.ResponseError, match=r"^unknown model 'gpt-4'"):
            other.generate("gpt-4", "")
        assert other.generate("sat").done and other.ps().models[0].name == "sat"
        other._client.close()


def test_langchain() -> None:
    chat = pytest.importorskip("langchain_openai")
    with running() as address:
        model = chat.ChatOpenAI(model="blip2", base_url=f"{address}/v1", api_key="none", max_retries=0)
        content = question(data_url(8))["messages"][0]["content"]
        assert model.invoke([{"role": "user", "content": content}]).content == "What? [8]"
        model.root_client.close()
