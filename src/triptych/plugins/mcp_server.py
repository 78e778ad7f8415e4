"""An MCP server over stdio (Model Context Protocol): an assistant captions, questions, compares and finds photos on this machine.

Started as ``triptych mcp``. Each model is loaded at its first use. stdout belongs to the protocol. What a page or a photo makes an
assistant say stays harmless: photos are read from paths, never from addresses, and only the three shipped models are loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from triptych.errors import TriptychError

if TYPE_CHECKING:
    from triptych.tasks import Answers

P = ParamSpec("P")
R = TypeVar("R")
ShippedModel = Literal["sat", "flamingo", "blip2"]
MAX_FOUND = 50
INSTRUCTIONS = (
    "Photos are named by their paths on this machine. caption describes one photo, ask answers a question about one photo or several, "
    "compare says which of two photos a question is about, find searches a library that `triptych index` made."
)


def photo_server(library: Path | None = None, load: Callable[[str], Any] | None = None) -> MCPServer:
    """The server with its tools. ``library``: what ``find`` searches. ``load``: name -> model; None = ``triptych.load``."""
    server = MCPServer("triptych", instructions=INSTRUCTIONS)
    lock = threading.Lock()

    @cache
    def model_of(name: str) -> Any:
        from triptych.tasks import load as load_model

        return (load or load_model)(name)

    def tool(function: Callable[P, R]) -> Callable[P, R]:
        """Register a tool: one call at a time, and our errors as the one line that they are."""

        @wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            try:
                with lock:
                    return function(*arguments, **named)
            except TriptychError as error:
                raise ToolError(str(error)) from None

        server.tool()(call)
        return call

    @tool
    def caption(image: Path, model: ShippedModel = "sat") -> str:
        """Describe the photo at the path `image` in one sentence."""
        return str(model_of(model).caption(image).text)

    @tool
    def ask(
        images: list[Path], question: str, choices: list[str] | None = None, model: ShippedModel = "blip2"
    ) -> dict[str, Any]:
        """Answer a question about the photos at the paths `images`; with `choices`, say which is the likeliest."""
        answer: dict[str, Any] = answerer(model_of(model), model).ask(images, question, choices).to_dict("answer")
        return answer

    @tool
    def compare(left: Path, right: Path, question: str, model: ShippedModel = "blip2") -> dict[str, Any]:
        """Answer "left" or "right" to a question about two photos, such as "Which photo shows a dog?"."""
        answer: dict[str, Any] = answerer(model_of(model), model).compare(left, right, question).to_dict("answer")
        return answer

    if library is not None:
        tool(library_search(library, lambda: model_of("blip2")))
    return server


def library_search(library: Path, open_model: Callable[[], Any]) -> Callable[..., dict[str, Any]]:
    """The tool ``find`` over a library. ``open_model``: loads the model that the library was made with."""
    from triptych.library import SearchedLibrary, as_matcher
    from triptych.library import find as find_photos

    searched = SearchedLibrary(library)

    def find(text: str, k: int = 10) -> dict[str, Any]:
        """The `photos` of the library that the text describes, the best first: path and score. `notices`: what may be missing or wrong,
        such as photos that have disappeared since the library was made; tell the user."""
        notices: list[TriptychError] = []
        matcher = as_matcher(open_model(), "blip2")
        best = find_photos(searched.open(), matcher, text, min(k, MAX_FOUND), notice=notices.append)
        photos = [{"path": photo.path, "score": round(photo.score, 4)} for photo in best]
        return {"photos": photos, "notices": [str(notice) for notice in notices]}

    return find


def answerer(model: Any, name: str) -> Answers:
    """``model``, if it answers questions. Raises ToolError."""
    from triptych.tasks import Answers

    if not (isinstance(model, Answers) and model.answers):
        raise ToolError(f"{name} writes captions only: use blip2 or flamingo")
    return model
