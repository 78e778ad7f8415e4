"""Our own routes: captions with maps, questions with choices, completion from examples, matching, search."""

from __future__ import annotations

import base64
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from PIL.Image import Image
from pydantic import BaseModel, Field

from triptych.errors import InputError
from triptych.serve.deadline import deadline_of
from triptych.serve.errors import SERVER_LOG, ApiError
from triptych.serve.fields import ModelName, RequiredText, Text
from triptych.serve.jobs import Job, Worker
from triptych.serve.models import can
from triptych.serve.pictures import RequestPictures
from triptych.serve.settings import BEAM_LIMIT, CHOICE_LIMIT, PICTURE_LIMIT, TOKEN_LIMIT
from triptych.tasks.capabilities import Model

if TYPE_CHECKING:
    from triptych.library import SearchedLibrary

native_router = APIRouter(prefix="/v1")
THUMBNAIL = (320, 320)


class CaptionRequest(BaseModel):
    model: ModelName = "sat"
    image: str
    beams: int | None = Field(default=None, ge=1, le=BEAM_LIMIT)
    max_new_tokens: int | None = Field(default=None, ge=1, le=TOKEN_LIMIT)
    explain: bool = False


class AskRequest(BaseModel):
    model: ModelName = "blip2"
    images: list[str] = Field(min_length=1, max_length=PICTURE_LIMIT)
    question: RequiredText
    choices: list[Text] | None = Field(default=None, min_length=2, max_length=CHOICE_LIMIT)
    explain: bool = False


class ShotRequest(BaseModel):
    image: str
    text: RequiredText


class CompleteRequest(BaseModel):
    model: ModelName = "flamingo"
    shots: list[ShotRequest] = Field(default_factory=list, max_length=PICTURE_LIMIT - 1)
    image: str
    prompt: Text = ""
    choices: list[Text] | None = Field(default=None, min_length=2, max_length=CHOICE_LIMIT)


class MatchRequest(BaseModel):
    model: ModelName = "blip2"
    images: list[str] = Field(min_length=1, max_length=PICTURE_LIMIT)
    texts: list[Text] = Field(min_length=1, max_length=CHOICE_LIMIT)


class ExplainRequest(BaseModel):
    model: ModelName = "sat"
    image: str
    question: Text | None = None


class FindRequest(BaseModel):
    """``at_least``: leave out photos that people would describe so with a lower probability."""

    model: ModelName = "blip2"
    query: RequiredText
    k: int = Field(12, ge=1, le=100)
    at_least: float = Field(0.0, ge=0, lt=1)


def find_model(request: Request, name: str, verb: str) -> tuple[Model, Worker]:
    """A model that can ``verb`` and its worker. Raises ApiError: there is none, it loads or cannot, or its queue is full."""
    model, worker = request.app.state.served.get(name)
    if not can(model, verb):
        raise ApiError(400, f"the model {name} cannot {verb}", param="model")
    worker.check_room()
    return model, worker


async def submit(
    request: Request,
    name: str,
    verb: str,
    kind: tuple[Any, ...],
    payload: Any,
    run: Callable[..., Any],
    key: tuple[Hashable, ...] | None = None,
) -> Any:
    """The result of ``run(model, payloads)`` for one payload. Requests of equal ``verb`` and ``kind`` may be run together.

    ``key``: with ``verb`` and ``kind`` all that the result depends on; None = it is not remembered.

    Raises ApiError: as ``find_model`` and ``Worker.submit``.
    """
    model, worker = find_model(request, name, verb)
    key = None if key is None else (verb, *kind, *key)
    job = Job((verb, *kind), payload, run=lambda payloads: run(model, payloads), key=key)
    return await worker.submit(job, deadline_of(request))


async def read_pictures(
    request: Request, name: str, verb: str, addresses: Mapping[str, str]
) -> tuple[list[Image], bytes]:
    """Read the pictures at the addresses, if the model can ``verb``; ``addresses``: by their field in the request, for
    messages. Returns the pictures, and the digest of their files."""
    find_model(request, name, verb)
    reader = RequestPictures(request)
    pictures = [await reader.read(address, field) for field, address in addresses.items()]
    return pictures, reader.digest()


def listed(addresses: Sequence[str], field: str) -> dict[str, str]:
    return {f"{field}[{i}]": address for i, address in enumerate(addresses)}


def maps_of(answer: Any) -> dict[str, Any] | None:
    """Evidence as JSON: words, log-probabilities, maps ``[words][pictures][h][w]``, the largest value of each word scaled to 1, and the
    words that the picture as a whole suggests."""
    if answer.evidence is None:
        return None
    maps = answer.evidence.maps
    top = maps.max(axis=(1, 2, 3), keepdims=True)
    scaled = (maps / top.clip(1e-12)).round(3)
    evidence = {"words": list(answer.evidence.words), "logprobs": list(answer.evidence.logprobs)}
    return evidence | {"maps": scaled.tolist(), "expected": list(answer.evidence.expected)}


