"""Continuous batching: texts of several requests join and leave between steps, and each is what it would be alone."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from serving import CHAT, post_all, running
from tiny_blip2 import TinyNet, byte_tokenizer
from tiny_onnx import language_model, opened, randomise, sat_engine, save, tiny_decoder, weights_of
from toy_models import data_url, question

from triptych.engines.interface import FlamingoSpec
from triptych.engines.onnx.flamingo import OnnxFlamingo
from triptych.engines.onnx.flamingo_graph import media_graph, resampler_graph, text_graph
from triptych.engines.onnx.language import LanguageGraph
from triptych.errors import InputError
from triptych.generate import Hypothesis, Search, generate
from triptych.interruption import InterruptedGeneration, interruption
from triptych.serve import scheduler
from triptych.serve.scheduler import SharedEngine, Turns
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo
from triptych.tasks import FlamingoTasks

EOS = 0
SEARCHES = [
    {"beams": 3},
    {},
    {"beams": 2, "n_best": 2},
    {"temperature": 0.8, "n_best": 2, "seed": 5},
    {"temperature": 1.5},
]


class Countdown(list[int]):
    """The state of ``Counter``: one number of each row."""

    def reorder(self, rows: np.ndarray) -> "Countdown":
        return Countdown(self[row] for row in rows.reshape(-1))


class Counter:
    """A step model that writes from ``inputs`` down to the end, and its joint steps. ``sizes``: states in each step."""

    def __init__(self, before_step: Callable[[], object] = lambda: None) -> None:
        self.sizes: list[int] = []
        self.enough_rows = 100
        self.before_step, self.computing = before_step, threading.Lock()

    def prefill(self, inputs: Sequence[int]) -> tuple[np.ndarray, Countdown]:
        return self.logits(inputs), Countdown(inputs)

    def logits(self, numbers: Sequence[int]) -> np.ndarray:
        return np.eye(10, dtype=np.float32)[list(numbers)] * 9

    def step(self, ids: Sequence[np.ndarray], states: Sequence[Countdown]) -> list[tuple[np.ndarray, Countdown]]:
        assert not self.computing.locked(), "two steps of a group at a time"
        with self.computing:
            self.before_step()
            if any(8 in own for own in ids):
                raise InputError("8 is refused")
            self.sizes.append(len(states))
            return [(self.logits(own - 1), Countdown(own - 1)) for own in ids]


def shared(counter: Counter) -> SharedEngine[Countdown]:
    return SharedEngine(counter, lambda: counter)  # type: ignore[arg-type]


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each returned or failed with."""
    results: list[Any] = [None] * len(work)

    def run(index: int) -> None:
        try:
            results[index] = work[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def count(engine: SharedEngine[Countdown], number: int) -> list[int]:
    """The numbers that are written after ``number``."""
    [[text]] = generate(engine, [number], Search(frozenset({EOS})))
    engine.leave()
    return list(text.ids)


def test_a_text_joins_the_ones_that_run_and_leaves_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 5)  # nothing here waits in vain
    started = threading.Event()

    def before_step() -> None:
        started.set()
        time.sleep(0.05)

    def later() -> list[int]:
        started.wait(5)
        return count(engine, 3)

    counter = Counter(before_step)
    engine = shared(counter)
    assert in_threads(lambda: count(engine, 7), later) == [[7, 6, 5, 4, 3, 2, 1], [3, 2, 1]]
    assert sum(counter.sizes) == 10 and max(counter.sizes) == 2
    assert counter.sizes[0] == counter.sizes[-1] == 1


def test_a_step_that_is_large_enough_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 5)
    counter = Counter()
    counter.enough_rows = 2
    engine = shared(counter)
    engine.step(np.array([3]), Countdown([3]))  # this thread does not come back
    started = time.monotonic()
    in_threads(lambda: engine.step(np.array([7, 6]), Countdown([7, 6])))
    assert time.monotonic() - started < 4


def test_a_text_waits_until_its_group_has_room() -> None:
    """Three texts of one row, two at a time; the third is written when one of the others has left."""
    counter = Counter(lambda: time.sleep(0.02))
    counter.enough_rows = 2
    engine = shared(counter)
    engine.step(np.array([5]), Countdown([5]))  # this thread keeps its place
    texts = in_threads(lambda: count(engine, 3), lambda: count(engine, 4))
    assert texts == [[3, 2, 1], [4, 3, 2, 1]] and max(counter.sizes) == 1
    engine.leave()
    assert in_threads(lambda: count(engine, 5), lambda: count(engine, 5)) == [[5, 4, 3, 2, 1]] * 2
    assert max(counter.sizes) == 2


