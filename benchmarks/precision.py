"""What quantised weights cost, on validation photos: captions, choices, answers and the probabilities of words beside those of fp32.

    python -m benchmarks.precision DATA [--photos 200] [--pairs 100] [--questions 100]
        [--models sat flamingo blip2] [--precisions int8 int4]

Prints one JSON object a model and precision: CIDEr-D and how much it lost, the share of captions that are the same; of choices between two
photos and of questions about one how many are right, how many were lost and how many are the same; and, per token of the captions that
people wrote, the KL divergence from fp32 and the share of equal likeliest tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych.data import Photo, open_dataset
from triptych.data.english.pairs import make_pairs
from triptych.data.english.questions import make_questions
from triptych.engines.interface import FlamingoInputs
from triptych.engines.onnx.blip2 import OnnxBlip2
from triptych.engines.onnx.flamingo import OnnxFlamingo
from triptych.evidence import Floats
from triptych.logits import log_softmax
from triptych.metrics.captions import score_captions
from triptych.tasks import Answers, Blip2Tasks, FlamingoTasks, SatTasks, load
from triptych.tasks.blip2 import PhotoPrompt
from triptych.text.prompt import CAPTION
from triptych.text.vocabulary import plain_caption

CHUNK = 16


def captions(model: SatTasks | FlamingoTasks | Blip2Tasks, photos: Sequence[Photo]) -> tuple[list[str], float]:
    """Of each photo, and the photos per second."""
    started, texts = time.perf_counter(), []
    for first in range(0, len(photos), CHUNK):
        texts += [answer.text for answer in model.caption([photo.image() for photo in photos[first : first + CHUNK]])]
    return texts, len(photos) / (time.perf_counter() - started)


class Replies(NamedTuple):
    """What a model replied to each question, and the right answers."""

    given: list[str]
    right: list[str]

    def percent_right(self) -> float:
        return 100 * float(np.mean([a.casefold() == b for a, b in zip(self.given, self.right, strict=True)]))

    def compared(self, name: str, reference: Replies) -> dict[str, float]:
        same = np.mean([a == b for a, b in zip(self.given, reference.given, strict=True)])
        return {
            name: round(self.percent_right(), 1),
            f"{name} lost": round(reference.percent_right() - self.percent_right(), 1),
            f"equal {name}": round(100 * float(same), 1),
        }


def choices(model: Answers, photos: Sequence[Photo], count: int) -> Replies:
    """Which of two photos a text is about."""
    pairs = make_pairs(photos, count, 0)
    given = [model.compare(photos[q.left].image(), photos[q.right].image(), q.question).text for q in pairs]
    return Replies(given, [q.answer for q in pairs])


def answers(model: Answers, photos: Sequence[Photo], count: int) -> Replies:
    """Open questions about one photo, made from its captions."""
    pairs = [
        (photo, question)
        for photo, questions in zip(photos, make_questions(photos, per_photo=2), strict=True)
        for question in questions
    ][:count]
    return Replies(
        [model.ask(photo.image(), question.question).text for photo, question in pairs],
        [question.answer for _, question in pairs],
    )


def caption_logprobs(model: Any, photo: Photo) -> Floats:
    """The log-probabilities ``[T, V]`` that the language model gives behind each token of the photo's first caption."""
    engine, spec = model.engine, model.spec
    ids = spec.tokenizer.encode(f" {plain_caption(photo.captions[0])}")
    if isinstance(engine, OnnxFlamingo):
        row = model.prompts.row(CAPTION, [photo.image()])
        _, state = engine.prefill(FlamingoInputs([row.input_ids], [row.visual_tokens]))
        context = engine.prompt_context(state.pictures[0], np.ones(len(ids), np.int64))
        logits = engine.lm.read(state.text, 0, engine.lm.embed(np.array(ids)), context, np.arange(len(ids)))
    else:
        assert isinstance(engine, OnnxBlip2)
        (row,) = model.read([PhotoPrompt(spec.prompts.caption, [photo.image()])])
        _, cache = engine.prefill([row.pieces])
        logits = engine.lm.read(cache, 0, engine.lm.embed(np.array(ids)), scored=np.arange(len(ids)))
    return log_softmax(logits)


def measure(name: str, precision: Any, photos: Sequence[Photo], pairs: int, questions: int) -> dict[str, Any]:
    model = load(name, precision=precision)
    texts, rate = captions(model, photos)
    scores = score_captions(
        {p.id: text for p, text in zip(photos, texts, strict=True)}, {p.id: p.captions for p in photos}
    )
    record: dict[str, Any] = {"texts": texts, "cider": 100 * (scores["CIDEr-D"] or 0), "rate": rate}
    if isinstance(model, Answers):
        record["choices"] = choices(model, photos, pairs)
        record["answers"] = answers(model, photos, questions)
        record["logprobs"] = [caption_logprobs(model, photo) for photo in photos[:60]]
    return record


def compare(record: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    same = np.mean([a == b for a, b in zip(record["texts"], reference["texts"], strict=True)])
    rows = {
        "CIDEr-D": round(record["cider"], 2),
        "CIDEr-D lost": round(reference["cider"] - record["cider"], 2),
        "equal captions": round(100 * float(same), 1),
        "photos/s": round(record["rate"], 2),
    }
    if "choices" in record:
        pairs = list(zip(record["logprobs"], reference["logprobs"], strict=True))
        divergence = np.concatenate([(np.exp(b) * (b - a)).sum(-1) for a, b in pairs])
        best = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
        rows |= {
            **record["choices"].compared("choices", reference["choices"]),
            **record["answers"].compared("answers", reference["answers"]),
            "tokens": len(best),
            "KL per token": round(float(divergence.mean()), 5),
            "equal likeliest token": round(100 * float(best.mean()), 2),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision")
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--models", nargs="+", default=["sat", "flamingo", "blip2"])
    parser.add_argument("--precisions", nargs="+", default=["int8", "int4"])
    arguments = parser.parse_args()
    photos = [photo for photo in open_dataset(arguments.data, "val") if photo.captions][: arguments.photos]
    for name in arguments.models:
        reference = measure(name, "fp32", photos, arguments.pairs, arguments.questions)
        for precision in ("fp32", *arguments.precisions):
            record = (
                reference
                if precision == "fp32"
                else measure(name, precision, photos, arguments.pairs, arguments.questions)
            )
            print(json.dumps({"model": name, "precision": precision} | compare(record, reference)), flush=True)


if __name__ == "__main__":
    main()