@native_router.post("/caption")
async def post_caption(request: Request, body: CaptionRequest) -> dict[str, Any]:
    (photo,), digest = await read_pictures(request, body.model, "caption", {"image": body.image})
    given = {"beams": body.beams, "max_new_tokens": body.max_new_tokens}
    chosen = {name: value for name, value in given.items() if value is not None}

    def run(model: Any, photos: Sequence[Image]) -> list[Any]:
        return list(model.caption(list(photos), explain=body.explain and model.explains, **chosen))

    kind = (body.explain, *sorted(chosen.items()))
    answer = await submit(request, body.model, "caption", kind, photo, run, None if body.explain else (digest,))
    return {**answer.to_dict("caption"), "model": body.model, "evidence": maps_of(answer)}


@native_router.post("/ask")
async def post_ask(request: Request, body: AskRequest) -> dict[str, Any]:
    photos, digest = await read_pictures(request, body.model, "ask", listed(body.images, "images"))

    def run(model: Any, payloads: Sequence[tuple[list[Image], str]]) -> list[Any]:
        images, questions = zip(*payloads, strict=True)
        return list(model.ask(list(images), list(questions), body.choices, explain=body.explain and model.explains))

    kind = (body.explain, tuple(body.choices or ()))
    key = None if body.explain else (body.question, digest)
    answer = await submit(request, body.model, "ask", kind, (photos, body.question), run, key)
    return {"question": body.question, **answer.to_dict("answer"), "model": body.model, "evidence": maps_of(answer)}


@native_router.post("/complete")
async def post_complete(request: Request, body: CompleteRequest) -> dict[str, Any]:
    of_shots = {f"shots[{i}].image": shot.image for i, shot in enumerate(body.shots)}
    addresses = {"image": body.image, **of_shots}
    (photo, *pictures), digest = await read_pictures(request, body.model, "complete", addresses)
    shots = [(picture, shot.text) for picture, shot in zip(pictures, body.shots, strict=True)]

    def run(model: Any, payloads: Sequence[Any]) -> list[Any]:
        return [
            model.complete(image, examples, prompt=body.prompt, choices=body.choices) for image, examples in payloads
        ]

    kind, key = (body.prompt, tuple(body.choices or ())), (*(shot.text for shot in body.shots), digest)
    answer = await submit(request, body.model, "complete", kind, (photo, shots), run, key)
    return {**answer.to_dict(), "model": body.model}


@native_router.post("/match")
async def post_match(request: Request, body: MatchRequest) -> dict[str, Any]:
    photos, digest = await read_pictures(request, body.model, "match", listed(body.images, "images"))

    def run(model: Any, payloads: Sequence[list[Image]]) -> list[Any]:
        return [model.match(images, body.texts) for images in payloads]

    result = await submit(request, body.model, "match", tuple(body.texts), photos, run, (digest,))
    rows = [{"image": m.image, "text": m.text, **m.to_dict()} for m in result]
    return {"model": body.model, "matches": rows}


@native_router.post("/explain")
async def post_explain(request: Request, body: ExplainRequest) -> dict[str, Any]:
    """Where the model looked at each word: maps as numbers, and a figure as a PNG data URL."""
    verb = "ask" if body.question else "caption"
    (photo,), _ = await read_pictures(request, body.model, verb, {"image": body.image})

    def run(model: Any, photos: Sequence[Image]) -> list[Any]:
        from triptych.figures.maps import draw_words

        results = []
        for image in photos:
            answer = (
                model.ask(image, body.question, explain=True) if body.question else model.caption(image, explain=True)
            )
            file = BytesIO()
            if answer.evidence is not None:
                draw_words(image, answer.evidence).save(file, "PNG")
            results.append((answer, file.getvalue()))
        return results

    answer, png = await submit(request, body.model, verb, ("explain", body.question), photo, run)
    figure = f"data:image/png;base64,{base64.b64encode(png).decode()}" if png else None
    return {"model": body.model, "text": answer.text, "evidence": maps_of(answer), "figure": figure}


@native_router.post("/find")
async def post_find(request: Request, body: FindRequest) -> dict[str, Any]:
    """Search the server's library. Thumbnails are made from the pixels, so they have no metadata such as the position."""
    searched: SearchedLibrary | None = request.app.state.library
    if searched is None:
        raise ApiError(404, "this server has no library: start it with --library")
    if not body.query.strip():
        raise ApiError(400, "query is empty", param="query")

    def run(model: Any, queries: Sequence[str]) -> list[Any]:
        from triptych.library import as_matcher, find

        as_matcher(model, body.model).itc_texts(queries)  # a fault of a query is the client's
        try:
            library, matcher = searched.open(), as_matcher(model, body.model)
            search = partial(find, k=body.k, at_least=body.at_least, notice=SERVER_LOG.warning)
            return [[found_fields(result) for result in search(library, matcher, query)] for query in queries]
        except InputError as error:  # it names files of this machine
            SERVER_LOG.error("the library cannot be searched: %s", error)
            raise ApiError(503, "the library cannot be searched now; see the server's log") from None

    results = await submit(request, body.model, "match", ("find", body.k, body.at_least), body.query, run)
    return {"query": body.query, "results": results}


def found_fields(result: Any) -> dict[str, Any]:
    from triptych.figures.page import thumbnail
    from triptych.io.images import load_image

    picture = thumbnail(load_image(result.path), THUMBNAIL)
    return {
        "rank": result.rank,
        "score": result.score,
        "probability": result.probability,
        "name": Path(result.path).name,
        "thumbnail": picture,
    }
