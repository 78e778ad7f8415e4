"""What models remember between requests, used by several threads at once."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiny_blip2 import blip2_tasks
from tiny_flamingo import flamingo_tasks

from triptych.engines.interface import FlamingoInputs, PhotoSpec
from triptych.io.pixels import PixelSpec
from triptych.tasks.photos import ArrayMemory, PhotoMemory, size_in_memory
from triptych.tasks.prefix import SLOTS, PrefixMemory, PromptRow, common_prefix_length


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)) for _ in range(6)]


def in_threads(work: Callable[[int], object], count: int = 8) -> list[object]:
    """``work(n)`` in ``count`` threads that start together."""
    gate = threading.Barrier(count)

    def started(n: int) -> object:
        gate.wait()
        return work(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(started, range(count)))


class Watched(dict):  # type: ignore[type-arg]
    """An ``OrderedDict`` that notices a second thread within an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.clashes = 0, 0

    def enter(self) -> None:
        self.inside += 1
        self.clashes += self.inside > 1
        for _ in range(50):  # the other threads get their turn here
            pass
        self.inside -= 1

    def __setitem__(self, key: object, value: object) -> None:
        self.enter()
        super().__setitem__(key, value)

    def move_to_end(self, key: object) -> None:
        self.enter()
        super().__setitem__(key, super().pop(key))

    def popitem(self, last: bool = True) -> tuple[object, object]:
        self.enter()
        key = list(self)[-1 if last else 0]
        return key, super().pop(key)


def test_a_memory_of_arrays_counts_right_under_threads() -> None:
    memory = ArrayMemory(10 * size_in_memory(10, np.zeros(10)))
    watched = Watched()
    memory._arrays = watched  # type: ignore[assignment]

    def work(n: int) -> None:
        for i in range(100):
            memory.put(10 + (n + i) % 20, np.zeros(10))
            memory.get(10 + i % 20)

    in_threads(work)
    assert not watched.clashes
    assert len(memory) == 10 and memory._bytes == memory.limit


def test_long_keys_count_as_well() -> None:
    memory = ArrayMemory(100_000)
    for n in range(100):
        memory.put(("x" * 10_000, n), np.zeros(1))
    assert len(memory) == 9


def test_the_last_array_stays_however_large() -> None:
    memory = ArrayMemory(8)
    memory.put("a", np.zeros(10))
    memory.put("b", np.zeros(20))
    assert memory.get("a") is None and memory.get("b") is not None


class Text:
    """A state that is the text read so far. Reading with a state that another thread is reading with is noticed."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids, self.busy = list(ids), threading.Lock()

    def reorder(self, rows: object) -> "Text":
        return self

    def fork(self, rows: Sequence[int]) -> "Text":
        return Text(self.ids)

    def truncate(self, length: int, pictures: int) -> None:
        del self.ids[length:]


class Reader:
    """A ``StepModel`` whose logits are the text that it has read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def prefill(self, inputs: FlamingoInputs) -> tuple[np.ndarray, Text]:
        state = inputs.state or Text()
        assert state.busy.acquire(blocking=False), "two threads read with one state"
        self.read.append(len(inputs.rows[0]))
        for i in inputs.rows[0]:
            state.ids.append(i)
        logits = np.array([state.ids])
        state.busy.release()
        return logits, state

    def step(self, ids: np.ndarray, state: Text) -> tuple[np.ndarray, Text]:
        state.ids += ids.tolist()
        return np.array([state.ids]), state


def row(*ids: int) -> PromptRow:
    return PromptRow(list(ids), ids, [])


def test_prompts_share_their_beginnings_in_several_slots() -> None:
    reader = Reader()
    memory = PrefixMemory(reader)
    for ids in ((1, 2, 3, 4), (9, 8, 7, 6), (1, 2, 3, 4, 5), (9, 8, 7, 6, 5)):  # two dialogues in turns
        with memory.read_prompt(row(*ids)) as prefix:
            assert prefix.logits.tolist() == [list(ids)]
            prefix.step(np.array([0]), prefix.state)
    assert reader.read == [4, 4, 1, 1]
    with memory.read_prompt(row(1, 2, 50)) as prefix:  # little is shared: a copy, so that the longer text stays
        assert prefix.logits.tolist() == [[1, 2, 50]]
    with memory.read_prompt(row(1, 2, 3, 4, 5, 0, 6)) as prefix:
        assert prefix.logits.tolist() == [[1, 2, 3, 4, 5, 0, 6]]
    assert reader.read[4:] == [1, 1]
    for n in range(2 * SLOTS):
        with memory.read_prompt(row(100 + n, 1)):
            pass
    assert len(memory._kept) == SLOTS
    assert common_prefix_length((1, 2, "a"), (1, 2, "b", 3)) == 2


