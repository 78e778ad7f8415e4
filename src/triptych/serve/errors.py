"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``, one sentence without paths or tracebacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from triptych.errors import InputError, TriptychError
from triptych.extras import MissingExtraError

UNION_TAGS = (
    "str",
    "constrained-str",
    "int",
    "float",
    "bool",
)  # pydantic appends the alternative that it tried to a field's location
SERVER_LOG = logging.getLogger("triptych.serve")


class ApiError(Exception):
    """A request that cannot be answered. ``param``: the invalid field; ``retry_after``: seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": param, "code": code}}


def error_content(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an error. ``path``: of the route; Ollama's routes have a text where OpenAI's have an object."""
    content = error_body(error.status, error.message, error.param, error.code)
    return {"error": content["error"]["message"]} if path.startswith("/api/") else content


def as_api_error(error: Exception) -> ApiError:
    """Any failure as an error that a client may see."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    if isinstance(error, MissingExtraError):
        return ApiError(501, str(error))
    if isinstance(error, TriptychError):
        return ApiError(500, "the model failed; see the server's log")
    return ApiError(500, "internal error; see the server's log")


def invalid_request(error: Mapping[str, Any]) -> ApiError:
    """An error of pydantic in one sentence, with the field's name as ``messages[0].role``."""
    _, *parts = error["loc"]
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {error['ctx']['error']} at character {parts[0]}")
    if not parts:
        return ApiError(400, "the body is not a JSON object")
    place = ""
    for part in parts:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in UNION_TAGS and "[" not in part:
            place += f".{part}" if place else part
    message = f"{place} is missing" if error["type"] == "missing" else f"{place}: {error['msg']}"
    return ApiError(400, message, param=place)


def error_response(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error_content(request.url.path, error), error.status, retry_header(error))


def retry_header(error: ApiError) -> dict[str, str]:
    return {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}


def install_handlers(app: FastAPI) -> None:
    """Make ``app`` return every error in this format."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error_response(request, error)

    @app.exception_handler(InputError)
    @app.exception_handler(MissingExtraError)
    async def usable_error(request: Request, error: TriptychError) -> JSONResponse:
        return error_response(request, as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of a union, the alternative that fits best
        return error_response(request, invalid_request(deepest))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404 and message == "Not Found":
            message = "no such route: chat completions are at /v1/chat/completions, the page is at /"
        elif error.status_code == 405:
            message = f"this route does not take {request.method}: use {(error.headers or {}).get('Allow', 'another')}"
        content = error_content(request.url.path, ApiError(error.status_code, message))
        return JSONResponse(content, error.status_code, error.headers)
