"""Flamingo's decoding, its second question and its training step, random weights.

    python -m benchmarks.flamingo decode|question|train wide|shipped|tiny

Prints one JSON object. ``decode``: seconds per token of ours (of the last picture alone, keys and values computed once) and of what
OpenFlamingo does (``Reference``), by the number of shots. ``question``: seconds to the first token behind eight shots. ``train``:
seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.engines.interface import FlamingoInputs
from triptych.generate import Search, StepModel, Token, stream
from triptych.nn import masks
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo, FlamingoState, flamingo_prompt

PAD = 0


@dataclass(frozen=True)
class Case:
    """``cells`` of a picture's grid, ``text`` tokens of a shot and of a question, ``questioned`` shots before the latter.

    Training: ``batch`` sequences of ``pictures`` shots of ``trained`` tokens, the picture's included, with half of each grid's cells.
    """

    lm: DecoderConfig
    flamingo: FlamingoConfig
    cells: int = 100
    shots: tuple[int, ...] = (0, 4, 8, 32)
    text: int = 12
    new_tokens: int = 32
    questioned: int = 8
    batch: int = 8
    pictures: int = 7
    trained: int = 16


# "wide": OpenFlamingo's latents and gated blocks. "shipped": SmolLM2-135M and the sizes of the shipped model.
SIZES = {
    "wide": Case(
        DecoderConfig(50_000, 768, 12, 12, 3072), FlamingoConfig(1024, image_id=49_999, latents=64, every=1), cells=256
    ),
    "shipped": Case(
        DecoderConfig(49_152, 576, 30, 9, 1536, kv_heads=3, max_positions=8192, rope_theta=100_000.0),
        FlamingoConfig(1280, image_id=49_151, dim=384, latents=32, resampler_layers=2, ffn_factor=2, every=3),
    ),
    "tiny": Case(
        DecoderConfig(50, 16, 4, 2, 24),
        FlamingoConfig(
            5, image_id=49, dim=8, latents=3, resampler_layers=2, heads=2, head_dim=4, ffn_factor=2, every=2
        ),
        cells=6,
        shots=(0, 2, 3),
        text=4,
        new_tokens=5,
        questioned=2,
        batch=2,
        pictures=2,
        trained=5,
    ),
}


def build(case: Case, seed: int = 0) -> Flamingo:
    """Random weights, laid out as loaded ones are; embeddings small enough and gates open enough that pictures decide what is written."""
    torch.manual_seed(seed)
    lm = Decoder(case.lm)
    nn.init.normal_(lm.embedding.weight, std=0.02)
    lm.load_state_dict(lm.state_dict())
    no_encoder: Any = nn.Identity()
    model = Flamingo(case.flamingo, no_encoder, lm)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            nn.init.constant_(parameter, 0.5)
    return model.eval()


def random_ids(case: Case, count: int) -> list[int]:
    """Tokens of text: neither padding nor a picture's."""
    ids: list[int] = torch.randint(1, case.flamingo.image_id, (count,)).tolist()
    return ids


def shots_and_picture(case: Case, shots: int) -> list[int]:
    """A picture and its text for each shot, then the picture that is asked about."""
    image = case.flamingo.image_id
    return [*(i for _ in range(shots) for i in (image, *random_ids(case, case.text))), image]


