"""The web page and its own data: Flamingo's gates, the Q-Former's three masks, the example photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from triptych.extras import importing
from triptych.serve.errors import ApiError

lecture_router = APIRouter()
PAGE = Path(__file__).with_name("page")
EXAMPLE_PHOTOS = Path(__file__).parents[1] / "examples"
QUERIES = 4  # in the drawings of the masks


@lecture_router.get("/")
async def get_index() -> FileResponse:
    return FileResponse(PAGE / "index.html")


@lecture_router.get("/page/{name}")
async def get_page_file(name: str) -> FileResponse:
    """One of the page's own files; no other name is looked up."""
    if name not in {path.name for path in PAGE.iterdir()}:
        raise ApiError(404, "no such file")
    return FileResponse(PAGE / name)


@lecture_router.get("/page/examples/{name}")
async def get_example(name: str) -> FileResponse:
    if name not in example_names():
        raise ApiError(404, "no such example")
    return FileResponse(EXAMPLE_PHOTOS / name)


@lecture_router.get("/v1/page")
async def get_page_state(request: Request) -> dict[str, Any]:
    """The data that the page needs when it is opened."""
    return {"examples": example_names(), "library": request.app.state.settings.library is not None}


@lecture_router.get("/v1/gates")
async def get_gates(request: Request) -> dict[str, Any]:
    """tanh of both gates of each gated block of Flamingo."""
    model, _ = request.app.state.served.get("flamingo")
    rows = [
        {"block": int(name.rpartition(" ")[2]), "attention": attention, "feed_forward": feed_forward}
        for name, (attention, feed_forward) in model.info()["gates"].items()
    ]
    return {"gates": rows}


class MaskRequest(BaseModel):
    text: str = Field(min_length=1, max_length=80)


@lecture_router.post("/v1/masks")
async def draw_masks(body: MaskRequest) -> dict[str, Any]:
    """The three masks of BLIP-2's first stage (Li et al. 2023, figure 2) over a few queries and the words of a sentence."""
    with importing("torch", "drawing masks"):
        from triptych.nn import masks

    words = body.text.split()
    labels = [f"query {n + 1}" for n in range(QUERIES)] + words
    shapes = {"itc": masks.itc, "itm": masks.itm, "itg": masks.itg}
    return {"labels": labels, "masks": {name: make(QUERIES, len(words)).tolist() for name, make in shapes.items()}}


def example_names() -> list[str]:
    return sorted(path.name for path in EXAMPLE_PHOTOS.glob("*.jpg"))
