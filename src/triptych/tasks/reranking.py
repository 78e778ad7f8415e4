"""What is expected of a photo's captions (``text.consensus``) beside what a model writes: it guides the search for words, and counts in the
choice among beams of captions and answers, in matching, and for things that a question asks for.

The checkpoint brings its consensus; without one nothing is added. Figures of the choice: docs/lab-notebook.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych.evidence import Floats
from triptych.generate import Guidance, Hypothesis, Search
from triptych.io.images import ImageSource
from triptych.logits import Ints
from triptych.tasks.answer import Answer
from triptych.tasks.asking import PictureQuestion
from triptych.tasks.choices import without_article
from triptych.text.consensus import Consensus, read_consensus, tokens_of_words
from triptych.text.questions import asks_for_number

EXPECTED_WORDS = 6  # in the evidence

Decode = Callable[[Sequence[int]], str]  # the ids of a text -> the text


class BeamChoice(NamedTuple):
    """How the consensus takes part in a search.

    ``guidance``: the weight of what each word adds to the agreement, beside its log-probability. ``agreement``: its weight beside the score
    of a whole beam, which is its log-probability over tokens to the power of ``length_penalty``.
    """

    beams: int
    guidance: float
    agreement: float
    length_penalty: float

    def with_settings(self, settings: Mapping[str, Any]) -> BeamChoice:
        """The same, with the length penalty among the ``settings`` of a search, if they have one."""
        return self._replace(length_penalty=settings.get("length_penalty", self.length_penalty))

    def rank(self, hypotheses: Sequence[Hypothesis], agreement: Floats, count: int) -> list[Hypothesis]:
        """The best ``count`` by score and ``agreement [K]`` with the photo."""
        scores = np.array([h.score(self.length_penalty) for h in hypotheses]) + self.agreement * agreement
        return [hypotheses[i] for i in np.argsort(-scores, kind="stable")[:count]]


OF_CAPTIONS = BeamChoice(beams=10, guidance=1.0, agreement=4.0, length_penalty=1.0)
OF_ANSWERS = BeamChoice(beams=4, guidance=0.0, agreement=6.0, length_penalty=0.0)


class Reranking:
    """What the tasks of a system need of a consensus. ``consensus_file``: of its checkpoint; None = it has none."""

    consensus_file: Path | None = None

    def pooled(self, images: Sequence[ImageSource]) -> Floats:
        """The mean of each photo's image features over the grid: ``[B, D]``."""
        raise NotImplementedError

    @cached_property
    def consensus(self) -> Consensus | None:
        return None if self.consensus_file is None else read_consensus(self.consensus_file)

    def word_token(self, word: str) -> int | None:
        """The token that stands for a whole word inside a text; None if there is no single one."""
        raise NotImplementedError

    @cached_property
    def guided_tokens(self) -> tuple[Ints, Ints]:
        """The tokens that are a word of the consensus, and the words' columns there: ``[N]`` each."""
        assert self.consensus is not None
        return tokens_of_words(self.consensus.columns, self.word_token)

    def guidance(self, pooled: Floats, choice: BeamChoice = OF_CAPTIONS) -> Guidance | None:
        """What the search for texts about photos ``[B, D]`` adds to each word; None: nothing, or there is no consensus."""
        if self.consensus is None or not choice.guidance:
            return None
        tokens, columns = self.guided_tokens
        return Guidance(tokens, choice.guidance * self.consensus.expected_words(pooled)[:, columns])

    def with_expected_words(self, answer: Answer, pooled: Floats) -> Answer:
        """The answer about a photo ``[D]``, with the words that the consensus expects in its evidence, if it has any."""
        if answer.evidence is None or self.consensus is None:
            return answer
        weights = self.consensus.expected_words(pooled[None])[0]
        expected = [self.consensus.words[i] for i in np.argsort(-weights, kind="stable")[:EXPECTED_WORDS]]
        return replace(answer, evidence=replace(answer.evidence, expected=tuple(expected)))

    def caption_choice(self, settings: Mapping[str, Any]) -> BeamChoice | None:
        """How the consensus takes part in the search for captions with ``settings``; None = not at all."""
        return OF_CAPTIONS.with_settings(settings) if self.reranks(settings) else None

    def reranks(self, settings: Mapping[str, Any]) -> bool:
        """Whether the consensus takes part in a search with ``settings``: samples are given as they are."""
        return self.consensus_file is not None and not settings.get("temperature")

    def reranks_answer(self, question: PictureQuestion, settings: Mapping[str, Any]) -> bool:
        """Whether the consensus takes part in the search for an answer: it knows one picture at a time, and little about numbers."""
        return self.reranks(settings) and len(question.images) == 1 and not asks_for_number(question.text)

    def by_choice(
        self, questions: Mapping[int, PictureQuestion], settings: Mapping[str, Any]
    ) -> Iterator[tuple[BeamChoice | None, list[int]]]:
        """How the consensus takes part in the search for answers, and the numbers of the questions that are answered so.

        Not at all comes first, even without a question, so that ``settings`` are checked; a choice without one is left out, because its
        beams would exclude samples.
        """
        reranked = [i for i, question in questions.items() if self.reranks_answer(question, settings)]
        yield None, [i for i in questions if i not in reranked]
        if reranked:
            yield OF_ANSWERS.with_settings(settings), reranked

    def agreement(self, pooled: Floats, texts: Sequence[str]) -> Floats:
        """The cosine of each photo ``[B, D]`` with each text: ``[B, K]``; 0 without a consensus."""
        if self.consensus is None:
            return np.zeros((len(pooled), len(texts)), np.float32)
        return self.consensus.agreement(pooled, texts)

    def presence_logits(self, images: Sequence[ImageSource], things: Sequence[str]) -> Floats:
        """Of each photo and thing the logit of the probability that captions name it: ``[B, K]``; NaN where the consensus does not know."""
        if self.consensus is None:
            return np.full((len(images), len(things)), np.nan, np.float32)
        return self.consensus.presence_logits(self.pooled(images), [without_article(thing) for thing in things])

    def reranked(
        self,
        written: Sequence[Sequence[Hypothesis]],
        pooled: Floats,
        decode: Decode,
        count: int,
        choice: BeamChoice = OF_CAPTIONS,
    ) -> list[list[Hypothesis]]:
        """The best ``count`` beams of each photo ``[B, D]``, the best one first."""
        return [
            choice.rank(beams, self.agreement(photo[None], [decode(beam.ids) for beam in beams])[0], count)
            for beams, photo in zip(written, pooled, strict=True)
        ]


def default_beams(choice: BeamChoice | None) -> dict[str, int]:
    """The setting of a search that a choice needs, where none is given; none without a choice."""
    return {} if choice is None else {"beams": choice.beams}


def with_all_beams(search: Search) -> Search:
    """The same, but every beam is given back."""
    return replace(search, n_best=search.beams)
