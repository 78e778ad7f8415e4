"""What a model answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import exp
from typing import Any, Literal, NamedTuple, TypeAlias

from triptych.evidence import Evidence
from triptych.generate import Search
from triptych.io.pixels import PixelSpec

Method: TypeAlias = Literal["decoder", "language model", "q-former", "captions", "caption likelihood", "matching"]

SUM_ERROR = 1e-6


class WrittenToken(NamedTuple):
    """A token of a text, with the space before it; ``likeliest``: the likeliest tokens at its place (``Search.top_logprobs``)."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


class TextEnd(NamedTuple):
    """How a text ended. ``finished``: by itself, not at ``max_new_tokens``. Numbers of tokens: of the prompt, each picture as many as the
    language model reads in its place, and of what was written, alternatives included; 0 where no language model was asked. ``tokens``: of
    each text, the best first, where ``Search.top_logprobs`` is given."""

    finished: bool = True
    prompt_tokens: int = 0
    new_tokens: int = 0
    tokens: tuple[tuple[WrittenToken, ...], ...] = ()


@dataclass(frozen=True)
class AnswerRecipe:
    """What an answer came from besides the photos and the weights.

    prompt: as the language model reads it, ``<image>`` for each picture; None = nothing is read but photos. search: None = nothing was
    written, choices were scored. pixels: how the photos were brought to the encoder.
    """

    pixels: PixelSpec
    prompt: str | None = None
    search: Search | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        search = self.search and self.search.to_dict()
        return {"prompt": self.prompt, "search": search, "pixels": self.pixels.to_dict()}


@dataclass(frozen=True)
class Answer:
    """A produced text. ``logprob`` is of the whole text with its end; ``tokens`` are its words, each with its log-probability.

    scores: of choices, the log-probability of each; ``text`` is the likeliest. Those of ``ask`` are calibrated (``choices``), and their
        ``probabilities`` sum to 1; those of a completion are of each text as it stands.
    method: how the answer was found. ``decoder``: written by the decoder of Show, Attend and Tell; ``language model``: written, or its
        choices scored, by the language model; ``q-former``: written by the Q-Former (ITG); ``captions``: by the language model from
        captions of the pictures, one by one; ``caption likelihood``: the picture whose caption would sooner begin with a text;
        ``matching``: by how well pictures and texts match (ITM).
    recipe: prompt, search and pixels.
    finished_alternatives: of each alternative, whether it ended by itself.
    """

    text: str
    model: str
    logprob: float
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    evidence: Evidence | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    scores: Mapping[str, float] | None = None
    method: Method = "language model"
    recipe: AnswerRecipe | None = None
    end: TextEnd = field(default_factory=TextEnd)
    finished_alternatives: tuple[bool, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the text ended by itself, not at ``max_new_tokens``."""
        return self.end.finished

    @property
    def probabilities(self) -> dict[str, float] | None:
        """Of the choices, where the ``scores`` are logarithms of probabilities that sum to 1, as those of ``ask`` are."""
        each = {choice: exp(score) for choice, score in (self.scores or {}).items()}
        return each if abs(sum(each.values()) - 1) < SUM_ERROR else None

    def to_dict(self, text: str = "text") -> dict[str, Any]:
        """What the command line and the server print of it, for JSON; ``text`` names the field of the text."""
        record: dict[str, Any] = {
            "model": self.model,
            text: self.text,
            "logprob": round(self.logprob, 4),
            "method": self.method,
        }
        if self.scores is not None:
            record["scores"] = {choice: round(score, 4) for choice, score in self.scores.items()}
            if self.probabilities is not None:
                record["probabilities"] = {choice: round(p, 4) for choice, p in self.probabilities.items()}
        if self.alternatives:
            record["alternatives"] = [[other, round(logprob, 4)] for other, logprob in self.alternatives]
        return record

    def to_record(self, text: str = "text") -> dict[str, Any]:
        """``to_dict`` with the recipe, as the command line prints it."""
        return self.to_dict(text) | ({"recipe": self.recipe.to_dict()} if self.recipe else {})


@dataclass(frozen=True)
class Match:
    """How well a photo and a text fit. ``image``, ``text``: their places in what was given.

    ``itc_cosine``: of the best query, -1 to 1. ``itc_scaled``: over the temperature. ``itm_prob``: that they match, 0 to 1.
    ``rerank``: logit of a match + cosine + agreement (``tasks.reranking``), weighted; what retrieval sorts by. ``evidence``: for each word
    of the text where in the photo it was looked for.
    """

    image: int
    text: int
    itc_cosine: float
    itc_scaled: float
    itm_prob: float
    rerank: float
    evidence: Evidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its scores, for JSON."""
        return {k: round(v, 4) for k, v in asdict(self).items() if k not in ("image", "text", "evidence")}
