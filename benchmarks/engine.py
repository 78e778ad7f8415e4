"""The engine for CPUs beside its peers: ONNX Runtime, our decoder on torch, transformers; photos encoded and captioned with both engines;
and Flamingo behind examples, beside what projects their pictures' keys and values again at every token.

    python -m benchmarks.engine decode|prompt|encode|caption|shots [--rows N] [--beams K] [--model sat] [--repeats 5]

Prints one JSON object: what was measured -> seconds, medians of repeats in turns. ``_cpu`` counts the processor's seconds on all
threads, which other programs disturb less than the clock's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.blip2_use import random_photos
from benchmarks.flamingo import PAD, Case, Read, Reference, random_ids, shots_and_picture, write
from benchmarks.lm_decode import PART, peer
from triptych.checkpoints.language_models import load_language_model
from triptych.checkpoints.parts import part_path
from triptych.convert.opening import find_checkpoint
from triptych.engines.interface import FlamingoInputs
from triptych.engines.onnx.flamingo import OnnxFlamingo, OnnxFlamingoState
from triptych.engines.onnx.opening import open_blip2
from triptych.engines.onnx.text import ROOM, OnnxLanguageModel, TextCache
from triptych.engines.torch import TorchFlamingo
from triptych.evidence import Floats
from triptych.generate import Search, generate
from triptych.systems.flamingo import flamingo_prompt
from triptych.tasks.blip2 import PhotoPrompt
from triptych.tasks.reranking import OF_CAPTIONS

PROMPT, NEW_TOKENS = 32, 32


class OnnxText:
    """A language model on ONNX Runtime as a ``generate.StepModel`` over embeddings ``[B, T, E]``."""

    def __init__(self, lm: OnnxLanguageModel) -> None:
        self.lm = lm

    def prefill(self, inputs: Floats) -> tuple[Floats, TextCache]:
        cache = self.lm.start(len(inputs), inputs.shape[1] + ROOM)
        return np.concatenate([self.lm.read(cache, row, text) for row, text in enumerate(inputs)]), cache

    def step(self, ids: Any, state: TextCache) -> tuple[Floats, TextCache]:
        return self.lm.step(ids, state), state


def in_turns(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each, of the clock and (``_cpu``) of the processor; each is run once before."""
    seconds: dict[str, list[float]] = {}
    for run in work.values():
        run()
    for _ in range(repeats):
        for name, run in work.items():
            clock, cpu = time.perf_counter(), time.process_time()
            run()
            seconds.setdefault(name, []).append(time.perf_counter() - clock)
            seconds.setdefault(f"{name}_cpu", []).append(time.process_time() - cpu)
    return {name: median(values) for name, values in seconds.items()}


