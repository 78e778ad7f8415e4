"""Beam search, batched over inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from triptych.generate.scores import Guidance, score_next
from triptych.generate.search import Search
from triptych.generate.steps import Inputs, StateT, StepModel
from triptych.generate.texts import Hypothesis, Texts, Token, to_hypothesis
from triptych.interruption import check_interruption
from triptych.logits import Ints, largest, to_library_of

BeamText = tuple[Token, ...]


def beam_search(
    model: StepModel[Inputs, StateT],
    inputs: Inputs,
    search: Search,
    guidance: Guidance | None = None,
    prompts: Texts = (),
) -> list[list[Hypothesis]]:
    """The ``n_best`` texts of each input, best first. Arguments as of ``generate``."""
    logits, state = model.prefill(inputs)
    beams = RunningBeams(search, guidance, prompts or [()] * len(logits))
    while (tokens := beams.extend(logits)) is not None:
        state = state.reorder(to_library_of(logits, tokens.rows))
        check_interruption()
        logits, state = model.step(to_library_of(logits, tokens.ids.reshape(-1)), state)
    return [best_first(hypotheses, search)[: search.n_best] for hypotheses in beams.ended]


class Candidate(NamedTuple):
    """A token that may continue a beam. ``score``: the guided log-probability of the text with it; ``beam``: the place of the text."""

    score: float
    beam: int
    token: Token


class BeamTokens(NamedTuple):
    """The tokens that continue the beams of the inputs that are left, and the rows of the old beams."""

    rows: Ints  # [B, K]
    ids: Ints  # [B, K]


class RunningBeams:
    """The texts of all inputs: those that have ended, and the beams of each input that is left.

    An input leaves when all its beams have ended, when no beam can win any more, or at ``max_new_tokens``.
    """

    def __init__(self, search: Search, guidance: Guidance | None, prompts: Texts) -> None:
        self.search, self.guidance, self.prompts = search, guidance, prompts
        self.ended: list[list[Hypothesis]] = [[] for _ in prompts]
        self.inputs = list(range(len(prompts)))  # those that are left
        self.texts: list[list[BeamText]] = [[()] for _ in prompts]  # of each of them; dead beams are not in it
        self.totals = np.zeros((len(prompts), 1), np.float32)  # [B, K], guided; minus infinity = a dead beam
        self.length = 0  # of each text

    def extend(self, logits: Any) -> BeamTokens | None:
        """Continue the beams with the best tokens; ``logits [B * K, V]`` are of the next ones. None: no input is left."""
        candidates = self.candidates(logits)
        self.length += 1
        left: dict[int, list[tuple[Candidate, BeamText]]] = {}
        for place, (source, own) in enumerate(zip(self.inputs, candidates, strict=True)):
            alive = continue_texts(own, self.texts[place], self.ended[source], self.search, self.length)
            if alive and not is_settled(self.ended[source], alive[0][0].score, self.length, self.search):
                left[place] = alive
        return self.keep(left) if left else None

    def keep(self, left: Mapping[int, list[tuple[Candidate, BeamText]]]) -> BeamTokens:
        """Keep the inputs at some places, with their texts that continue; dead copies of the first one stand for those that do not."""
        width, beams = self.totals.shape[1], self.search.beams
        self.inputs = [self.inputs[place] for place in left]
        self.texts = [[text for _, text in alive] for alive in left.values()]
        rows, ids = np.empty((2, len(left), beams), np.int64)
        self.totals = np.full((len(left), beams), -np.inf, np.float32)
        for i, (place, alive) in enumerate(left.items()):
            chosen = [candidate for candidate, _ in alive]
            self.totals[i, : len(chosen)] = [candidate.score for candidate in chosen]
            chosen += chosen[:1] * (beams - len(chosen))
            rows[i] = [place * width + candidate.beam for candidate in chosen]
            ids[i] = [candidate.token.id for candidate in chosen]
        return BeamTokens(rows, ids)

    def candidates(self, logits: Any) -> list[list[Candidate]]:
        """The best tokens for the beams of each input, best first: as many as beams, with ``refill`` so many that as many as beams continue
        even if all others end."""
        inputs, width = self.totals.shape
        written = [[token.id for token in row[min(k, len(row) - 1)]] for row in self.texts for k in range(width)]
        prompts = [self.prompts[source] for source in self.inputs]
        likeliest, logprobs = score_next(logits, written, self.search, prompts)
        guided = self.guidance.added(logprobs, self.inputs) if self.guidance else logprobs
        vocabulary = logprobs.shape[1]
        scores = (self.totals[..., None] + guided.reshape(inputs, width, vocabulary)).reshape(inputs, -1)
        wanted = self.search.beams * (1 + max(1, len(self.search.eos)) if self.search.refill else 1)
        best, index = largest(scores, min(wanted, scores.shape[1]))
        beams, ids = np.divmod(index, vocabulary)
        rows = np.arange(inputs)[:, None] * width + beams
        columns = (x.tolist() for x in (best, beams, rows, ids, logprobs[rows, ids], guided[rows, ids]))
        return [
            [
                Candidate(score, beam, Token(token, logprob, likeliest[row], compared - logprob))
                for score, beam, row, token, logprob, compared in zip(*of_input, strict=True)
            ]
            for of_input in zip(*columns, strict=True)
        ]


def continue_texts(
    candidates: Sequence[Candidate], texts: Sequence[BeamText], ended: list[Hypothesis], search: Search, length: int
) -> list[tuple[Candidate, BeamText]]:
    """Add the best candidates of one input that end here to ``ended``; returns those that continue, each with its text.

    Those of dead beams, which have no text in ``texts``, are at minus infinity. ``length``: of the texts with the candidates; at
    ``max_new_tokens`` all end.
    """
    alive: list[tuple[Candidate, BeamText]] = []
    slots = len(candidates) if search.refill else search.beams - len(ended)
    for place, candidate in enumerate(candidates[:slots]):
        if candidate.score == -np.inf:
            break
        text = (*texts[candidate.beam], candidate.token)
        if candidate.token.id in search.eos or length == search.max_new_tokens:
            if place < search.beams:
                ended.append(to_hypothesis(text, search.eos))
        elif len(alive) < search.beams:
            alive.append((candidate, text))
    if search.refill:
        ended[:] = best_first(ended, search)[: search.beams]
    return alive


def best_first(hypotheses: Sequence[Hypothesis], search: Search) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: -h.score(search.length_penalty))


def is_settled(ended: Sequence[Hypothesis], running: float, length: int, search: Search) -> bool:
    """Whether the ``ended`` texts are final (``Search.early_stopping``), as transformers judges it.

    Args:
        running: the guided log-probability of the best beam after ``length`` tokens.
    """
    if not search.refill or len(ended) < search.beams:
        return False
    if search.early_stopping is True:
        return True
    if search.early_stopping == "never" and search.length_penalty > 0:
        length = search.max_new_tokens
    return running / length**search.length_penalty <= ended[-1].score(search.length_penalty)
