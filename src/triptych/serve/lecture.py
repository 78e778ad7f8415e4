"""The web page and its own data: Flamingo's gates, the Q-Former's three masks, the example photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from triptych.serve.errors import ApiError
from triptych.serve.models import CAPABILITIES, Served, can
from triptych.tasks.capabilities import Model

lecture_router = APIRouter()
PAGE = Path(__file__).with_name("page")
EXAMPLE_PHOTOS = Path(__file__).parents[1] / "examples"
QUERIES = 4  # in the drawings of the masks


@lecture_router.api_route("/", methods=["GET", "HEAD"])
async def get_index() -> FileResponse:
    return FileResponse(PAGE / "index.html")


@lecture_router.get("/page/{name}")
async def get_page_file(name: str) -> FileResponse:
    """One of the page's own files; no other name is looked up."""
    if name not in {path.name for path in PAGE.iterdir()}:
        raise ApiError(404, "no such file")
    return FileResponse(PAGE / name)


@lecture_router.get("/page/examples/{name:path}")
async def get_example(name: str) -> FileResponse:
    if name not in (*example_names("*.jpg"), *example_names("drawings/*.png")):
        raise ApiError(404, "no such example")
    return FileResponse(EXAMPLE_PHOTOS / name)


@lecture_router.get("/v1/page")
async def get_page_state(request: Request) -> dict[str, Any]:
    """The data that the page needs when it is opened. It asks again while ``loading``.

    ``models``: what each loaded model can do; ``explain``: it also tells where it looked. ``failed``: models that could not be loaded.
    """
    served: Served = request.app.state.served
    models = [{"name": name, "can": verbs_of(served.loaded[name])} for name in served.names if name in served.loaded]
    return {
        "examples": example_names("*.jpg"),
        "drawings": example_names("drawings/*.png"),
        "library": served.settings.library is not None,
        "loading": len(served.loaded) + len(served.failures) < len(served.names),
        "models": models,
        "failed": list(served.failures),
    }


def verbs_of(model: Model) -> list[str]:
    verbs = [verb for verb in CAPABILITIES if can(model, verb)]
    return [*verbs, "explain"] if getattr(model, "explains", False) else verbs


@lecture_router.get("/v1/gates")
async def get_gates(request: Request) -> dict[str, Any]:
    """tanh of both gates of each gated block of the first Flamingo. Raises ApiError: 404, there is none."""
    served: Served = request.app.state.served
    for model in list(served.loaded.values()):
        if can(model, "complete") and (gates := model.info().get("gates")):
            rows = [
                {"block": int(name.rpartition(" ")[2]), "attention": attention, "feed_forward": feed_forward}
                for name, (attention, feed_forward) in gates.items()
            ]
            return {"gates": rows}
    raise ApiError(404, "this server has no model with gates")


class MaskRequest(BaseModel):
    text: str = Field(min_length=1, max_length=80)


@lecture_router.post("/v1/masks")
async def draw_masks(body: MaskRequest) -> dict[str, Any]:
    """The three masks of BLIP-2's first stage (Li et al. 2023, figure 2) over a few queries and the words of a sentence."""
    words = body.text.split()
    return {"queries": QUERIES, "words": words, "masks": masks(QUERIES, len(words))}


def masks(queries: int, tokens: int) -> dict[str, list[list[bool]]]:
    """``nn.masks.itc``, ``itm`` and ``itg``, without PyTorch: rows attend to columns."""
    size = range(queries + tokens)
    return {
        "itc": [[(row < queries) == (column < queries) for column in size] for row in size],
        "itm": [[True for _ in size] for _ in size],
        "itg": [[column <= row or max(row, column) < queries for column in size] for row in size],
    }


def example_names(pattern: str) -> list[str]:
    return sorted(path.relative_to(EXAMPLE_PHOTOS).as_posix() for path in EXAMPLE_PHOTOS.glob(pattern))
