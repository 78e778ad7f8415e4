"""The server under load, on the loopback: ``python -m benchmarks.serve`` prints its figures as JSON; see README.md.

The server is a process of its own on all cores; the clients run here, and share them. Whatever is compared runs in turns with one server;
the ``PARTS`` have one each, so that each can be measured by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

CHAT = "/v1/chat/completions"
QUESTIONS = ("What animal is in the photo?", "What is happening?", "Where is this?", "What color is it?")
KNOWN = 4  # pictures that were encoded before
CONNECTIONS, BAD = 1000, 10  # of the crowd; one in so many is bad
SIZE = (320, 240)


class Load(NamedTuple):
    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(SIZE)


def data_url(photo: Image.Image) -> str:
    file = BytesIO()
    photo.save(file, "JPEG")
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def body(model: str, addresses: Sequence[str], text: str = "", **fields: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return {
        "model": model,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        **fields,
    }


@contextmanager
def running_server(models: Sequence[str]) -> Iterator[tuple[str, int]]:
    """``triptych serve`` with its models loaded: its address and process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    named = [argument for model in models for argument in ("--model", model)]
    command = [sys.executable, "-m", "triptych", "serve", "--port", str(port), "--timeout", "3600", *named]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            while process.poll() is None and not is_ready(address):
                time.sleep(0.2)
            yield address, process.pid
        finally:
            process.terminate()


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


async def answered(client: httpx.AsyncClient, request: dict[str, Any]) -> tuple[int, float]:
    """The status and the seconds of a request. A server that is full is asked again after what it says, as OpenAI's clients do."""
    started = time.perf_counter()
    while (response := await client.post(CHAT, json=request)).status_code == 429:
        await asyncio.sleep(float(response.headers["retry-after"]))
    return response.status_code, time.perf_counter() - started


def client_of(address: str, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=address, timeout=3600, limits=limits)


async def load(address: str, clients: int, requests: Sequence[dict[str, Any]]) -> Load:
    """``clients`` that each send their next request when the last one is answered."""
    latencies: list[float] = []
    waiting = iter(requests)

    async def work(client: httpx.AsyncClient) -> None:
        for request in waiting:
            status, seconds = await answered(client, request)
            if status != 200:
                raise SystemExit(f"a good request was answered with {status}")
            latencies.append(seconds)

    started = time.perf_counter()
    async with client_of(address, clients) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return Load(time.perf_counter() - started, latencies)


