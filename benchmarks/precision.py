"""What quantised weights cost: captions, choices and the language model's probabilities beside those of fp32, on validation photos.

    python -m benchmarks.precision DATA [--photos 200] [--pairs 100] [--models sat flamingo blip2] [--precisions int8 int4]

Prints one JSON object a model and precision: CIDEr-D and how much it lost, the share of captions and choices that are the same, and, per
token of the captions that people wrote, the KL divergence from fp32 and the share of equal likeliest tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data import Photo, open_dataset
from triptych.data.english.pairs import make_pairs
from triptych.engines.interface import FlamingoInputs
from triptych.engines.onnx.blip2 import OnnxBlip2
from triptych.engines.onnx.flamingo import OnnxFlamingo
from triptych.evidence import Floats
from triptych.generate import Search, log_softmax
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


def choices(model: Any, photos: Sequence[Photo], pairs: int) -> list[bool]:
    """Whether each question about two photos is answered rightly."""
    return [
        model.compare(photos[q.left].image(), photos[q.right].image(), q.question).text == q.answer
        for q in make_pairs(photos, pairs, 0)
    ]


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
    return log_softmax(logits, Search(frozenset()))


def measure(name: str, precision: Any, photos: Sequence[Photo], pairs: int) -> dict[str, Any]:
    model = load(name, precision=precision)
    texts, rate = captions(model, photos)
    scores = score_captions(
        {p.id: text for p, text in zip(photos, texts, strict=True)}, {p.id: p.captions for p in photos}
    )
    record: dict[str, Any] = {"texts": texts, "cider": 100 * (scores["CIDEr-D"] or 0), "rate": rate}
    if isinstance(model, Answers):
        record["choices"] = choices(model, photos, pairs)
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
            "choices": round(100 * float(np.mean(record["choices"])), 1),
            "choices lost": round(100 * float(np.mean(reference["choices"]) - np.mean(record["choices"])), 1),
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
    parser.add_argument("--models", nargs="+", default=["sat", "flamingo", "blip2"])
    parser.add_argument("--precisions", nargs="+", default=["int8", "int4"])
    arguments = parser.parse_args()
    photos = [photo for photo in open_dataset(arguments.data, "val") if photo.captions][: arguments.photos]
    for name in arguments.models:
        reference = measure(name, "fp32", photos, arguments.pairs)
        for precision in ("fp32", *arguments.precisions):
            record = reference if precision == "fp32" else measure(name, precision, photos, arguments.pairs)
            print(json.dumps({"model": name, "precision": precision} | compare(record, reference)), flush=True)


if __name__ == "__main__":
    main()
