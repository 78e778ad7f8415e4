"""Ollama's routes, which photo managers use: generate, chat, tags, ps, show, version."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL.Image import Image
from pydantic import BaseModel, Field

from triptych.serve.chat import answer_job, answer_kind, answer_pieces, check_picture_role, read_dialogue
from triptych.serve.deadline import deadline_of
from triptych.serve.errors import ApiError, as_api_error
from triptych.serve.fields import ModelName, Text
from triptych.serve.jobs import Job
from triptych.serve.pictures import RequestPictures
from triptych.serve.settings import MESSAGE_LIMIT, PICTURE_LIMIT, SEEDS, TOKEN_LIMIT
from triptych.serve.stops import StreamEnd, check_stops, cut_at_stop, until_stop
from triptych.tasks import TextEnd

ollama_router = APIRouter(prefix="/api")


class Options(BaseModel):
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1000)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    num_predict: int | None = Field(default=None, ge=-2, le=TOKEN_LIMIT)
    stop: Text | list[Text] | None = None

    def search_settings(self) -> dict[str, Any]:
        """Fields of ``generate.Search``. Ollama's clients always send a temperature, so it counts only together with a seed."""
        given: dict[str, Any] = {}
        if self.num_predict is not None and self.num_predict > 0:
            given["max_new_tokens"] = self.num_predict
        if self.temperature and self.seed is not None:
            given |= {"temperature": self.temperature, "seed": self.seed % SEEDS}
            given |= {} if self.top_p is None else {"top_p": self.top_p}
            given |= {} if self.top_k is None else {"top_k": self.top_k}
        return given


class OllamaRequest(BaseModel):
    """Other fields are ignored, except ``tools`` and ``format``, which are refused."""

    model: ModelName
    stream: bool = True
    options: Options | None = None
    tools: Any = None
    format: Any = None

    def check(self) -> None:
        """Raises ApiError: the request asks for a feature that these models lack."""
        for name in ("tools", "format"):
            if getattr(self, name):
                raise ApiError(400, f"{name} is not supported", param=name)


class OllamaGenerateRequest(OllamaRequest):
    prompt: Text = ""
    system: Text = ""
    images: list[str] | None = Field(default=None, max_length=PICTURE_LIMIT)


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: Text = ""
    images: list[str] | None = Field(default=None, max_length=PICTURE_LIMIT)


class OllamaChatRequest(OllamaRequest):
    messages: list[ChatMessage] = Field(default_factory=list, max_length=MESSAGE_LIMIT)


async def pictures_of(images: list[str] | None, reader: RequestPictures, param: str) -> list[Image]:
    """Pictures as bare base64, as Ollama's clients send them, or as data URLs. Raises ApiError: one cannot be read."""
    addresses = [image if image[:5].lower() == "data:" else f"data:;base64,{image}" for image in images or []]
    return [await reader.read(address, f"{param}[{i}]") for i, address in enumerate(addresses)]


@ollama_router.post("/generate")
async def ollama_generate(request: Request, body: OllamaGenerateRequest) -> Any:
    """A request without a prompt and pictures loads a model, as in Ollama; here it is loaded already."""
    answering = OllamaAnswer(request, body, lambda text: {"response": text})
    if not (body.prompt or body.images):
        return answering.record("", TextEnd(True), "load")
    messages: list[tuple[str, str, list[Image]]] = [("system", body.system, [])] if body.system else []
    reader = RequestPictures(request)
    pictures = await pictures_of(body.images, reader, "images")
    return await answering.reply([*messages, ("user", body.prompt, pictures)], reader)


@ollama_router.post("/chat")
async def ollama_chat(request: Request, body: OllamaChatRequest) -> Any:
    """A request without messages loads a model."""
    answering = OllamaAnswer(request, body, lambda text: {"message": {"role": "assistant", "content": text}})
    if not body.messages:
        return answering.record("", TextEnd(True), "load")
    reader = RequestPictures(request)
    messages: list[tuple[str, str, list[Image]]] = []
    for i, message in enumerate(body.messages):
        place = f"messages[{i}].images"
        if message.images:
            check_picture_role(message.role, place)
        messages.append((message.role, message.content, await pictures_of(message.images, reader, place)))
    return await answering.reply(messages, reader)