def decode(rows: int, beams: int, new_tokens: int, repeats: int) -> dict[str, float]:
    """SmolLM2-135M writes ``new_tokens`` behind prompts of 32 embeddings in each of ``rows`` texts."""
    decoder = load_language_model(part_path(PART)).decoder
    noise = torch.randn(rows, PROMPT, decoder.config.dim, generator=torch.Generator().manual_seed(0))
    prompts = noise * decoder.embedding.weight.std()
    engine = open_blip2(find_checkpoint("blip2"), "int4")
    theirs, ours = peer(decoder), OnnxText(engine.lm)
    search = Search(frozenset(), max_new_tokens=new_tokens, beams=beams)

    @torch.inference_mode()
    def transformers() -> object:
        return theirs.generate(
            inputs_embeds=prompts,
            attention_mask=torch.ones(prompts.shape[:2], dtype=torch.long),
            max_new_tokens=new_tokens,
            num_beams=beams,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    work: dict[str, Callable[[], object]] = {
        "transformers": transformers,
        "torch": lambda: generate(decoder, prompts, search),
        "onnx": lambda: generate(ours, prompts.numpy(), search),
    }
    weights = (engine.opened.folder / "language.data").stat().st_size
    return in_turns(work, repeats) | {"tokens": rows * new_tokens, "bytes": weights, "bandwidth": bandwidth()}


def bandwidth() -> float:
    """Bytes a second that one thread reads from memory."""
    array = np.ones(1 << 27, np.float32)
    return array.nbytes / in_turns({"read": array.max}, 5)["read"]


def caption(model: str, photos: int, repeats: int) -> dict[str, float]:
    """Photos to captions, the same model with both engines, BLIP-2's also by transformers; each time photos that it has not met."""
    from triptych.tasks import Blip2Tasks, load

    engines = {"torch": load(model, device="cpu"), "onnx": load(model)}
    writers: dict[str, Callable[[Any], object]] = {name: engines[name].caption for name in engines}
    if isinstance(engines["torch"], Blip2Tasks):
        writers["transformers"] = transformers_captions(load(model, device="cpu"))
    fresh = {name: iter(range(10_000)) for name in writers}

    def work(name: str) -> Callable[[], object]:
        return lambda: writers[name](random_photos(photos, seed=next(fresh[name])))

    return in_turns({name: work(name) for name in writers}, repeats) | {"photos": photos}


def transformers_captions(model: Any) -> Callable[[Any], object]:
    """BLIP-2's captions with the language model on transformers, by its own beam search with as many beams and tokens. transformers has
    neither this image encoder nor this Q-Former: both are computed by our modules on torch. Consensus does not choose among the beams."""
    engine, search = model.engine, model.caption_search(beams=OF_CAPTIONS.beams)
    lm = peer(engine.model.lm)

    @torch.inference_mode()
    def write_captions(photos: list[Any]) -> object:
        rows = model.read([PhotoPrompt(model.spec.prompts.caption, [photo]) for photo in photos])
        prompt = engine.model.prompt([engine.tensors(row.pieces) for row in rows])
        return lm.generate(
            inputs_embeds=prompt.inputs,
            attention_mask=torch.ones(prompt.inputs.shape[:2]) if prompt.padding_mask is None else prompt.padding_mask,
            max_new_tokens=search.max_new_tokens,
            num_beams=search.beams,
            do_sample=False,
            eos_token_id=sorted(search.eos),
            pad_token_id=0,
        )

    return write_captions


def encode(photos: int, repeats: int) -> dict[str, float]:
    """The image encoder that all systems share, pixels to features: eager torch in channels-last with folded norms, and ONNX Runtime."""
    from triptych.tasks import load

    engines = {"torch": load("blip2", device="cpu").engine, "onnx": load("blip2").engine}
    size = engines["onnx"].photos.pixels.size
    pixels = np.random.default_rng(0).normal(size=(photos, 3, size, size)).astype(np.float32)
    work = {name: partial(engine.encode, pixels) for name, engine in engines.items()}
    return in_turns(work, repeats) | {"photos": photos}


class Continued:
    """A prompt that was read once and is continued again and again: a ``generate.StepModel``."""

    def __init__(self, engine: OnnxFlamingo, inputs: FlamingoInputs) -> None:
        self.engine = engine
        self.logits, self.state = engine.prefill(inputs)

    def prefill(self, inputs: None = None) -> tuple[Floats, OnnxFlamingoState]:
        return self.logits, self.state.fork([0])

    def step(self, ids: Any, state: OnnxFlamingoState) -> tuple[Floats, OnnxFlamingoState]:
        return self.engine.step(ids, state)


@torch.inference_mode()
def shots(count: int, repeats: int) -> dict[str, float]:
    """The shipped Flamingo writes 32 tokens behind ``count`` examples (``onnx``, and ``reference`` on torch), and reads a second question
    about them: its own tokens alone (``second``), or everything again (``anew``)."""
    from triptych.tasks import load

    theirs, ours = load("flamingo", device="cpu").engine, load("flamingo").engine
    assert isinstance(theirs, TorchFlamingo) and isinstance(ours, OnnxFlamingo)
    model = theirs.model
    case = Case(model.lm.config, model.config)
    pictures = torch.randn(count + 1, model.config.latents, model.config.visual_dim)
    ids, question = shots_and_picture(case, count), random_ids(case, case.text)
    inputs = FlamingoInputs([ids], [list(pictures.numpy())])
    search = Search(frozenset(), max_new_tokens=NEW_TOKENS, banned=frozenset({model.config.image_id}))
    logits, state = model.prefill(flamingo_prompt([ids], pictures, [count + 1], PAD))
    reference = Read(logits, state, count + 1, Reference(model, pictures).step)
    ours_read = Continued(ours, inputs)

    def second() -> object:
        return ours.prefill(FlamingoInputs([question], [[]], ours_read.state.fork([0])))

    work: dict[str, Callable[[], object]] = {
        "reference": lambda: write(reference, search),
        "onnx": lambda: generate(ours_read, None, search),
        "second": second,
        "anew": lambda: ours.prefill(inputs._replace(rows=[[*ids, *question]])),
    }
    return in_turns(work, repeats) | {"tokens": NEW_TOKENS}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("decode", "prompt", "encode", "caption", "shots"))
    parser.add_argument("--rows", type=int, default=1, help="texts, photos or examples")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--model", default="sat")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "caption":
        times = caption(arguments.model, arguments.rows, arguments.repeats)
    elif arguments.what == "encode":
        times = encode(arguments.rows, arguments.repeats)
    elif arguments.what == "shots":
        times = shots(arguments.rows, arguments.repeats)
    else:
        length = NEW_TOKENS if arguments.what == "decode" else 1
        times = decode(arguments.rows, arguments.beams, length, arguments.repeats)
    print(json.dumps(times))
