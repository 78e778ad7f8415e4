"""Greedy decoding of SmolLM2-135M after a soft prompt: this package against transformers' ``generate`` with the same weights.

``python -m benchmarks.lm_decode WHICH`` measures one process's share of the table and prints it as JSON; WHICH is ``both``
(times, in turns), or ``ours`` or ``idle`` for the process's peak memory (``idle`` only loads the model).
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
from torch import Tensor

from triptych.checkpoints.language_models import load_language_model
from triptych.checkpoints.parts import part_path
from triptych.checkpoints.tables.language import LLAMA
from triptych.generate import Search, generate
from triptych.nn.decoder import Decoder

PART = "smollm2-135m"


@dataclass(frozen=True)
class Case:
    texts: int
    prompt: int = 32
    new_tokens: int = 64


def soft_prompts(decoder: Decoder, case: Case) -> Tensor:
    """Random embeddings ``[B, T, D]`` of the size of the model's own."""
    noise = torch.randn(case.texts, case.prompt, decoder.config.dim, generator=torch.Generator().manual_seed(0))
    return noise * decoder.embedding.weight.std()


def ours(decoder: Decoder, prompts: Tensor, new_tokens: int) -> list[list[int]]:
    search = Search(eos=frozenset(), max_new_tokens=new_tokens)
    return [list(hypotheses[0].ids) for hypotheses in generate(decoder, prompts, search)]


@torch.inference_mode()
def theirs(model: Any, prompts: Tensor, new_tokens: int) -> list[list[int]]:
    mask = torch.ones(prompts.shape[:2], dtype=torch.long)
    ids = model.generate(
        inputs_embeds=prompts,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    texts: list[list[int]] = ids.tolist()
    return texts


def peer(decoder: Decoder) -> Any:
    """transformers' Llama with copies of a Llama-like decoder's weights, laid out as transformers loads them."""
    import transformers

    c, own, tensors = decoder.config, decoder.state_dict(), {}
    kv = c.groups * c.head_width
    sizes = {"qkv": [c.heads * c.head_width, kv, kv], "up": [c.ffn_dim, c.ffn_dim]}
    for target, sources in LLAMA.items():
        for layer in range(c.layers if "*" in target else 1):
            weight = own.get(f"{target.replace('*', str(layer))}.weight")
            if weight is not None:
                parts = weight.split(sizes.get(target.rpartition(".")[2], [len(weight)]))
                for source, part in zip(sources, parts, strict=True):
                    tensors[f"{source.replace('*', str(layer))}.weight"] = part.contiguous()
    config: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.groups,
        "intermediate_size": c.ffn_dim,
        "max_position_embeddings": c.max_positions,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied,
    }
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(tensors, strict=not c.tied)
    return model.eval().requires_grad_(False)


def compare(decoder: Decoder, case: Case, repeats: int) -> dict[str, float]:
    """Seconds of each for the first token (the prompt) and for all tokens: medians of repeats in turns.

    ``cpu`` counts the processor's seconds on all threads, which other programs disturb less than the clock's.

    Raises:
        RuntimeError: the two write different texts.
    """
    model, prompts = peer(decoder), soft_prompts(decoder, case)
    writers: dict[str, Callable[[int], list[list[int]]]] = {
        "ours": lambda tokens: ours(decoder, prompts, tokens),
        "theirs": lambda tokens: theirs(model, prompts, tokens),
    }
    if writers["ours"](case.new_tokens) != writers["theirs"](case.new_tokens):  # warm-up, too
        raise RuntimeError("the two write different texts")
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for what, tokens in (("prompt", 1), ("all", case.new_tokens)):
            for name, write in writers.items():
                clock, cpu = time.perf_counter(), time.process_time()
                write(tokens)
                times.setdefault(f"{name}_{what}", []).append(time.perf_counter() - clock)
                times.setdefault(f"{name}_{what}_cpu", []).append(time.process_time() - cpu)
    return {name: median(seconds) for name, seconds in times.items()} | {"tokens": case.texts * case.new_tokens}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=("both", "ours", "idle"))
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    decoder, case = load_language_model(part_path(PART)).decoder, Case(arguments.texts)
    if arguments.which == "both":
        print(json.dumps(compare(decoder, case, arguments.repeats)))
    elif arguments.which == "ours":
        ours(decoder, soft_prompts(decoder, case), case.new_tokens)


if __name__ == "__main__":
    main()
