"""The interface between the users of a model (``tasks``, ``evaluate``, ``library``) and the engines that compute it.

There is one Protocol for each system. An engine has the loaded weights and does the arithmetic; its ``spec`` has everything else of the
checkpoint that callers need: tokenizers, prompts, search settings, limits. Engines keep no state between calls and serve several threads.

Arrays that are passed from one call to the next (``Array``) belong to the engine, and callers do not compute with them. Results that
callers compute with are NumPy's. Shapes: B photos, L grid cells, Q queries, R latents, E widths, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from triptych.evidence import Floats
from triptych.generate import Search, State, StateT, StepModel
from triptych.io.pixels import PixelSpec
from triptych.logits import Ints
from triptych.text.prompt import DEFAULT_PROMPTS, Prompts
from triptych.text.tokenizer import TextTokenizer
from triptych.text.vocabulary import WordVocabulary
from triptych.text.wordpiece import WordPieces


class Array(Protocol):
    """A NumPy array or a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...


Piece: TypeAlias = list[int] | Array  # of a prompt: token ids, or the soft prompt of a photo


@dataclass(frozen=True)
class PhotoSpec:
    """``pixels``: how photos are resized and normalised for an encoder; ``grid``: its rows and columns of cells."""

    pixels: PixelSpec
    grid: tuple[int, int]


class PhotoEncoder(Protocol):
    """The frozen image encoder, which the engines of all systems have."""

    @property
    def photos(self) -> PhotoSpec: ...

    @property
    def explains(self) -> bool:
        """Whether ``maps`` can be computed; some engines need an optional package for them."""
        ...

    def encode(self, pixel_values: Array) -> Sequence[Array]:
        """``[B, 3, H, W]`` -> the image features of each photo, each in its own memory so that it may be kept."""
        ...

    def pooled(self, features: Sequence[Array]) -> Floats:
        """The mean of each photo's features over the grid: ``[B, D]``."""
        ...

    def info(self) -> Mapping[str, Any]:
        """Parts, parameters, memory, settings and model card."""
        ...


# Continuous batching: writing the texts of several callers together


class JointSteps(Protocol[StateT]):
    """Steps the states of several callers together. It keeps arrays between steps, so only one thread may use it."""

    @property
    def enough_rows(self) -> int:
        """Above this many rows, the time of a step grows in proportion to them."""
        ...

    def step(self, ids: Sequence[Ints], states: Sequence[StateT]) -> list[tuple[Array, StateT]]:
        """``StepModel.step`` of each state, computed together. Each call may have other states than the last."""
        ...


@runtime_checkable
class Joins(StepModel[Any, Any], Protocol):
    """An engine with ``JointSteps``."""

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

    def mean(self, annotations: Array) -> Floats:
        """The mean of annotations ``[B, L, D]`` over the grid: ``[B, D]``; ``pooled`` of photos that were read already."""
        ...

    def maps(self, features: Array, ids: Sequence[int]) -> Floats:
        """The attention to the grid for each of the words ``ids`` of one photo's caption: ``[T, h, w]``."""
        ...


# Flamingo


@dataclass(frozen=True)
class FlamingoSpec:
    """``image_id`` stands for a picture, ``end_id`` ends an example. ``max_tokens``: of a prompt. ``max_pictures``: the number of picture
    embeddings; None = there are none. ``words_once``: captions name each thing only once. ``answers``: settings in which the
    search of answers differs from ``search``."""

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
    """The text and pictures that were read so far, in one row or several."""

    def fork(self, rows: Sequence[int]) -> Self:
        """An independent copy whose row i continues the row ``rows[i]``."""
        ...

    def truncate(self, length: int, pictures: int) -> None:
        """Go back, in place, to the first ``length`` tokens of a single row, which contain ``pictures`` pictures."""
        ...


PromptStateT = TypeVar("PromptStateT", bound=PromptState)


class FlamingoInputs(NamedTuple):
    """Texts with their pictures. ``state``: of the text so far; it is continued in place."""

    rows: Sequence[Sequence[int]]  # the ids of each text, with image_id in the place of each picture
    visual_tokens: Sequence[Sequence[Array]]  # of each row's pictures, in order, each [R, D]
    state: Any = None
    blind: bool = False  # these texts, and text written after them, attend to no picture


