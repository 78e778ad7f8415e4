"""OpenAI's routes: chat completions (whole and streamed), models, embeddings; and rerank, which several servers have."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field

from triptych.generate import TOP_LOGPROBS
from triptych.serve.chat import answer_job, answer_kind, answer_pieces, check_picture_role, read_dialogue
from triptych.serve.errors import ApiError, as_api_error, error_body
from triptych.serve.features import embed, encoded, texts_of
from triptych.serve.fields import ModelName, RequiredText, Text
from triptych.serve.jobs import Job, Worker
from triptych.serve.logprobs import choice_logprobs
from triptych.serve.models import Served
from triptych.serve.pictures import RequestPictures
from triptych.serve.settings import (
    ANSWER_LIMIT,
    CHOICE_LIMIT,
    MESSAGE_LIMIT,
    SEEDS,
    TEXT_LIMIT,
    TOKEN_LIMIT,
)
from triptych.serve.stops import StreamEnd, check_stops, cut_at_stop, until_stop
from triptych.tasks import Answer, Matches, TextEnd

openai_router = APIRouter(prefix="/v1")
EMBEDDING_LIMIT = 256  # texts and pictures of a request
UNSUPPORTED = ("tools", "functions", "audio", "logit_bias", "web_search_options", "prediction")


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """Other fields are ignored, except ``UNSUPPORTED``, which are refused."""

    model_config = ConfigDict(extra="allow")

    model: ModelName
    messages: list[Message] = Field(min_length=1, max_length=MESSAGE_LIMIT)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=TOKEN_LIMIT)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=TOKEN_LIMIT)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int = Field(1, ge=1, le=ANSWER_LIMIT)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=TOP_LOGPROBS)

    def check(self) -> None:
        """Raises ApiError: the request asks for a feature that these models lack."""
        for name in UNSUPPORTED:
            if (self.model_extra or {}).get(name):
                raise ApiError(400, f"{name} is not supported", param=name)
        form = (self.model_extra or {}).get("response_format")
        if form and form != {"type": "text"}:
            raise ApiError(400, "response_format: only text is supported", param="response_format")
        if self.n > 1 and not self.temperature:
            raise ApiError(400, "n above 1 needs a temperature above 0", param="n")
        if self.n > 1 and self.stream:
            raise ApiError(400, "a stream holds one answer: n must be 1", param="n")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        check_stops(self.stop, "stop")

    def search_settings(self) -> dict[str, Any]:
        """Fields of ``generate.Search``; missing ones keep the model's values."""
        given = {
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature or None,
            "top_p": self.top_p if self.temperature else None,
            "seed": None if self.seed is None else self.seed % SEEDS,
            "n_best": self.n if self.n > 1 else None,
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def stops(self) -> list[str]:
        return check_stops(self.stop, "stop")


async def read_messages(messages: Sequence[Message], reader: RequestPictures) -> list[tuple[str, str, list[Image]]]:
    """Roles, texts and pictures. Raises ApiError that names the part."""
    return [
        (message.role, *await read_content(message, reader, f"messages[{i}].content"))
        for i, message in enumerate(messages)
    ]


async def read_content(message: Message, reader: RequestPictures, param: str) -> tuple[str, list[Image]]:
    texts: list[str] = []
    pictures: list[Image] = []
    parts = message.content or []
    for number, part in enumerate([{"type": "text", "text": parts}] if isinstance(parts, str) else parts):
        place = f"{param}[{number}]"
        kind = part.get("type")
        if kind in ("text", "input_text"):
            text = part.get("text")
            if not isinstance(text, str):
                raise ApiError(400, f"{place}.text is not a text", param=f"{place}.text")
            texts.append(text)
        elif kind in ("image_url", "input_image"):
            check_picture_role(message.role, place)
            address = part.get("image_url")
            address = address.get("url") if isinstance(address, dict) else address
            if not isinstance(address, str):
                raise ApiError(400, f"{place}.image_url has no url", param=f"{place}.image_url")
            pictures.append(await reader.read(address, f"{place}.image_url"))
        else:
            raise ApiError(
                400,
                f"{place}: parts of the type {str(kind)[:40]!r} are not supported: text and image_url are",
                param=place,
            )
    text = "\n".join(texts)
    if len(text) > TEXT_LIMIT:
        raise ApiError(400, f"{param} has {len(text)} characters: {TEXT_LIMIT} at most", param=param)
    return text.encode("utf-8", "replace").decode(), pictures


@openai_router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Any:
    served: Served = request.app.state.served
    body.check()
    model, worker = served.get(body.model)
    worker.check_room()
    reader = RequestPictures(request)
    messages = await read_messages(body.messages, reader)
    talk = read_dialogue(messages, body.search_settings())
    kind = answer_kind(model, talk)
    if body.stream:
        job = Job(("stream",), talk, stream=lambda talk: answer_pieces(model, kind, talk))
        return StreamingResponse(sse(body, worker.pieces(job, reader.deadline)), media_type="text/event-stream")
    job = answer_job(model, kind, talk, reader.digest())
    return completion(body, await worker.submit(job, reader.deadline))


def completion(body: ChatRequest, answer: Answer) -> dict[str, Any]:
    """The whole answer."""
    texts = [answer.text, *(text for text, _ in answer.alternatives[: body.n - 1])]
    choices = []
    for index, (text, finished) in enumerate(
        zip(texts, (answer.finished, *answer.finished_alternatives), strict=False)
    ):
        cut = cut_at_stop(text, body.stops)
        tokens = (
            choice_logprobs(answer.end, index, body.top_logprobs or 0, cut if cut != text else None)
            if body.logprobs
            else None
        )
        reason = "stop" if finished or cut != text else "length"
        message = {"role": "assistant", "content": cut, "refusal": None}
        choices.append({"index": index, "message": message, "finish_reason": reason, "logprobs": tokens})
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": choices,
        "usage": usage(answer.end),
        "triptych": {"method": answer.method, "logprob": answer.logprob},
    }