class Work(NamedTuple):
    """What is asked about known pictures: questions to BLIP-2, or captions by Show, Attend and Tell, both with the model's own beams.

    Each request has a seed of its own, which changes no answer, because the server remembers the answers to equal requests.
    """

    model: str
    questions: tuple[str, ...]

    def question(self, n: int) -> str:
        return self.questions[n // KNOWN % len(self.questions)]

    def requests(self, addresses: Sequence[str], first: int, count: int) -> list[dict[str, Any]]:
        """``count`` requests about pictures at ``addresses``, with the numbers from ``first``, which must not be used again."""
        numbers = range(first, first + count)
        return [body(self.model, [addresses[n % len(addresses)]], self.question(n), seed=n) for n in numbers]

    def alone(self, photos: Sequence[Image.Image]) -> Callable[[int], tuple[float, float]]:
        """A function that measures the Python API, without a server: requests -> seconds of the clock and of the processor a request."""
        from triptych.tasks import load

        model: Any = load(self.model)

        def run(photo: Image.Image, n: int) -> None:
            if question := self.question(n):
                model.ask(photo, question)
            else:
                model.caption(photo)

        def measure(count: int) -> tuple[float, float]:
            clock, cpu = time.perf_counter(), time.process_time()
            for n in range(count):
                run(photos[n % KNOWN], n)
            return (time.perf_counter() - clock) / count, (time.process_time() - cpu) / count

        measure(KNOWN)
        return measure


WORK = (Work("sat", ("",)), Work("blip2", QUESTIONS))
PARTS = ("sat", "blip2", "second", "crowd")


def processor_seconds(process: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rates(address: str, process: int, work: Work, requests: int) -> dict[str, float]:
    """Requests about pictures that were encoded before, about new ones, and requests that were answered before."""
    photos = [picture(n) for n in range(KNOWN)]
    urls = [data_url(photo) for photo in photos]
    used = work.requests(urls, 0, KNOWN)
    asyncio.run(load(address, KNOWN, used))
    alone, name = work.alone(photos), work.model
    found: dict[str, float] = {}
    by_clients = {}
    for clients in (1, 8, 64):
        seconds, cpu = alone(requests)  # in turns, because the load of the machine changes
        found[f"{name}, one at a time before {clients} clients"] = 1 / seconds
        before, known = processor_seconds(process), work.requests(urls, len(used), max(requests, clients))
        used += known
        measured = by_clients[clients] = asyncio.run(load(address, clients, known))
        spent = (processor_seconds(process) - before) / len(measured.latencies)
        found[f"{name}, {clients} clients"] = measured.rate
        found[f"{name}, {clients} clients / one at a time"] = measured.rate * seconds
        found[f"{name}, {clients} clients / one at a time, CPU time"] = cpu / spent
    found[f"{name}, equal requests, 8 clients"] = asyncio.run(load(address, 8, used[-requests:])).rate
    new = work.requests([data_url(picture(100 + n)) for n in range(requests)], len(used), requests)
    found[f"{name}, new pictures, 8 clients"] = asyncio.run(load(address, 8, new)).rate
    found[f"{name}, median at 1 client"] = 1000 * median(by_clients[1].latencies)
    found[f"{name}, p99 at 8 clients"] = 1000 * quantiles(by_clients[8].latencies, n=100, method="inclusive")[98]
    ratio = found[f"{name}, p99 at 8 clients"] / found[f"{name}, median at 1 client"]
    return found | {f"{name}, p99 at 8 clients / median at 1": ratio}


async def crowd(address: str, connections: int) -> list[int]:
    """The statuses of captions that are all requested at once, 0 for a lost connection; every tenth has a picture that is none."""
    good = [data_url(picture(n)) for n in range(KNOWN)]
    bad = "data:image/png;base64,bm8gcGljdHVyZQ=="
    addresses = [good[n % KNOWN] if n % BAD else bad for n in range(connections)]
    async with client_of(address, connections) as client:
        requests = [body("sat", [one], max_tokens=6, seed=n) for n, one in enumerate(addresses)]

        async def status(request: dict[str, Any]) -> int:
            try:
                return (await answered(client, request))[0]
            except httpx.TransportError:
                return 0

        return await asyncio.gather(*map(status, requests))


def resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def crowds(address: str, process: int, connections: int) -> dict[str, float]:
    """Twice the same crowd: whether anybody is lost, and whether memory grows from the first to the second."""
    sizes = []
    for _ in range(2):
        statuses = asyncio.run(crowd(address, connections))
        sizes.append(resident_mb(process))
    lost = connections - statuses.count(200) - statuses.count(400)
    return {
        "connections": connections,
        "answered": statuses.count(200),
        "refused": statuses.count(400),
        "lost": lost,
        "memory": sizes[1],
        "memory, growth": 100 * (sizes[1] / sizes[0] - 1),
    }


def first_token(address: str, request: dict[str, Any]) -> float:
    """Milliseconds until the first text of a stream."""
    started = time.perf_counter()
    with httpx.stream("POST", f"{address}{CHAT}", json=request | {"stream": True}, timeout=3600) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return 1000 * (time.perf_counter() - started)
    raise SystemExit("a stream ended without text")


def dialogue(urls: Sequence[str], question: str) -> dict[str, Any]:
    """Pictures that came one by one, and a question."""
    messages = []
    for n, url in enumerate(urls):
        message = body("", [url], f"What is in photo {n + 1}?")["messages"][0]
        messages += [message, {"role": "assistant", "content": "a picture of something"}]
    return {"model": "flamingo", "messages": [*messages, {"role": "user", "content": question}], "max_tokens": 4}


def second_questions(address: str, repeats: int) -> dict[str, float]:
    """The first token of a question about new pictures, and of a second one about the same."""
    found: dict[str, float] = {}
    for name, pictures in (("1 picture, blip2", 1), ("4 pictures, flamingo", 4)):
        times: tuple[list[float], list[float]] = ([], [])
        for repeat in range(repeats):
            urls = [data_url(picture(1000 * pictures + 10 * repeat + n)) for n in range(pictures)]
            for question, values in zip(QUESTIONS, times, strict=False):
                one = body("blip2", urls, question, max_tokens=4) if pictures == 1 else dialogue(urls, question)
                values.append(first_token(address, one))
        first, second = map(median, times)
        found |= {f"{name}, first": first, f"{name}, second": second, f"{name}, first / second": first / second}
    return found


def measure(part: str, requests: int, repeats: int, connections: int) -> dict[str, float]:
    """The figures of one of ``PARTS``, with a server of its own that has the models it needs."""
    work = next((work for work in WORK if work.model == part), None)
    models = [part] if work else ["sat"] if part == "crowd" else ["flamingo", "blip2"]
    with running_server(models) as (address, process):
        if work:
            return rates(address, process, work, requests)
        return crowds(address, process, connections) if part == "crowd" else second_questions(address, repeats)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS, help="only this; default: all")
    parser.add_argument("--requests", type=int, default=64, help="of each number of clients")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="of the crowd")
    parser.add_argument("--repeats", type=int, default=5, help="of first and second questions")
    arguments = parser.parse_args()
    os.environ["TRIPTYCH_API_KEY"] = ""
    found: dict[str, float] = {}
    for part in (arguments.part,) if arguments.part else PARTS:
        found |= measure(part, arguments.requests, arguments.repeats, arguments.connections)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
