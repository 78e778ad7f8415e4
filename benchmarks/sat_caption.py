"""A caption of one photo, file to text, in a warm process: ``python -m benchmarks.sat_caption run MODEL PHOTO``.

``sample MODEL`` writes a stand-in for a trained checkpoint: random weights of the same sizes. Its captions mean nothing and are
about a dozen words long; it takes as long as a trained one and needs no pretrained part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.sat_beam import add_clock
from triptych.checkpoints.config import Card
from triptych.engines.torch import TorchSat
from triptych.generate import generate
from triptych.io.images import load_image, pixel_values
from triptych.models import SatModel, sat_search, save_sat
from triptych.nn.cnn import EfficientNetLite
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.tasks import Answer, SatTasks, load
from triptych.text.vocabulary import SPECIALS, WordVocabulary


def sample_checkpoint(directory: Path, vocab_size: int = 2541, attention_dim: int = 256) -> None:
    """Random weights of the shipped model's sizes, with the whole encoder in the checkpoint."""
    torch.manual_seed(0)
    encoder = EfficientNetLite(cut=22)
    config = ShowAttendTellConfig(vocab_size, encoder.dim, attention_dim=attention_dim, gate="vector")
    model = ShowAttendTell(config, encoder)
    add_clock(model.decoder, end_bias=-14)
    words = WordVocabulary((*SPECIALS, *(f"word{i}" for i in range(vocab_size - len(SPECIALS)))))
    save_sat(directory, SatModel.new(model, words, sat_search(beams=5), whole_encoder=True), Card())


def stages(captioner: SatTasks, path: Path, answer: Answer) -> dict[str, float]:
    """Seconds of each step from file to text."""
    engine = captioner.engine
    assert isinstance(engine, TorchSat)
    encoder, seconds = engine.model.encoder, {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - started
        return result

    photo = timed("decode", lambda: load_image(path))
    pixels = timed("resize", lambda: pixel_values(photo, encoder.pixels)[None])
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    features = timed("encode", lambda: encoder(pixels).contiguous())
    [[best]] = timed("search", lambda: generate(engine.model.decoder, features, captioner.spec.search))
    if captioner.spec.vocabulary.decode(best.ids) != answer.text or abs(best.logprob - answer.logprob) > 1e-4:
        raise RuntimeError("the steps do not make the caption that they are the steps of")
    return seconds


def measure(model: str, photo: Path, repeats: int) -> dict[str, float]:
    """Median seconds of ``caption`` on a file (total) and of its steps. Each run sees another photo: the last, cropped."""
    captioner = load(model, device="cpu")
    assert isinstance(captioner, SatTasks)
    original = load_image(photo)
    runs, words = [], []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for i in range(repeats + 1):
            path = Path(folder) / f"{i}.jpg"
            original.crop((i, 0, original.width, original.height)).save(path, quality=92)
            started = time.perf_counter()
            answer = captioner.caption(path)
            total = time.perf_counter() - started
            runs.append(stages(captioner, path, answer) | {"total": total})
            words.append(len(answer.tokens))
    del runs[0]  # warm-up
    return {name: median(run[name] for run in runs) for name in runs[0]} | {"words": sum(words[1:]) / repeats}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("run", "sample"))
    parser.add_argument("model")
    parser.add_argument("photo", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.what == "sample":
        sample_checkpoint(Path(arguments.model))
    else:
        print(json.dumps(measure(arguments.model, arguments.photo, arguments.repeats)))


if __name__ == "__main__":
    main()
