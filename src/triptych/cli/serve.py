"""``triptych serve`` and ``mcp``: the server with its web page, and the MCP server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.application import app
from triptych.errors import InputError
from triptych.extras import importing


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model to serve; repeat for several.", show_default="sat, flamingo, blip2"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; another than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 picks a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="What clients must send; better given as TRIPTYCH_API_KEY.", show_default="none")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="A further name that clients call this server by.")
    ] = None,
    allow_domain: Annotated[
        list[str] | None, typer.Option(help="A domain whose pictures may be named by address.")
    ] = None,
    allow_folder: Annotated[
        list[Path] | None, typer.Option(help="A folder whose pictures may be named by file: address.")
    ] = None,
    library: Annotated[Path | None, typer.Option(metavar="DIR", help="A library to search (see index).")] = None,
    queue: Annotated[int, typer.Option(min=1, max=4096, help="Requests that may wait for each model.")] = 64,
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="Seconds a request may take.")] = 120.0,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Run N copies of the server on a Ray cluster.", show_default="this process"),
    ] = None,
) -> None:
    """Serve a web page, and OpenAI's and Ollama's clients."""
    from triptych.serve.settings import ServerSettings

    settings = ServerSettings(
        models=tuple(model or ("sat", "flamingo", "blip2")),
        host=host,
        port=port,
        api_key=api_key or os.environ.get("TRIPTYCH_API_KEY") or None,
        hosts=tuple(host_name or ()),
        allow_domains=tuple(allow_domain or ()),
        allow_folders=tuple(allow_folder or ()),
        library=library,
        queue=queue,
        timeout=timeout,
    )
    if replicas is not None:
        with importing("cluster", "--replicas"):
            from triptych.serve.cluster import run_on_cluster
        run_on_cluster(settings, replicas)
        return
    with importing("serve", "serving"):
        from triptych.serve.app import run_server
    run_server(settings)


@app.command()
def mcp(
    library: Annotated[Path | None, typer.Option(metavar="DIR", help="A library to search (see index).")] = None,
) -> None:
    """Serve photos to an assistant (MCP). It can caption, ask, compare and find, over stdio."""
    if library is not None and not library.is_dir():
        raise InputError(f"--library {library}: no such library; triptych index makes one")
    with importing("mcp", "an MCP server"):
        from triptych.plugins.mcp_server import photo_server
    photo_server(library).run("stdio")
