"""The seam between what people do with a model (``tasks``, ``evaluate``, ``library``) and what computes it (an engine).

One Protocol for each system. An engine holds the loaded weights and does the arithmetic; its ``spec`` is all that callers need to know of
the checkpoint besides: tokenizers, prompts, search settings, limits. Engines keep no state between calls and serve several threads.

Arrays that pass from one call to the next (``Array``) are of any library that ``torch.as_tensor`` takes, and callers do not compute with
them. Results that callers compute with are NumPy's. Shapes: B photos, L grid cells, Q queries, R latents, E widths, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from triptych.evidence import Floats
from triptych.generate import Ints, Search, State, StateT, StepModel
from triptych.io.pixels import PixelSpec
from triptych.text.prompt import DEFAULT_PROMPTS, Prompts
from triptych.text.tokenizer import TextTokenizer
from triptych.text.vocabulary import WordVocabulary
from triptych.text.wordpiece import WordPieces


class Array(Protocol):
    """A tensor or an array of NumPy's."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...


Piece: TypeAlias = list[int] | Array  # of a prompt: token ids, or what stands for a photo


@dataclass(frozen=True)
class PhotoSpec:
    """The photos that an encoder takes, and its ``grid``, rows and columns of cells."""

    pixels: PixelSpec
    grid: tuple[int, int]


class PhotoEncoder(Protocol):
    """What the engines of all systems have: the frozen image encoder."""

    @property
    def photos(self) -> PhotoSpec: ...

    @property
    def explains(self) -> bool:
        """Whether ``maps`` can be computed: some engines need a package for them that may be missing."""
        ...

    def encode(self, pixel_values: Array) -> Sequence[Array]:
        """``[B, 3, H, W]`` -> the image features of each photo, an array of its own that may be kept."""
        ...

    def pooled(self, features: Sequence[Array]) -> Floats:
        """The mean of each photo's features over the grid: ``[B, D]``."""
        ...

    def info(self) -> Mapping[str, Any]:
        """Parts, parameters, memory, settings and model card."""
        ...


# Continuous batching: the texts of several callers, written together


class JointSteps(Protocol[StateT]):
    """Keeps arrays from one step to the next, so it serves one caller at a time."""

    def step(self, ids: Sequence[Ints], states: Sequence[StateT]) -> list[tuple[Array, StateT]]:
        """``StepModel.step`` of each state, computed together. Others may join, and some be absent, at every step."""
        ...


@runtime_checkable
class Joins(StepModel[Any, Any], Protocol):
    """An engine that can step states of several callers together."""

    def joint_steps(self) -> JointSteps[Any]: ...


# Show, Attend and Tell


@dataclass(frozen=True)
class SatSpec:
    vocabulary: WordVocabulary
    search: Search


class SatEngine(PhotoEncoder, StepModel[Array, StateT], Protocol[StateT]):
    """A ``StepModel`` over annotations ``[B, L, D]``."""

    @property
    def spec(self) -> SatSpec: ...

    def read(self, features: Sequence[Array]) -> Array:
        """Image features of B photos -> annotations ``[B, L, D]``."""
        ...

    def maps(self, features: Array, ids: Sequence[int]) -> Floats:
        """The attention over the grid when each of the words ``ids`` of one photo's caption was written: ``[T, h, w]``."""
        ...


# Flamingo


@dataclass(frozen=True)
class FlamingoSpec:
    """``image_id`` stands for a picture, ``end_id`` ends an example. ``max_tokens``: of a prompt. ``max_pictures``: how many places have an
    embedding of their own; None = a picture's place makes no difference. ``words_once``: captions say each content word once.
    ``answers``: settings in which the search of answers differs."""

    tokenizer: TextTokenizer
    search: Search
    image_id: int
    end_id: int
    max_tokens: int
    max_pictures: int | None
    words_once: bool = False
    prompts: Prompts = DEFAULT_PROMPTS
    answers: Mapping[str, Any] = field(default_factory=dict)


class PromptState(State, Protocol):
    """One row's or several rows' text and pictures, as read so far."""

    def fork(self, rows: Sequence[int]) -> Self:
        """An independent copy whose row i continues the row ``rows[i]``."""
        ...

    def truncate(self, length: int, pictures: int) -> None:
        """Go back, in place, to the first ``length`` tokens of a single row, among which there were so many pictures."""
        ...


PromptStateT = TypeVar("PromptStateT", bound=PromptState)


class FlamingoInputs(NamedTuple):
    """TextPieces with their pictures. ``state``: what was read before them; it is continued in place."""

    rows: Sequence[Sequence[int]]  # the ids of each text, image_id where a picture stands
    visual_tokens: Sequence[Sequence[Array]]  # of each row's pictures, in order, each [R, D]
    state: Any = None
    blind: bool = False  # the texts, and what is written behind them, attend to no picture