class OllamaAnswer:
    """The answer to one request. ``wrap``: a text as fields of the answer.

    Raises ApiError: no such model, its queue is full, or the request asks for more than it can do.
    """

    def __init__(self, request: Request, body: OllamaRequest, wrap: Callable[[str], dict[str, Any]]) -> None:
        body.check()
        self.body, self.options, self.wrap = body, body.options or Options(), wrap
        self.stops = check_stops(self.options.stop, "options.stop")
        self.deadline = deadline_of(request)
        self.model, self.worker = request.app.state.served.get(body.model)
        self.worker.check_room()
        self.started = time.monotonic_ns()

    def record(self, text: str, end: TextEnd | None, reason: str | None = None) -> dict[str, Any]:
        """A line of the answer; ``end`` None = more lines follow."""
        line = {"model": self.body.model, "created_at": datetime.now(UTC).isoformat(), **self.wrap(text)}
        if end is None:
            return line | {"done": False}
        seconds = time.monotonic_ns() - self.started
        return line | {
            "done": True,
            "done_reason": reason or ("stop" if end.finished else "length"),
            "total_duration": seconds,
            "load_duration": 0,
            "prompt_eval_count": end.prompt_tokens,
            "eval_count": end.new_tokens,
            "eval_duration": seconds,  # of the prompt, too
        }

    async def reply(self, messages: Sequence[tuple[str, str, list[Image]]], reader: RequestPictures) -> Any:
        """The whole answer, or a stream of lines. ``reader``: of the pictures. Raises ApiError: the model cannot answer this."""
        talk = read_dialogue(messages, self.options.search_settings())
        model, kind = self.model, answer_kind(self.model, talk)
        if self.body.stream:
            job = Job(("stream",), talk, stream=lambda talk: answer_pieces(model, kind, talk))
            return StreamingResponse(self.lines(job), media_type="application/x-ndjson")
        job = answer_job(model, kind, talk, reader.digest())
        answer = await self.worker.submit(job, self.deadline)
        text = cut_at_stop(answer.text, self.stops)
        return self.record(text, answer.end, "stop" if text != answer.text else None)

    async def lines(self, job: Job) -> AsyncIterator[str]:
        try:
            async for piece in until_stop(self.worker.pieces(job, self.deadline), self.stops, count=True):
                if isinstance(piece, StreamEnd):
                    line = self.record("", piece.text_end, None if piece.cut is None else "stop")
                else:
                    line = self.record(piece, None)
                yield json.dumps(line, ensure_ascii=False) + "\n"
        except Exception as error:
            yield json.dumps({"error": as_api_error(error).message}) + "\n"


@ollama_router.get("/tags")
async def ollama_tags(request: Request) -> dict[str, Any]:
    served = request.app.state.served
    when = datetime.fromtimestamp(served.created, UTC).isoformat()
    details = {
        "format": "safetensors",
        "family": "triptych",
        "families": ["triptych"],
        "parameter_size": "",
        "quantization_level": "",
    }
    return {
        "models": [
            {"name": name, "model": name, "modified_at": when, "size": 0, "digest": "", "details": details}
            for name in served.names
        ]
    }


@ollama_router.get("/ps")
async def ollama_running(request: Request) -> dict[str, Any]:
    """The models in memory: those that are loaded."""
    models = (await ollama_tags(request))["models"]
    return {"models": [model for model in models if model["name"] in request.app.state.served.loaded]}


class ShowRequest(BaseModel):
    model: ModelName


@ollama_router.post("/show")
async def ollama_show(request: Request, body: ShowRequest) -> dict[str, Any]:
    request.app.state.served.get(body.model)
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": {"family": "triptych"},
        "capabilities": ["completion", "vision"],
    }


@ollama_router.get("/version")
async def ollama_version() -> dict[str, str]:
    from importlib.metadata import version

    return {"version": version("triptych")}