def test_what_was_written_before_a_failure_is_not_remembered() -> None:
    memory = PrefixMemory(Reader())
    with pytest.raises(ZeroDivisionError), memory.read_prompt(row(1, 2, 3)) as prefix:
        prefix.step(np.array([4]), prefix.state)
        raise ZeroDivisionError
    with memory.read_prompt(row(1, 2, 3, 5)) as prefix:
        assert prefix.logits.tolist() == [[1, 2, 3, 5]]


def test_concurrent_prompts_share_a_beginning() -> None:
    reader = Reader()
    memory = PrefixMemory(reader)
    with memory.read_prompt(row(1, 2, 3, 4)) as first:
        first.step(np.array([7]), first.state)
        with memory.read_prompt(row(1, 2, 3, 5)) as second:
            assert reader.read == [4, 1]
            assert second.logits.tolist() == [[1, 2, 3, 5]] and first.state.ids == [1, 2, 3, 4, 7]


class SlowReader(Reader):
    """Each prompt is read until ``gate`` opens."""

    def __init__(self, gate: Callable[[], object]) -> None:
        super().__init__()
        self.gate = gate

    def prefill(self, inputs: FlamingoInputs) -> tuple[np.ndarray, Text]:
        self.gate()
        return super().prefill(inputs)


def read_both(memory: PrefixMemory, *prompts: PromptRow) -> None:
    def work(n: int) -> None:
        with memory.read_prompt(prompts[n]) as prefix:
            assert prefix.logits.tolist() == [prompts[n].input_ids]

    in_threads(work, len(prompts))


def test_prompts_with_little_in_common_are_read_at_once() -> None:
    gate = threading.Barrier(2)
    memory = PrefixMemory(SlowReader(lambda: gate.wait(10)))
    read_both(memory, row(1, *range(10, 20)), row(1, *range(20, 30)))


def test_a_prompt_waits_for_one_with_the_same_beginning() -> None:
    reader = SlowReader(lambda: time.sleep(0.05))
    read_both(PrefixMemory(reader), row(*range(20), 50), row(*range(20), 60))
    assert reader.read == [21, 1]


class Encoder:
    """An encoder of photos of 20 x 20 pixels that calls ``gate`` first. ``encoded``: how many it was given."""

    photos = PhotoSpec(PixelSpec(20, (0.5,) * 3, (0.5,) * 3), (1, 1))

    def __init__(self, gate: Callable[[], object]) -> None:
        self.gate, self.encoded = gate, 0

    def encode(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        self.encoded += len(pixel_values)
        self.gate()
        return [pixels.mean((1, 2)) for pixels in pixel_values]


def test_photos_are_encoded_at_once_and_each_once(photos: list[Image.Image]) -> None:
    gate = threading.Barrier(3)
    encoder = Encoder(lambda: gate.wait(10))
    memory = PhotoMemory(encoder)  # type: ignore[arg-type]
    found = in_threads(lambda n: memory([photos[n % 3]])[0], 9)
    assert encoder.encoded == 3
    assert all(found[n] is found[n % 3] for n in range(9))


def test_a_photo_is_encoded_by_the_next_where_one_fails(photos: list[Image.Image]) -> None:
    failures = iter([ZeroDivisionError])

    def gate() -> None:
        time.sleep(0.05)
        for failure in failures:
            raise failure

    memory = PhotoMemory(Encoder(gate))  # type: ignore[arg-type]

    def work(n: int) -> object:
        try:
            return memory(photos[:1])[0].shape
        except ZeroDivisionError:
            return "failed"

    assert sorted(map(str, in_threads(work, 3))) == ["(3,)", "(3,)", "failed"]


def test_threads_never_share_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, watched = PrefixMemory(Reader()), Watched()

    def compared(left: Sequence[int | str], right: Sequence[int | str]) -> int:
        watched.enter()
        return common_prefix_length(left, right)

    monkeypatch.setattr("triptych.tasks.prefix.common_prefix_length", compared)

    def work(n: int) -> None:
        rng = np.random.default_rng(n)
        for _ in range(60):
            ids = (1, 2, 3, *rng.integers(4, 7, 4).tolist())
            with memory.read_prompt(row(*ids)) as prefix:
                assert prefix.logits.tolist() == [list(ids)]
                prefix.step(np.array([9]), prefix.state)
                assert prefix.state.ids == [*ids, 9]

    in_threads(work)
    assert not watched.clashes and len(memory._kept) <= SLOTS


def test_models_answer_threads_as_they_answer_one(photos: list[Image.Image]) -> None:
    for tasks in (flamingo_tasks, blip2_tasks):
        alone = [tasks().ask(photo, "what is it?", beams=1).text for photo in photos]
        model = tasks()
        together = in_threads(lambda n, m=model: [m.ask(photo, "what is it?", beams=1).text for photo in photos], 3)
        assert together == [alone] * 3
