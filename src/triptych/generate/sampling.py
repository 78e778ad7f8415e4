"""Greedy search and sampling, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from triptych.generate.scores import Guidance, score_next
from triptych.generate.search import Search
from triptych.generate.steps import Inputs, StateT, StepModel
from triptych.generate.texts import Texts, Token
from triptych.interruption import check_interruption
from triptych.logits import Uniform, choose, to_library_of


def decode(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    seeds: Sequence[int] | None = None,
    guidance: Guidance | None = None,
    prompts: Texts = (),
) -> Iterator[list[list[Token | None]]]:
    """Greedy or sampled tokens ``[B][K]``, step by step; None in rows that have ended."""
    logits, state = model.prefill(inputs)
    prompts = prompts or [()] * len(logits)
    likeliest, logprobs = score_next(logits, [()] * len(logits), search, prompts)
    batch, rows = len(logprobs), search.n_best if search.temperature > 0 else 1
    seeds = [search.seed] * batch if seeds is None else seeds
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} inputs")
    draws = [Uniform(seed) for seed in seeds]
    if rows > 1:
        order = np.repeat(np.arange(batch)[:, None], rows, 1)
        state, logprobs = state.reorder(to_library_of(logits, order)), logprobs.repeat(rows, 0)
        likeliest = [row for row in likeliest for _ in range(rows)]
    inputs_left, alive = list(range(batch)), [[True] * rows for _ in range(batch)]
    texts: list[list[int]] = [[] for _ in range(batch * rows)]
    for position in range(search.max_new_tokens):
        guided = guidance.added(logprobs, inputs_left) if guidance else logprobs
        ids = choose(guided, [draws[source] for source in inputs_left], search.temperature, search.top_k, search.top_p)
        chosen, scores = (x[np.arange(len(ids)), ids].tolist() for x in (logprobs, guided))
        tokens: list[list[Token | None]] = [[None] * rows for _ in range(batch)]
        for index, (token, logprob, score) in enumerate(zip(ids.tolist(), chosen, scores, strict=True)):
            source, row = inputs_left[index // rows], index % rows
            if alive[source][row]:
                tokens[source][row] = Token(token, logprob, likeliest[index], score - logprob)
                alive[source][row] = token not in search.eos
            texts[index].append(token)
        yield tokens
        kept = [index for index, source in enumerate(inputs_left) if any(alive[source])]
        if not kept or position + 1 == search.max_new_tokens:
            return
        if len(kept) < len(inputs_left):
            order = np.array(kept)[:, None] * rows + np.arange(rows)
            ids, state = ids[order.reshape(-1)], state.reorder(to_library_of(logits, order))
            texts = [texts[index] for index in order.reshape(-1)]
            inputs_left = [inputs_left[index] for index in kept]
        check_interruption()
        logits, state = model.step(to_library_of(logits, ids), state)
        likeliest, logprobs = score_next(logits, texts, search, [prompts[source] for source in inputs_left])