def test_a_text_that_nobody_waits_for_does_not_wait_for_room() -> None:
    counter, cancelled = Counter(), threading.Event()
    counter.enough_rows = 1
    engine = shared(counter)
    engine.step(np.array([5]), Countdown([5]))

    def interrupted() -> list[int]:
        interruption.set(cancelled.is_set)
        return count(engine, 7)

    def leave() -> None:
        while not engine._joining:
            time.sleep(0.001)
        cancelled.set()
        with engine._changed:
            engine._changed.notify_all()

    result, _ = in_threads(interrupted, leave)
    assert isinstance(result, InterruptedGeneration) and counter.sizes == [1]
    engine.leave()
    assert count(engine, 2) == [2, 1]


def test_a_text_that_fails_fails_alone() -> None:
    engine = shared(Counter())
    results = in_threads(*(lambda n=n: count(engine, n) for n in (5, 9, 4)))
    assert results[0] == [5, 4, 3, 2, 1] and results[2] == [4, 3, 2, 1]
    assert isinstance(results[1], InputError)


def test_a_text_that_nobody_waits_for_leaves_at_the_next_step() -> None:
    cancelled = threading.Event()
    counter = Counter(cancelled.set)
    engine = shared(counter)

    def interrupted() -> list[int]:
        interruption.set(cancelled.is_set)
        return count(engine, 7)

    (result,) = in_threads(interrupted)
    assert isinstance(result, InterruptedGeneration) and counter.sizes == [1]
    assert count(engine, 2) == [2, 1]  # and nobody waits for it


def test_a_step_does_not_wait_for_what_is_busy_elsewhere() -> None:
    counter = Counter()
    engine = shared(counter)
    engine.step(np.array([3]), Countdown([3]))  # this thread does not come back
    started = time.monotonic()
    assert in_threads(lambda: count(engine, 7)) == [[7, 6, 5, 4, 3, 2, 1]]
    assert time.monotonic() - started < 1


class Lanes:
    """A step model whose computations take until ``count`` run at once. ``most``: how many did."""

    def __init__(self, count: int) -> None:
        self.gate, self.lock, self.running, self.most = threading.Barrier(count), threading.Lock(), 0, 0

    def compute(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.gate.wait(10)
        time.sleep(0.02)  # others that may run as well are counted
        with self.lock:
            self.running -= 1

    def encode(self) -> None:
        self.compute()

    def joint_steps(self) -> SimpleNamespace:
        step = lambda ids, states: [(self.compute(), state) for state in states]  # noqa: E731
        return SimpleNamespace(step=step, enough_rows=100)


def test_as_many_pictures_and_prompts_are_read_at_a_time_as_there_are_lanes() -> None:
    model = Lanes(2)
    engine: Any = SharedEngine(model, model.joint_steps, lanes=2)  # type: ignore[type-var, arg-type]
    assert in_threads(*(engine.encode for _ in range(6))) == [None] * 6
    assert model.most == 2


def test_texts_are_written_in_groups_of_equal_size() -> None:
    model, sizes = Lanes(2), list[int]()
    engine: Any = SharedEngine(model, model.joint_steps, sizes.append, lanes=2)  # type: ignore[type-var, arg-type]
    assert in_threads(*(lambda n=n: engine.step(np.array([n]), n) for n in range(2))) == [(None, 0), (None, 1)]
    assert model.most == 2 and sizes == [1, 1]


def test_turns_are_first_come_first_served() -> None:
    turns, order, running = Turns(1), list[int](), threading.Event()

    def work(n: int) -> None:
        with turns.turn():
            running.set()
            order.append(n)
            while n == 0 and len(turns._waiting) < 3:
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for n, thread in enumerate(threads):
        thread.start()
        running.wait(5)
        while len(turns._waiting) < n and threads[0].is_alive():
            time.sleep(0.001)
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3]


def test_work_that_nobody_waits_for_is_not_started() -> None:
    model = Lanes(1)
    engine: Any = SharedEngine(model, model.joint_steps)  # type: ignore[type-var, arg-type]

    def interrupted() -> None:
        interruption.set(lambda: True)
        engine.encode()

    (result,) = in_threads(interrupted)
    assert isinstance(result, InterruptedGeneration) and model.most == 0
    engine.encode()  # and its turn is free again
    assert model.most == 1


