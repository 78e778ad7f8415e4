"""Triptych under lmms-eval's benchmarks: ``python -m lmms_eval --model triptych --model_args pretrained=blip2 --tasks ...``.

Found through the entry point ``lmms_eval.models`` once both packages are installed. lmms-eval's interface for models that take text and
pictures ("simple") is its docs/guides/model_guide.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from triptych.errors import InputError
from triptych.evaluate.progress import batches
from triptych.tasks import load
from triptych.tasks.asking import Answerer, PictureQuestion

MODEL_NAME = "triptych"


def model_manifest() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_NAME, simple_class_path=f"{__name__}.LmmsEvalModel")


class LmmsEvalModel(lmms):  # type: ignore[misc]
    """A model that answers questions. ``pretrained``: as ``triptych.load`` takes it; ``batch_size``: questions answered together."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "blip2",
        precision: str | None = None,
        batch_size: int | str = 16,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        model = load(pretrained, device, precision)
        if not (isinstance(model, Answerer) and model.answers):
            raise InputError(f"{pretrained} cannot answer questions: choose flamingo or blip2")
        self.model = model
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else max_batch_size or 16

    def question(self, text: str, doc_to_visual: Any, doc_id: int, task: str, split: str) -> PictureQuestion:
        """The pictures of a document, and what is asked about them."""
        pictures = list(doc_to_visual(self.task_dict[task][split][doc_id]))
        return PictureQuestion(pictures, text.strip())

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answer to each request, up to the first of its stops; those with equal settings are answered together."""
        answers: list[str] = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: repr(requests[i].args[1]))
        for _, same in groupby(order, key=lambda i: repr(requests[i].args[1])):
            for batch in batches(list(same), self.batch_size, "answering"):
                given = requests[batch[0]].args[1]
                questions = [self.question(text, *where) for text, _, *where in (requests[i].args for i in batch)]
                pictures, texts = [one.images for one in questions], [one.text for one in questions]
                for i, answer in zip(batch, self.model.ask(pictures, texts, **search_settings(given)), strict=True):
                    answers[i] = until(answer.text, given.get("until"))
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """The negative log-probability of each target as the whole answer, and whether the model would answer so.

        lmms-eval takes the choice with the *smallest* value for the answer (``ConfigurableTask.process_results``). The targets of one
        question are scored behind one reading of it, and the greedy answers of several questions are written together.
        """
        results: dict[int, tuple[float, bool]] = {}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, request in enumerate(requests):
            text, _, _, *place = request.args
            groups.setdefault((text, *place), []).append(i)
        for batch in batches(list(groups.values()), self.batch_size, "scoring"):
            questions = []
            for members in batch:
                text, _, *where = requests[members[0]].args
                questions.append(self.question(text, *where))
            greedy = self.model.write_answers(questions, False, {"beams": 1})
            for members, question, answer in zip(batch, questions, greedy, strict=True):
                targets = [self.target(requests[i]) for i in members]
                scored = self.model.score_forms(question, targets)
                for i, target, hypothesis in zip(members, targets, scored, strict=True):
                    results[i] = -hypothesis.logprob, answer.text == target
        return [results[i] for i in range(len(requests))]

    def target(self, request: Instance) -> str:
        """The text that is scored: given as it is, or found in the document."""
        _, target, _, doc_id, task, split = request.args
        return str(target(self.task_dict[task][split][doc_id]) if callable(target) else target).strip()

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError(
            "tasks of several rounds are not supported: these models answer one question at a time"
        )


def search_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """lmms-eval's generation settings as fields of ``generate.Search``; what is not given stays the model's own."""
    settings = {"max_new_tokens": given.get("max_new_tokens"), "beams": given.get("num_beams")}
    if given.get("temperature") and given.get("do_sample", True):
        settings |= {"temperature": given["temperature"], "top_p": given.get("top_p"), "beams": None}
    return {name: value for name, value in settings.items() if value is not None}


def until(text: str, stops: str | Sequence[str] | None) -> str:
    """``text`` up to the first of ``stops``."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.partition(stop)[0] if stop else text
    return text.strip()