class Reference:
    """Steps as OpenFlamingo decodes, over the same modules: text has its cache, but at each token every gated block projects the keys
    and values of all pictures again, and looks at them through the mask of the last."""

    def __init__(self, model: Flamingo, visual_tokens: Tensor) -> None:
        """``visual_tokens [P, R, D]``: of all pictures of a single row."""
        self.model, self.media = model, visual_tokens.flatten(0, 1)[None]
        self.numbers = torch.arange(1, len(visual_tokens) + 1)[None]

    def step(self, ids: Tensor, state: FlamingoState) -> tuple[Tensor, FlamingoState]:
        lm, config = self.model.lm, self.model.config
        x, place = lm.embed_inputs(ids[:, None], cache=state.text)
        media_mask = masks.media(state.pictures_read[:, None], self.numbers, config.latents)
        for i, block in enumerate(lm.blocks):
            if (i + 1) % config.every == 0:
                gated: Any = self.model.xattn[i // config.every]
                x = gated(x, gated.attention.keys_values(self.media), media_mask)
            x = block(x, place, state.text[i])
        return lm.logits(lm.final_hidden(x))[:, 0], state


@dataclass
class Read:
    """A prompt that has been read, from which one may begin to write again and again: a ``generate.StepModel``."""

    logits: Tensor
    state: FlamingoState
    pictures: int
    go_on: Callable[[Tensor, FlamingoState], tuple[Tensor, FlamingoState]]

    def __post_init__(self) -> None:
        self.length = self.state.text.length

    def prefill(self, inputs: None = None) -> tuple[Tensor, FlamingoState]:
        self.state.truncate(self.length, self.pictures)
        return self.logits, self.state

    def step(self, ids: Tensor, state: FlamingoState) -> tuple[Tensor, FlamingoState]:
        return self.go_on(ids, state)


def write(model: StepModel[Any, Any], search: Search) -> tuple[list[Token], float]:
    """Ids and log-probabilities, and the seconds per token behind the first, which the prompt alone decides."""
    writing = stream(model, None, search)
    tokens = [next(writing)]
    started = time.perf_counter()
    tokens += writing
    return tokens, (time.perf_counter() - started) / (len(tokens) - 1)


def check_same_texts(left: list[Token], right: list[Token]) -> None:
    """Raises RuntimeError: the two wrote different ids, or gave them different log-probabilities."""
    alike = all(a.id == b.id and abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(left, right, strict=True))
    if not alike:
        raise RuntimeError(f"the two write different texts: {left} and {right}")


@torch.inference_mode()
def decode(
    case: Case, repeats: int, reference: Callable[[Flamingo, Tensor], Reference] = Reference
) -> dict[str, float]:
    """Seconds per token, ``ours_8`` and ``reference_8`` behind eight shots: medians of repeats in turns.

    Raises:
        RuntimeError: the two write different texts.
    """
    model, image = build(case), case.flamingo.image_id
    search = Search(eos=frozenset(), max_new_tokens=case.new_tokens, banned=frozenset({image}))
    writers: dict[str, Read] = {}
    for shots in case.shots:
        tokens = torch.randn(shots + 1, case.flamingo.latents, case.flamingo.visual_dim)
        logits, state = model.prefill(flamingo_prompt([shots_and_picture(case, shots)], tokens, [shots + 1], PAD))
        both = {"ours": model.step, "reference": reference(model, tokens).step}
        readers = {who: Read(logits, state, shots + 1, step) for who, step in both.items()}
        check_same_texts(*(write(reader, search)[0] for reader in readers.values()))  # warm-up, too
        writers |= {f"{who}_{shots}": reader for who, reader in readers.items()}
    times: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(repeats):
        for name, writer in writers.items():
            times[name].append(write(writer, search)[1])
    return {name: median(seconds) for name, seconds in times.items()}


class Reader:
    """A ``StepModel`` over ``FlamingoInputs``, of a model without an image encoder."""

    def __init__(self, model: Flamingo) -> None:
        self.model = model

    def prefill(self, inputs: FlamingoInputs) -> tuple[Tensor, FlamingoState]:
        counts = [len(pictures) for pictures in inputs.visual_tokens]
        tokens = [torch.as_tensor(x) for pictures in inputs.visual_tokens for x in pictures]
        config = self.model.config
        stacked = torch.stack(tokens) if tokens else torch.empty(0, config.latents, config.visual_dim)
        return self.model.prefill(flamingo_prompt(inputs.rows, stacked, counts, PAD)._replace(state=inputs.state))

    def step(self, ids: Tensor, state: FlamingoState) -> tuple[Tensor, FlamingoState]:
        return self.model.step(ids, state)


@torch.inference_mode()
def question(case: Case, repeats: int) -> dict[str, float]:
    """Seconds to the first token of one more question about the same shots and picture: ours reads its tokens alone, ``anew`` all.

    Both are given the visual tokens; ``resampler`` is the time of computing those of all pictures.

    Raises:
        AssertionError: the two find different logits.
    """
    from triptych.tasks.prefix import PrefixMemory, PromptRow

    model, pictures = build(case), case.questioned + 1
    features = torch.randn(pictures, case.cells, case.flamingo.image_dim)
    numbers = torch.arange(1, pictures + 1)
    visual_tokens = model.resampler(features, numbers)
    prompt = shots_and_picture(case, case.questioned)

    def question_row(number: int) -> PromptRow:
        ids = [*prompt, number, *random_ids(case, case.text - 1)]  # questions differ from their first token on
        signature = (f"picture {n}" if i == case.flamingo.image_id else i for n, i in enumerate(ids))
        return PromptRow(ids, tuple(signature), [*visual_tokens])

    def first_token(memory: PrefixMemory, row: PromptRow) -> tuple[Tensor, float]:
        started = time.perf_counter()
        with memory.read_prompt(row) as prefix:
            logits = torch.as_tensor(prefix.logits)
            logits.argmax(-1).tolist()
            return logits, time.perf_counter() - started

    reader = Reader(model)
    memory = PrefixMemory(reader)
    first_token(memory, question_row(1))
    times: dict[str, list[float]] = {"ours": [], "anew": [], "resampler": []}
    for number in range(repeats + 1):
        row = question_row(2 + number)
        logits, ours = first_token(memory, row)
        whole, anew = first_token(PrefixMemory(reader), row)
        torch.testing.assert_close(logits, whole, rtol=1e-3, atol=1e-3)
        started = time.perf_counter()
        model.resampler(features, numbers)
        for name, seconds in (("ours", ours), ("anew", anew), ("resampler", time.perf_counter() - started)):
            times[name].append(seconds)
    return {name: median(seconds[1:]) for name, seconds in times.items()} | {"pictures": pictures}


def train(case: Case, repeats: int) -> dict[str, float]:
    """Seconds of a forward and backward pass over a batch, as training does it, in turns with the ``floor``: those of the frozen language
    model alone, with a gradient down to its embeddings."""
    from triptych.models import in_bfloat16
    from triptych.text.prompt import IGNORED
    from triptych.train.flamingo.objective import FlamingoObjective
    from triptych.train.flamingo.recipe import FlamingoRecipe
    from triptych.train.loop import has_fast_bf16

    model, image, bf16 = build(case), case.flamingo.image_id, has_fast_bf16()
    model.train()
    if bf16:
        in_bfloat16(model.lm, None)
    objective = FlamingoObjective(model, ["caption"], FlamingoRecipe())
    ids = torch.randint(1, image, (case.batch, case.pictures * case.trained))
    ids[:, :: case.trained] = image
    labels = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    labels[labels == image] = IGNORED
    is_label = labels != IGNORED
    counts, which = torch.full((case.batch,), case.pictures), torch.zeros(case.batch, dtype=torch.long)
    features = torch.randn(case.batch * case.pictures, case.cells // 2, case.flamingo.image_dim)

    def ours() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, bf16):
            loss = objective(features, counts, ids, labels, which, which, 0)
        loss.backward()

    def floor() -> None:
        with torch.autocast("cpu", torch.bfloat16, bf16):
            embedded = model.lm.embedding(ids).requires_grad_()
            logits = model.lm.logits(model.lm(embedded)[is_label]).float()
            loss = F.cross_entropy(logits, labels[is_label])
        loss.backward()  # type: ignore[no-untyped-call]

    all_seconds: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(repeats + 1):
        for name, work in (("ours", ours), ("floor", floor)):
            started = time.perf_counter()
            work()
            all_seconds[name].append(time.perf_counter() - started)
    times = {name: median(seconds[1:]) for name, seconds in all_seconds.items()}
    return times | {"sequences": case.batch, "bf16": bf16}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("decode", "question", "train"))
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    measure = {"decode": decode, "question": question, "train": train}[arguments.what]
    print(json.dumps(measure(SIZES[arguments.size], arguments.repeats)))
