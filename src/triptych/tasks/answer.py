"""The results of tasks: ``Answer``, ``Match``, and their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import exp
from typing import Any, Literal, NamedTuple, TypeAlias

from triptych.evidence import Evidence
from triptych.generate import Search
from triptych.io.pixels import PixelSpec

Method: TypeAlias = Literal[
    "decoder", "language model", "q-former", "captions", "caption likelihood", "prototypes", "matching"
]

SUM_ERROR = 1e-6


class WrittenToken(NamedTuple):
    """A token of a text, with the space before it; ``likeliest``: the most likely tokens at its position (``Search.top_logprobs``)."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


class TextEnd(NamedTuple):
    """How a text ended, and its length.

    ``finished``: by itself, not at ``max_new_tokens``. ``prompt_tokens``: a picture counts as many as the language model reads for it.
    ``new_tokens``: those written, alternatives included. Both are 0 without a language model. ``tokens``: of each text, the best first, if
    ``Search.top_logprobs`` is set.
    """

    finished: bool = True
    prompt_tokens: int = 0
    new_tokens: int = 0
    tokens: tuple[tuple[WrittenToken, ...], ...] = ()


@dataclass(frozen=True)
class AnswerRecipe:
    """How an answer was made, besides the photos and the weights.

    prompt: as the language model reads it, with ``<image>`` for each picture; None = there is none. search: None = nothing was written,
    choices were scored. pixels: how the photos were resized and normalised for the encoder.
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
    """A text that a model wrote or chose. ``logprob``: of the whole text with its end; ``tokens``: its words, ``logprobs``: theirs.

    scores: the log-probability of each choice; ``text`` is the most likely. Those of ``ask`` are calibrated (``tasks.choices``), and their
        ``probabilities`` sum to 1, as do those of ``prototypes``; those of another completion are the texts' own.
    method: ``decoder``: written by the decoder of Show, Attend and Tell; ``language model``: written, or its choices scored, by the
        language model; ``q-former``: written by the Q-Former (ITG); ``captions``: by the language model from a caption of each picture;
        ``caption likelihood``: the picture under which a text is the most likely caption; ``prototypes``: scored by the language model
        and by how much the picture resembles each choice's examples; ``matching``: by how well pictures and texts match (ITM).
    finished_alternatives: for each alternative whether it ended by itself.
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
        """Those of the choices, if the ``scores`` are log-probabilities that sum to 1, as those of ``ask`` are."""
        each = {choice: exp(score) for choice, score in (self.scores or {}).items()}
        return each if abs(sum(each.values()) - 1) < SUM_ERROR else None

    def to_dict(self, text: str = "text") -> dict[str, Any]:
        """The answer for JSON, as the command line and the server print it; ``text``: the name of the text's field."""
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
    """How well a photo and a text fit. ``image``, ``text``: their indices in the lists given to ``match``.

    ``itc_cosine``: of the best query, -1 to 1. ``itc_scaled``: the same over the temperature. ``itm_prob``: the probability that they
    match, 0 to 1. ``rerank``: the weighted sum of a match's logit, the cosine and the agreement (``tasks.reranking``), less what photo and
    text have in common with all others (``tasks.querybank``); retrieval sorts by it. ``evidence``: where in the photo the model looked for
    each word of the text.
    """

    image: int
    text: int
    itc_cosine: float
    itc_scaled: float
    itm_prob: float
    rerank: float
    evidence: Evidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """The scores, for JSON."""
        return {k: round(v, 4) for k, v in asdict(self).items() if k not in ("image", "text", "evidence")}