class FlamingoEngine(PhotoEncoder, StepModel[FlamingoInputs, PromptStateT], Protocol[PromptStateT]):
    @property
    def spec(self) -> FlamingoSpec: ...

    def read(self, features: Sequence[Array], places: Sequence[int]) -> Sequence[Array]:
        """The Perceiver Resampler: the visual tokens ``[R, D]`` of each picture; ``places``: in its prompt, from 1.

        Raises:
            InputError: a place beyond those that have embeddings.
        """
        ...

    def score(self, logits: Array, state: PromptStateT, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of each token of each text behind one prompt: ``logits [1, V]`` and ``state`` (unchanged) of ``prefill``."""
        ...

    def maps(
        self, prompt: Sequence[int], features: Sequence[Array], ids: Sequence[int], blind_from: int | None = None
    ) -> Floats:
        """Where the model looked in each picture of a prompt while it wrote each of ``ids``: ``[T, N, h, w]``.

        ``blind_from``: the position from which the text attended to no picture.
        """
        ...

    def gates(self) -> list[tuple[float, float]]:
        """tanh of the two gates, attention and feed-forward, of each gated block; 0 = shut."""
        ...


# BLIP-2


@dataclass(frozen=True)
class Blip2Spec:
    """``tokenizer`` None: there is no language model. ``instructed``: the Q-Former reads the question. ``matches``: it has the heads of the
    first stage; ``writes``: it can write captions itself (ITG); ``writer``: of captions by default. ``words_once``: captions say each
    content word once. ``answers``: settings in which the search of answers differs."""

    words: WordPieces
    tokenizer: TextTokenizer | None
    search: Search
    max_pieces: int  # of the Q-Former's text
    max_tokens: int  # of the language model's prompt
    queries: int
    instructed: bool
    matches: bool
    writes: bool
    writer: str
    prompts: Prompts = DEFAULT_PROMPTS
    words_once: bool = False
    answers: Mapping[str, Any] = field(default_factory=dict)


class TextPieces(NamedTuple):
    """Word pieces for the Q-Former, as ``WordPieces.encode_arrays`` makes them."""

    input_ids: Array  # [K, T]
    mask: Array  # [K, T], True on text


class SoftPrompt(NamedTuple):
    """Of one photo."""

    vectors: Array  # [Q, E]: what the language model reads in its place
    cells: Array | None  # [Q, L]: where each query looked; only if asked for


class MatchArrays(NamedTuple):
    """How well photos and texts fit, each ``[B, K]``; the fields of ``tasks.Match``."""

    itc_cosine: Floats
    itc_scaled: Floats
    itm_prob: Floats
    rerank: Floats


class Blip2Engine(PhotoEncoder, StepModel[Sequence[Sequence[Piece]], StateT], Protocol[StateT]):
    """As a ``StepModel`` it is the language model over prompts, each a sequence of pieces."""

    @property
    def spec(self) -> Blip2Spec: ...

    @property
    def fingerprint(self) -> str:
        """Names the weights that features for contrast come from."""
        ...

    def read(
        self, features: Sequence[Array], instructions: TextPieces | None, with_cells: bool = False
    ) -> Sequence[SoftPrompt]:
        """The Q-Former over B photos, each with its instruction, and the projection to the language model's width."""
        ...

    def score(self, logits: Array, state: StateT, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """As ``FlamingoEngine.score``; uses up ``state``."""
        ...

    def maps(self, pieces: Sequence[Piece], cells: Sequence[Array], ids: Sequence[int]) -> Floats:
        """Where the photos of one prompt were looked at while each of ``ids`` was written: ``[T, N, h, w]``.

        The language model's attention to the soft prompts times the attention of their queries (``cells``, N of ``[Q, L]``, of ``read``).
        """
        ...

    @property
    def writer(self) -> StepModel[Sequence[Array], Any]:
        """The Q-Former as a writer of captions (ITG), over the image features of B photos."""
        ...

    def writer_maps(self, features: Array, ids: Sequence[int]) -> Floats:
        """Where the Q-Former looked while it wrote each of ``ids`` about one photo: ``[T, h, w]``."""
        ...

    def itc_images(self, features: Sequence[Array]) -> Floats:
        """Features for contrast of each photo's queries: ``[B, Q, E]``, of length 1."""
        ...

    def itc_texts(self, texts: TextPieces) -> Floats:
        """Features for contrast of each text: ``[K, E]``, of length 1."""
        ...

    def match(self, features: Sequence[Array], texts: TextPieces, itc_texts: Floats) -> MatchArrays:
        """Every photo with every text; ``itc_texts``: what ``itc_texts(texts)`` gave, which many photos share."""
        ...

    def match_maps(self, features: Array, texts: TextPieces) -> Floats:
        """Where one photo was looked at for each piece of one text, [CLS] and [SEP] left out, and behind them where the best query of
        contrast looked: ``[T + 1, h, w]``."""
        ...