def usage(end: TextEnd) -> dict[str, int]:
    total = end.prompt_tokens + end.new_tokens
    return {"prompt_tokens": end.prompt_tokens, "completion_tokens": end.new_tokens, "total_tokens": total}


async def sse(body: ChatRequest, pieces: AsyncGenerator[str | TextEnd, None]) -> AsyncIterator[str]:
    """Server-sent events: a role, pieces of text, the finish reason (with log-probabilities, if requested), usage, if requested,
    ``[DONE]``; errors are events, too."""
    base = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
    }

    def event(delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]
        return f"data: {json.dumps({**base, 'choices': choices}, ensure_ascii=False)}\n\n"

    yield event({"role": "assistant", "content": ""})
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    end, cut = TextEnd(), None
    try:
        async for piece in until_stop(pieces, body.stops, with_usage or body.logprobs):
            if isinstance(piece, StreamEnd):
                end, cut = piece
            else:
                yield event({"content": piece})
    except Exception as error:
        api_error = as_api_error(error)
        yield f"data: {json.dumps(error_body(api_error.status, api_error.message, api_error.param, api_error.code))}\n\n"
        yield "data: [DONE]\n\n"
        return
    tokens = choice_logprobs(end, 0, body.top_logprobs or 0, cut) if body.logprobs else None
    yield event({}, "stop" if end.finished or cut is not None else "length", tokens)
    if with_usage:
        yield f"data: {json.dumps({**base, 'choices': [], 'usage': usage(end)})}\n\n"
    yield "data: [DONE]\n\n"


@openai_router.get("/models")
async def openai_models(request: Request) -> dict[str, Any]:
    served: Served = request.app.state.served
    data = [{"id": name, "object": "model", "created": served.created, "owned_by": "triptych"} for name in served.names]
    return {"object": "list", "data": data}


@openai_router.get("/models/{name:path}")
async def openai_one_model(request: Request, name: str) -> dict[str, Any]:
    served: Served = request.app.state.served
    served.get(name)
    return {"id": name, "object": "model", "created": served.created, "owned_by": "triptych"}


