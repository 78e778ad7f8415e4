"""The model for lmms-eval, against its documented interface; where lmms-eval is not installed, a stand-in has its shape."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from tiny_blip2 import blip2_tasks
from tiny_flamingo import flamingo_tasks

from triptych.errors import InputError

DOCS = {"vqa": {"val": [{"photo": Image.new("RGB", (9, 9), (n * 40, 9, 9)), "answer": f"a{n}"} for n in range(5)]}}


def stand_in() -> dict[str, ModuleType]:
    """What the adapter uses of lmms-eval: ``lmms`` with ``task_dict``, ``Instance`` with ``args``, ``ModelManifest``."""

    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    @dataclass
    class Instance:
        request_type: str
        arguments: tuple[Any, ...]
        idx: int
        metadata: dict[str, Any]

        @property
        def args(self) -> tuple[Any, ...]:
            return self.arguments

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str

    contents = {"api.model": {"lmms": Base}, "api.instance": {"Instance": Instance}}
    contents |= {"models.registry_v2": {"ModelManifest": ModelManifest}, "api": {}, "models": {}, "": {}}
    modules = {}
    for name, members in contents.items():
        path = f"lmms_eval.{name}".strip(".")
        modules[path] = ModuleType(path)
        modules[path].__dict__.update(members)
    return modules


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if find_spec("lmms_eval") is None:
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "triptych.plugins.lmms_eval_model", raising=False)
    from triptych.plugins import lmms_eval_model

    return lmms_eval_model


def model_of(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch, tasks: Callable[[], Any], **given: Any) -> Any:
    monkeypatch.setattr(adapter, "load", lambda name, device, precision: tasks())
    model = adapter.LmmsEvalModel("tiny", **given)
    model.task_dict = DOCS
    return model


def photo(doc: dict[str, Any]) -> list[Image.Image]:
    return [doc["photo"]]


def request(adapter: ModuleType, kind: str, text: str, middle: object, doc: int) -> Any:
    """As ``ConfigurableTask.construct_requests`` makes them."""
    metadata = {"task": "vqa", "doc_id": doc, "repeats": 1}
    return adapter.Instance(kind, (text, middle, photo, doc, "vqa", "val"), 0, metadata)


@pytest.mark.parametrize("tasks", [blip2_tasks, flamingo_tasks])
def test_answers_in_batches_are_those_of_ask(
    adapter: ModuleType, monkeypatch: pytest.MonkeyPatch, tasks: Callable[[], Any]
) -> None:
    model, plain = model_of(adapter, monkeypatch, tasks, batch_size="2"), tasks()
    short, long = {"max_new_tokens": 2, "num_beams": 1}, {"max_new_tokens": 5, "temperature": 0, "do_sample": False}
    requests = [request(adapter, "generate_until", f"What is {n}?\n", [short, long][n % 2], n) for n in range(5)]
    expected = []
    for n in range(5):
        settings = {"max_new_tokens": 2, "beams": 1} if n % 2 == 0 else {"max_new_tokens": 5}
        expected.append(plain.ask(DOCS["vqa"]["val"][n]["photo"], f"What is {n}?", **settings).text.strip())
    assert model.generate_until(requests) == expected and len(set(expected)) > 1
    assert model.generate_until([]) == []


def test_stops_and_sampling(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter.until("one, two. three", [",", "."]) == adapter.until(" one", None) == "one"
    assert adapter.until("one. two", "\n\n") == "one. two"
    given = {"temperature": 0.7, "top_p": 0.9, "num_beams": 3, "max_new_tokens": 4, "until": ["x"]}
    assert adapter.search_settings(given) == {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 4}
    assert adapter.search_settings(given | {"do_sample": False}) == {"beams": 3, "max_new_tokens": 4}
    assert adapter.search_settings({}) == {}


@pytest.mark.parametrize("tasks", [blip2_tasks, flamingo_tasks])
def test_targets_are_scored_as_whole_answers(
    adapter: ModuleType, monkeypatch: pytest.MonkeyPatch, tasks: Callable[[], Any]
) -> None:
    model, plain = model_of(adapter, monkeypatch, tasks), tasks()
    requests = [request(adapter, "loglikelihood", "Who?", f" {name}", n) for n in range(2) for name in ("a", "bc")]
    requests.append(request(adapter, "loglikelihood", "Who?", lambda doc: doc["answer"], 2))
    found = model.loglikelihood(requests)
    for (loss, _), (n, target) in zip(found, [(0, "a"), (0, "bc"), (1, "a"), (1, "bc"), (2, "a2")], strict=True):
        question = adapter.PictureQuestion(photo(DOCS["vqa"]["val"][n]), "Who?")
        (scored,) = plain.score_forms(question, [target])
        assert loss == pytest.approx(-scored.logprob, abs=1e-4) and loss > 0
    greedy = plain.write_answers([question], False, {"beams": 1})[0].text
    assert [is_greedy for _, is_greedy in found] == [False] * 5
    assert model.loglikelihood([request(adapter, "loglikelihood", "Who?", greedy, 2)])[0][1]


def test_what_lmms_eval_registers(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = adapter.model_manifest()
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert manifest.model_id == "triptych" and module == adapter.__name__ and hasattr(adapter, name)
    with pytest.raises(InputError, match="cannot answer"):
        model_of(adapter, monkeypatch, lambda: blip2_tasks(with_lm=False))
    with pytest.raises(NotImplementedError, match="several rounds"):
        model_of(adapter, monkeypatch, blip2_tasks).generate_until_multi_round([])