class FlamingoEngine(PhotoEncoder, StepModel[FlamingoInputs, PromptStateT], Protocol[PromptStateT]):
    @property
    def spec(self) -> FlamingoSpec: ...

    def read(self, features: Sequence[Array], places: Sequence[int]) -> Sequence[Array]:
        """The Perceiver Resampler: the visual tokens ``[R, D]`` of each picture; ``places``: its number in its prompt, from 1.

        Raises:
            InputError: a number above that of the picture embeddings.
        """
        ...

    def score(self, logits: Array, state: PromptStateT, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of each token of each text after one prompt; ``logits [1, V]`` and ``state``, not changed: of ``prefill``."""
        ...

    def maps(
        self, prompt: Sequence[int], features: Sequence[Array], ids: Sequence[int], blind_from: int | None = None
    ) -> Floats:
        """Where the model looked in each picture of a prompt while it wrote each of ``ids``: ``[T, N, h, w]``.

        ``blind_from``: the position from which on the text attended to no picture.
        """
        ...

    def gates(self) -> list[tuple[float, float]]:
        """tanh of the two gates, attention and feed-forward, of each gated block; 0 = closed."""
        ...


# BLIP-2


@dataclass(frozen=True)
class Blip2Spec:
    """``tokenizer`` None: there is no language model. ``instructed``: the Q-Former reads the question. ``matches``: it has the heads of the
    first stage. ``writes``: it can write captions (ITG). ``writer``: the default, ``lm`` or ``qformer``. ``words_once``: captions
    name each thing only once. ``answers``: settings in which the search of answers differs from ``search``. ``start_id``: what
    the decoder of a T5, which reads the prompt with its encoder, begins with. ``contrast_weight``: of the cosine, and of what a
    consensus adds to it, in the score that matching sorts by."""

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
    start_id: int | None = None
    contrast_weight: float = 1.0


class TextPieces(NamedTuple):
    """Word pieces for the Q-Former, as ``WordPieces.encode_arrays`` makes them."""

    input_ids: Array  # [K, T]
    mask: Array  # [K, T], True on text


class SoftPrompt(NamedTuple):
    """The soft prompt of one photo."""

    vectors: Array  # [Q, E]: the embeddings that the language model reads in its place
    cells: Array | None  # [Q, L]: the attention of each query to the cells; None unless requested


class MatchArrays(NamedTuple):
    """How well photos and texts fit, each ``[B, K]``; the fields of ``tasks.Match``."""

    itc_cosine: Floats
    itc_scaled: Floats
    itm_prob: Floats
    rerank: Floats


class Blip2Engine(PhotoEncoder, StepModel[Sequence[Sequence[Piece]], StateT], Protocol[StateT]):
    """A ``StepModel`` of the language model over prompts, each a sequence of pieces."""

    @property
    def spec(self) -> Blip2Spec: ...

    @property
    def fingerprint(self) -> str:
        """Identifies the weights behind the features for contrast."""
        ...

    def read(
        self, features: Sequence[Array], instructions: TextPieces | None, with_cells: bool = False
    ) -> Sequence[SoftPrompt]:
        """The Q-Former over B photos, each with its instruction, and the projection to the language model's width."""
        ...

    def score(self, logits: Array, state: StateT, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """As ``FlamingoEngine.score``; ``state`` must not be used afterwards."""
        ...

    def maps(self, pieces: Sequence[Piece], cells: Sequence[Array], ids: Sequence[int]) -> Floats:
        """Where the model looked in the photos of one prompt while it wrote each of ``ids``: ``[T, N, h, w]``.

        The language model's attention to the soft prompts times the attention of their queries, ``cells``: ``[Q, L]`` of each photo.
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

    def match(self, features: Sequence[Array], texts: TextPieces, itc_texts: Floats) -> tuple[Floats, MatchArrays]:
        """The photos' features for contrast, as ``itc_images``, and every photo with every text; ``itc_texts``: the result of
        ``itc_texts(texts)``."""
        ...

    def match_maps(self, features: Array, texts: TextPieces) -> Floats:
        """Where the model looked in a photo for each piece of one text, without [CLS] and [SEP], then where the best query of contrast
        looked: ``[T + 1, h, w]``."""
        ...