class EmbeddingRequest(BaseModel):
    model: ModelName = "blip2"
    input: str | list[str | dict[str, Any]]
    encoding_format: Literal["float", "base64"] = "float"


class RerankRequest(BaseModel):
    model: ModelName = "blip2"
    query: RequiredText
    documents: list[str | dict[str, Any]] = Field(min_length=1, max_length=CHOICE_LIMIT)
    top_n: int | None = Field(default=None, ge=1)


async def as_item(item: str | dict[str, Any], reader: RequestPictures, param: str) -> str | Image:
    """A text, or the picture of a data URL, ``{"image": ...}`` or ``{"image_url": {"url": ...}}``. Raises ApiError."""
    if isinstance(item, dict):
        if len(given := [name for name in ("text", "image", "image_url") if item.get(name) is not None]) > 1:
            raise ApiError(400, f"{param} has {' and '.join(given)}: send them as items of their own", param=param)
        text = item.get("text")
        address = item.get("image") or item.get("image_url")
        address = address.get("url") if isinstance(address, dict) else address
    else:
        text, address = (None, item) if item[:11].lower() == "data:image/" else (item, None)
    if isinstance(text, str):
        if len(text) > TEXT_LIMIT:
            raise ApiError(400, f"{param} has {len(text)} characters: {TEXT_LIMIT} at most", param=param)
        return text
    if not isinstance(address, str) or not address:
        raise ApiError(400, f"{param} is neither a text nor a picture", param=param)
    return await reader.read(address, param)


async def as_items(items: Sequence[str | dict[str, Any]], reader: RequestPictures, param: str) -> list[str | Image]:
    return [await as_item(item, reader, f"{param}[{i}]") for i, item in enumerate(items)]


def matcher(request: Request, name: str) -> tuple[Matches, Worker]:
    model, worker = request.app.state.served.get(name)
    if not (isinstance(model, Matches) and model.matches):
        raise ApiError(400, f"{name} cannot match pictures with texts: use blip2", param="model")
    worker.check_room()
    return model, worker


@openai_router.post("/embeddings")
async def openai_embeddings(request: Request, body: EmbeddingRequest) -> dict[str, Any]:
    """Features for contrast of texts and pictures, in one space, of length 1; for a picture the mean over its queries."""
    model, worker = matcher(request, body.model)
    items = body.input if isinstance(body.input, list) else [body.input]
    if not 1 <= len(items) <= EMBEDDING_LIMIT:
        raise ApiError(400, f"input has {len(items)} items: 1 to {EMBEDDING_LIMIT}", param="input")
    reader = RequestPictures(request, EMBEDDING_LIMIT)
    content = await as_items(items, reader, "input")

    def run(payloads: Sequence[list[str | Image]]) -> list[tuple[list[list[float]], int]]:
        return [(embed(model, payload), model.count_pieces(texts_of(payload))) for payload in payloads]

    vectors, pieces = await worker.submit(Job(("embed",), content, run=run), reader.deadline)
    data = [
        {"object": "embedding", "index": i, "embedding": encoded(v, body.encoding_format)}
        for i, v in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": body.model,
        "usage": {"prompt_tokens": pieces, "total_tokens": pieces},
    }


@openai_router.post("/rerank")
async def openai_rerank(request: Request, body: RerankRequest) -> dict[str, Any]:
    """Rank pictures by how well they match a text."""
    model, worker = matcher(request, body.model)
    reader = RequestPictures(request, CHOICE_LIMIT)
    pictures = await as_items(body.documents, reader, "documents")
    for i, picture in enumerate(pictures):
        if isinstance(picture, str):
            raise ApiError(400, f"documents[{i}] is not a picture: send a data URL", param=f"documents[{i}]")
    run = lambda payloads: [model.match(photos, [query]) for photos, query in payloads]  # noqa: E731
    result = await worker.submit(Job(("match",), (pictures, body.query), run=run), reader.deadline)
    ranked = sorted(result, key=lambda match: -match.rerank)[: body.top_n]
    return {"model": body.model, "results": [{"index": m.image, "relevance_score": m.itm_prob} for m in ranked]}
