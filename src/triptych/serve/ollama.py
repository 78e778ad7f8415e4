"""Ollama's routes, which photo managers use: generate, chat, tags, show, version."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL.Image import Image
from pydantic import BaseModel, Field

from triptych.serve.chat import Dialogue, answer_batch, answer_kind, answer_pieces, read_dialogue
from triptych.serve.errors import as_api_error
from triptych.serve.jobs import Job
from triptych.serve.pictures import read_picture
from triptych.serve.settings import MESSAGE_LIMIT, PICTURE_LIMIT, TEXT_LIMIT, TOKEN_LIMIT, ServerSettings
from triptych.tasks import TextEnd

ollama_router = APIRouter(prefix="/api")


class Options(BaseModel):
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1000)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    num_predict: int | None = Field(default=None, ge=-2, le=TOKEN_LIMIT)

    def search_settings(self) -> dict[str, Any]:
        """Fields of ``generate.Search``. Ollama's clients always send a temperature, so it counts only together with a seed."""
        given: dict[str, Any] = {}
        if self.num_predict is not None and self.num_predict > 0:
            given["max_new_tokens"] = self.num_predict
        if self.temperature and self.seed is not None:
            given |= {"temperature": self.temperature, "seed": self.seed}
            given |= {} if self.top_p is None else {"top_p": self.top_p}
            given |= {} if self.top_k is None else {"top_k": self.top_k}
        return given


class OllamaGenerateRequest(BaseModel):
    model: str
    prompt: str = Field("", max_length=TEXT_LIMIT)
    system: str = Field("", max_length=TEXT_LIMIT)
    images: list[str] = Field(default_factory=list, max_length=PICTURE_LIMIT)
    stream: bool = True
    options: Options = Options()


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str = Field("", max_length=TEXT_LIMIT)
    images: list[str] | None = Field(default=None, max_length=PICTURE_LIMIT)


class OllamaChatRequest(BaseModel):
    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGE_LIMIT)
    stream: bool = True
    options: Options = Options()


def pictures_of(images: list[str] | None, settings: ServerSettings, param: str) -> list[Image]:
    """Pictures as bare base64, as Ollama's clients send them, or as data URLs. Raises ApiError: one cannot be read."""
    addresses = [image if image[:5].lower() == "data:" else f"data:;base64,{image}" for image in images or []]
    return [read_picture(address, settings, f"{param}[{i}]") for i, address in enumerate(addresses)]


@ollama_router.post("/generate")
async def ollama_generate(request: Request, body: OllamaGenerateRequest) -> Any:
    settings: ServerSettings = request.app.state.settings
    messages: list[tuple[str, str, list[Image]]] = [("system", body.system, [])] if body.system else []
    pictures = await asyncio.to_thread(pictures_of, body.images, settings, "images")
    messages.append(("user", body.prompt, pictures))
    talk = read_dialogue(messages, body.options.search_settings())
    return await ollama_answer(request, body.model, talk, body.stream, lambda text: {"response": text})


@ollama_router.post("/chat")
async def ollama_chat(request: Request, body: OllamaChatRequest) -> Any:
    settings: ServerSettings = request.app.state.settings
    messages = []
    for i, message in enumerate(body.messages):
        pictures = await asyncio.to_thread(pictures_of, message.images, settings, f"messages[{i}].images")
        messages.append((message.role, message.content, pictures))
    talk = read_dialogue(messages, body.options.search_settings())
    return await ollama_answer(
        request, body.model, talk, body.stream, lambda text: {"message": {"role": "assistant", "content": text}}
    )


async def ollama_answer(request: Request, name: str, talk: Dialogue, stream: bool, wrap: Any) -> Any:
    settings: ServerSettings = request.app.state.settings
    model, worker = request.app.state.served.get(name)
    kind, started = answer_kind(model, talk), time.monotonic_ns()

    def record(text: str, end: TextEnd | None) -> dict[str, Any]:
        """A line of the answer; ``end`` None = more lines follow."""
        base = {"model": name, "created_at": datetime.now(UTC).isoformat(), **wrap(text), "done": end is not None}
        if end is not None:
            base |= {
                "done_reason": "stop" if end.finished else "length",
                "total_duration": time.monotonic_ns() - started,
            }
            base |= {"prompt_eval_count": end.prompt_tokens, "eval_count": end.new_tokens}
        return base

    if not stream:
        key = (kind, tuple(sorted(talk.settings.items())))
        job = Job(key, talk, run=lambda talks: answer_batch(model, kind, list(talks)))
        answer = await worker.submit(job, settings.timeout)
        return record(answer.text, answer.end)

    async def lines() -> AsyncIterator[str]:
        job = Job(("stream",), talk, stream=lambda talk: answer_pieces(model, kind, talk))
        first, end = True, TextEnd()
        try:
            async for piece in worker.pieces(job, settings.timeout):
                if isinstance(piece, TextEnd):
                    end = piece
                    continue
                yield json.dumps(record(piece.lstrip() if first else piece, None), ensure_ascii=False) + "\n"
                first = False
        except Exception as error:
            yield json.dumps({"error": as_api_error(error).message}) + "\n"
            return
        yield json.dumps(record("", end)) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


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


class ShowRequest(BaseModel):
    model: str


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