def assert_as_alone(engine: Any, inputs: Sequence[Any], searches: Sequence[Search], lanes: int) -> list[int]:
    """All texts written at once are those that are written one by one. Returns the sizes of the joint steps."""
    sizes: list[int] = []

    def joint_steps() -> Any:
        joint = engine.joint_steps()
        joint.enough_rows = 100  # all have room
        step = joint.step

        def slow_step(*given: Any) -> Any:
            time.sleep(0.01)  # long enough for the others to arrive
            return step(*given)

        joint.step = slow_step
        return joint

    shared = SharedEngine(engine, joint_steps, sizes.append, lanes)
    all_read = threading.Barrier(len(inputs))

    def prefill(given: Any) -> Any:
        result = shared.prefill(given)
        all_read.wait(20)
        return result

    def write(model: Any, index: int) -> list[Hypothesis]:
        [hypotheses] = generate(model, inputs[index], searches[index])
        shared.leave()
        return hypotheses

    alone = [write(engine, index) for index in range(len(inputs))]
    company = SimpleNamespace(prefill=prefill, step=shared.step)
    in_company = in_threads(*(lambda index=index: write(company, index) for index in range(len(inputs))))
    for ours, wanted in zip(in_company, alone, strict=True):
        assert [h.ids for h in ours] == [h.ids for h in wanted]
        for a, b in zip(ours, wanted, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    return sizes


@pytest.mark.parametrize("lanes", [1, 2])
def test_captions_of_sat_are_the_same_in_company(tmp_path: Path, lanes: int) -> None:
    _, engine = sat_engine(tmp_path)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(1, 9, 64)).astype(np.float32) for _ in range(10)]
    searches = [Search(frozenset({2}), max_new_tokens=12, **SEARCHES[n % 5]) for n in range(10)]
    assert max(assert_as_alone(engine, inputs, searches, lanes)) > 2


class TinyPhotos(OnnxFlamingo):
    """Its photos have 9 cells of 5 numbers, which are their colours. ``encoded``: how many were encoded."""

    encoded = 0

    def encode(self, pixel_values: Any) -> list[np.ndarray]:
        self.encoded += len(pixel_values)
        colours = np.asarray(pixel_values).mean((2, 3))
        return [np.tile(np.resize(colour, 5), (9, 1)).astype(np.float32) for colour in colours]


@pytest.fixture
def flamingo(tmp_path: Path) -> TinyPhotos:
    """It writes letters."""
    tokenizer = byte_tokenizer()
    sizes = {"dim": 8, "latents": 3, "resampler_layers": 2, "heads": 2, "head_dim": 4, "ffn_factor": 2, "every": 2}
    config = FlamingoConfig(5, tokenizer.encode("\x01")[0], **sizes)
    model = Flamingo(config, TinyNet(), tiny_decoder(layers=4, vocab_size=len(tokenizer), max_positions=400))
    randomise(model)
    weights, lm = weights_of(model), model.lm.config
    save([resampler_graph(config, weights), media_graph(config, weights, lm.layers // 2)], tmp_path)
    save([text_graph(config, weights, LanguageGraph(lm, weights.below("lm."), "fp32"))], tmp_path)
    end = min(tokenizer.eos_ids)
    letters = {*tokenizer.encode("abcdefghijklmnopqrstuvwxyz"), end}
    search = Search(frozenset({end}), max_new_tokens=15, beams=2, banned=frozenset(range(len(tokenizer))) - letters)
    spec = FlamingoSpec(tokenizer, search, config.image_id, end, lm.max_positions, None)
    return TinyPhotos(opened(tmp_path, config), spec, language_model(model.lm, tmp_path))


def bodies() -> list[dict[str, Any]]:
    """Captions, questions, dialogues and samples about five pictures, whole and streamed."""
    whole = [question(data_url(50 * n), text="", model="flamingo") for n in range(5)]
    whole += [question(data_url(50 * n), text=f"What is {n}?", model="flamingo") for n in range(5)]
    whole += [question(data_url(0), data_url(50), text="Which?", model="flamingo", max_tokens=9)]
    whole += [question(data_url(100), text="", model="flamingo", temperature=1.0, n=2, seed=n) for n in range(2)]
    first, answered = question(data_url(150), text="One?")["messages"], {"role": "assistant", "content": "yes"}
    whole.append({"model": "flamingo", "messages": [*first, answered, {"role": "user", "content": "Two?"}]})
    return whole + [{**body, "stream": True} for body in whole if "n" not in body]


def content(response: httpx.Response) -> str:
    """The answer's text, whole or streamed, without what differs between two requests."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if line][:-1]
        return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    return " | ".join(choice["message"]["content"] for choice in response.json()["choices"])


def test_a_server_answers_in_company_as_alone(flamingo: TinyPhotos) -> None:
    with running({"flamingo": FlamingoTasks(flamingo, "flamingo")}) as address:
        alone = [content(httpx.post(f"{address}{CHAT}", json=body, timeout=30)) for body in bodies()]
    assert len(set(alone)) > len(alone) / 3 and flamingo.encoded == 5  # each picture once
    with running({"flamingo": FlamingoTasks(flamingo, "flamingo")}) as address:
        together = asyncio.run(post_all(address, bodies()))
        metrics = httpx.get(f"{address}/metrics").text
    assert [content(response) for response in together] == alone
    assert flamingo.encoded == 10
    sizes = dict(re.findall(r'triptych_batch_size_(count|sum){model="flamingo"} ([0-9.]+)', metrics))
    assert float(sizes["sum"]) > 2 * float(sizes["count"])  # requests in a step, on average
