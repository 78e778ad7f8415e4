"""Triptych inside other tools, through their own clients."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_library import RandomModel, fail, put

from triptych.errors import InputError
from triptych.tasks import Answer


class Toy:
    """Answers with what it was given."""

    def __init__(self, name: str) -> None:
        self.name = name

    def caption(self, image: Any) -> Answer:
        if str(image) == "gone.jpg":
            raise InputError("gone.jpg: no such file")
        return Answer(f"caption of {type(image).__name__}", self.name, -1.0, (), ())


def unused(*_: object, **__: object) -> Any:
    raise AssertionError("no plugin has a use for this")


class ToyAnswerer(Toy):
    answers = True
    info = search = pooled = choose_answer = unused

    def ask(self, images: Any, question: str, choices: Any = None) -> Answer:
        scores = dict.fromkeys(choices, -0.5) if choices else None
        return Answer(f"{question} {len(images)}", self.name, -1.0, (), (), scores=scores)

    def compare(self, left: str, right: str, question: str) -> Answer:
        return Answer("left", self.name, -1.0, (), ())


def toy(name: str) -> Toy:
    return Toy(name) if name == "sat" else ToyAnswerer(name)


def test_mcp_tools() -> None:
    mcp = pytest.importorskip("mcp")
    from triptych.plugins.mcp_server import photo_server

    async def talk() -> None:
        async with mcp.Client(photo_server(Path("photos.library"), toy)) as client:
            tools = {tool.name: tool.description for tool in (await client.list_tools()).tools}
            assert set(tools) == {"caption", "ask", "compare", "find"} and "one sentence" in tools["caption"]
            result = await client.call_tool("caption", {"image": "a.jpg"})
            assert result.content[0].text == f"caption of {type(Path()).__name__}"  # never an address
            result = await client.call_tool(
                "ask", {"images": ["a.jpg", "b.jpg"], "question": "How many?", "choices": ["1", "2"]}
            )
            assert result.structured_content["answer"] == "How many? 2"
            assert result.structured_content["scores"] == {"1": -0.5, "2": -0.5}
            result = await client.call_tool("compare", {"left": "a.jpg", "right": "b.jpg", "question": "Which?"})
            assert result.structured_content["answer"] == "left"
            for name, given, said in (
                ("caption", {"image": "gone.jpg"}, "no such file"),
                ("ask", {"images": ["a.jpg"], "question": "?", "model": "sat"}, "captions only"),
            ):
                result = await client.call_tool(name, given)
                assert result.is_error and said in result.content[0].text

    asyncio.run(talk())


def test_mcp_find_passes_on_what_the_library_notices(tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp")
    pytest.importorskip("lancedb")
    from triptych.library import index_photos, scan
    from triptych.plugins.mcp_server import photo_server

    photos = [put(tmp_path / f"{n}.png") for n in range(4)]
    index_photos(scan(tmp_path, fail), tmp_path / "library", RandomModel(), fail)

    async def talk() -> None:
        async with mcp.Client(photo_server(tmp_path / "library", lambda _: RandomModel())) as client:
            found = (await client.call_tool("find", {"text": "3", "k": 2})).structured_content
            assert len(found["photos"]) == 2 and found["photos"][0]["path"] == str(photos[3])
            assert found["notices"] == []
            photos[2].unlink()
            found = (await client.call_tool("find", {"text": "2", "k": 3})).structured_content
            assert len(found["photos"]) == 3 and "1 photo that cannot be read" in found["notices"][0]

    asyncio.run(talk())


def test_mcp_over_stdio() -> None:
    """The command itself, as an assistant starts it."""
    mcp = pytest.importorskip("mcp")

    async def talk() -> None:
        server = mcp.StdioServerParameters(command=sys.executable, args=["-m", "triptych", "mcp"], env=dict(os.environ))
        async with mcp.Client(mcp.stdio_client(server)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"caption", "ask", "compare"}
            for given, said in (
                ({"image": "gone.jpg", "model": "someone/model"}, "Input should be 'sat', 'flamingo' or 'blip2'"),
                ({"image": "http://127.0.0.1:9/a.jpg"}, "no such file"),
            ):
                result = await client.call_tool("caption", given)
                assert result.is_error and said in result.content[0].text

    asyncio.run(talk())


def test_llm_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = pytest.importorskip("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setattr("triptych.plugins.llm_models.loaded_model", toy)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    photo = llm.Attachment(path=str(tmp_path / "a.png"))
    blip2, sat = llm.get_model("triptych/blip2"), llm.get_model("triptych/sat")
    assert blip2.prompt("What?", attachments=[photo]).text() == "What? 1"
    assert sat.prompt("", attachments=[photo]).text() == "caption of bytes"
    talk = blip2.conversation()
    assert talk.prompt("One?", attachments=[photo]).text() == "One? 1"
    assert talk.prompt("Two?", attachments=[photo]).text() == "Two? 2"
    for model, question, attachments in ((blip2, "What?", []), (sat, "What?", [photo])):
        with pytest.raises(llm.ModelError):
            model.prompt(question, attachments=attachments).text()
