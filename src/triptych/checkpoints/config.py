"""What ``config.json`` of a checkpoint says, typed: one ``CheckpointConfig`` for all systems.

This is the one module that reads the file's fields. Format 2 is written; format 1 is read and becomes format 2 (``upgrade``).

    system, model        which system, and its own config (sizes and variants)
    encoder, lm          the frozen parts: ``stored`` in this checkpoint, or named and identified by their sha256
    search, prompts      how text is made and asked for by default
    card                 where the weights come from, and their figures
    triptych, files      the version that wrote it, and the sha256 of every other file
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import msgspec

from triptych.errors import InputError
from triptych.generate import EarlyStopping, Search
from triptych.io.files import read_json_object
from triptych.io.pixels import Colour, PixelSpec, Resampling
from triptych.nn.configs import DecoderConfig, T5Config, ViTConfig
from triptych.text.prompt import DEFAULT_PROMPTS, Prompts

FORMAT = 2
READABLE = (1, 2)
MAX_CONFIG = 16 << 20
MAX_ADDED = 1024  # tokens
WEIGHTS = "triptych.safetensors"
M = TypeVar("M")
K = TypeVar("K")


class EncoderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The image encoder. ``stored``: the checkpoint holds its frozen layers; else ``sha256`` is of the embedded part's file.

    ``cut``: the number of frozen layers of a CNN (None = all); ``vit``: of a vision transformer; ``mean``, ``std``,
    ``shortest_side``, ``resample``: of its photos (``PixelSpec``).
    """

    name: str
    stored: bool
    sha256: str | None = None
    image_size: int | None = None  # in pixels; None = the encoder's own
    cut: int | None = None
    vit: ViTConfig | None = None
    mean: Colour | None = None
    std: Colour | None = None
    shortest_side: int | None = None
    resample: Resampling = "bicubic"

    def __post_init__(self) -> None:
        if not self.stored and self.sha256 is None:
            raise InputError("an encoder that is not stored is identified by its sha256, which is missing")

    def pixels(self, size: int, mean: Colour, std: Colour) -> PixelSpec:
        """How photos are brought to it; the arguments are its own, where the checkpoint names no others."""
        return PixelSpec(self.image_size or size, self.mean or mean, self.std or std, self.shortest_side, self.resample)


class LanguageModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The language model. ``stored``: the checkpoint holds it under ``lm.``, of the sizes ``decoder`` or ``t5``, and its tokenizer's files.

    ``eos``: the tokens that end a text (None = the tokenizer's); ``end_id``: the one that ends an example of a few-shot prompt.
    ``added_tokens``: how many tokens were added behind those of one that is not stored; the checkpoint holds their rows (``lm.added``).
    ``file_sha256``: of the file, where it is one (GGUF); ``sha256`` is of the tensors in fp32.
    """

    name: str
    stored: bool
    sha256: str | None = None
    decoder: DecoderConfig | None = None
    eos: tuple[int, ...] | None = None
    end_id: int | None = None
    t5: T5Config | None = None
    added_tokens: int = 0
    file_sha256: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.added_tokens <= MAX_ADDED or (self.stored and self.added_tokens):
            raise InputError(
                f"added_tokens is {self.added_tokens}, expected 0 to {MAX_ADDED}, and 0 where the language model is stored"
            )
        if self.stored and ((self.decoder is None) == (self.t5 is None) or not self.eos):
            raise InputError(
                "a language model that is stored needs the config of its decoder or of its t5, and its eos"
            )

    @property
    def network(self) -> DecoderConfig | T5Config | None:
        """What builds it, where it is stored."""
        return self.decoder or self.t5


class SearchSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How text is made by default: fields of ``generate.Search``. ``words_once``: captions name each thing once. ``top_k``,
    ``top_p``: count where a caller gives a temperature.

    ``answer_tokens``, ``answer_length_penalty``: of answers to questions, where they differ; such answers have no least length.
    """

    beams: int = 1
    length_penalty: float = 0.0
    max_new_tokens: int = 30
    words_once: bool = True
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    no_repeat_ngrams: int = 0
    refill: bool = False
    early_stopping: EarlyStopping = False
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    counts_prompt: bool = False
    top_k: int = 0
    top_p: float = 1.0
    answer_tokens: int | None = None
    answer_length_penalty: float | None = None

    @classmethod
    def of(cls, search: Search, words_once: bool = True) -> SearchSpec:
        shared = {field.name for field in fields(Search)} & {*cls.__struct_fields__}
        return cls(**{name: getattr(search, name) for name in shared}, words_once=words_once)

    def with_search(self, search: Search) -> SearchSpec:
        """The same with the fields of ``search``."""
        shared = {field.name for field in fields(Search)} & {*self.__struct_fields__}
        return msgspec.structs.replace(self, **{name: getattr(search, name) for name in shared})

    def answers(self) -> dict[str, Any]:
        """The settings in which the search of answers differs."""
        shortest = None if self.answer_tokens is None else 0
        settings = {
            "max_new_tokens": self.answer_tokens,
            "min_new_tokens": shortest,
            "length_penalty": self.answer_length_penalty,
        }
        return {name: value for name, value in settings.items() if value is not None}

    def search(self, eos: frozenset[int], banned: frozenset[int] = frozenset()) -> Search:
        """The search of answers and, without ``once``, of captions. Raises InputError: a value is out of bounds."""
        shared = {field.name for field in fields(Search)} & {*self.__struct_fields__}
        return Search(eos, banned=banned, **{name: getattr(self, name) for name in shared})


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model comes from and what it reaches; ``notes``: whatever else its maker wrote."""

    name: str | None = None
    licence: str | None = None
    recipe: str | list[str] | dict[str, Any] | None = None
    stages: list[str] | None = None
    data: str | None = None
    drawings_data: str | None = None
    photos: int | None = None
    drawings: int | None = None
    seed: int | None = None
    validation: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    notes: dict[str, Any] = {}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Card:
        """A card of these entries; those without a field of their own become notes. Raises InputError: one is of another type."""
        return decode_config(_card(entries), cls, "the card")

    def to_dict(self) -> dict[str, Any]:
        """The entries that say something, notes among them."""
        entries = msgspec.structs.asdict(self)
        return {name: value for name, value in (entries | entries.pop("notes")).items() if value is not None}


class CheckpointConfig(msgspec.Struct, Generic[M], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module's docstring. ``M``: the config of the system's module."""

    system: str
    model: M
    encoder: EncoderSpec
    lm: LanguageModelSpec | None = None
    search: SearchSpec = SearchSpec()
    prompts: Prompts = DEFAULT_PROMPTS
    card: Card = Card()
    triptych: str = "unknown"
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name in self.files:
            if Path(name).name != name:
                raise InputError(f"files names {name!r}, expected names of files beside config.json")

    def typed(self, kind: type[K], source: object) -> CheckpointConfig[K]:
        """The same with its ``model`` as a ``kind``. Raises InputError: a field is missing, unknown or out of bounds."""
        fields = msgspec.structs.asdict(self) | {"model": decode_config(self.model, kind, source, "model.")}
        return CheckpointConfig(**fields)

    @property
    def weights(self) -> str:
        """The name of the file with the tensors. Earlier checkpoints call it ``model.safetensors``, which transformers would open too."""
        return next((name for name in self.files if name.endswith(".safetensors")), WEIGHTS)

    def to_json(self) -> str:
        content = {"format": FORMAT, "model_type": f"triptych_{self.system}", **msgspec.to_builtins(self)}
        return json.dumps(content, indent=2) + "\n"


def read_config(path: Path) -> CheckpointConfig[dict[str, Any]]:
    """The ``config.json`` at ``path``, upgraded to the current format; ``model`` is still untyped (``CheckpointConfig.typed``).

    Raises:
        InputError: unreadable, of another format, or a field is missing, unknown or of another type.
    """
    raw = read_json_object(path, MAX_CONFIG)
    if "format" not in raw:
        raise InputError(f'{path} is not the config of a Triptych checkpoint (it has no "format")')
    if raw["format"] not in READABLE:
        writer = raw.get("triptych", "an unknown version")
        known = " and ".join(map(str, READABLE))
        raise InputError(
            f"{path} has format {raw['format']!r}, written by triptych {writer}; this version reads formats {known}"
        )
    if raw["format"] == 1:
        raw = upgrade(raw, path)
    fields = {name: value for name, value in raw.items() if name not in ("format", "model_type")}
    return decode_config(fields, CheckpointConfig[dict[str, Any]], path)


def upgrade(raw: Mapping[str, Any], source: object) -> dict[str, Any]:
    """A config of format 1 as format 2.

    Format 1 said that the encoder is stored by ``part: null``, and that the language model is by giving its ``config``.
    """
    new = dict(raw)
    try:
        encoder = dict(raw["encoder"])
        part, vit = encoder.pop("part"), encoder.pop("config", None)
        new["encoder"] = encoder | {"stored": part is None, "sha256": part, "vit": vit}
        if raw.get("lm") is not None:
            lm = dict(raw["lm"])
            decoder, end_id = lm.pop("config", None), new.pop("end_id", None)
            new["lm"] = lm | {"stored": decoder is not None, "decoder": decoder, "end_id": end_id}
        if "search" in raw:  # converted models, whose encoder is stored, write as they were published
            new["search"] = {"words_once": part is not None} | dict(raw["search"])
        new["card"] = _card(raw.get("card", {}))
    except KeyError as error:
        raise InputError(f"{source}: the field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: encoder, lm and card must be JSON objects ({error})") from None
    return new


def decode_config(raw: Any, kind: type[M], source: object, prefix: str = "") -> M:
    """Plain data as a typed value. ``prefix``: of the fields' names in messages.

    Raises:
        InputError: a field is missing, unknown, of another type or out of bounds; it is named with its value and what is expected.
    """
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: {_explain(str(error), raw, kind, prefix)}") from None
    except ArithmeticError as error:  # in a property of a config with impossible sizes
        raise InputError(f"{source}: no model has these sizes ({error})") from None
    if unknown := _unknown(raw, msgspec.to_builtins(value), prefix):
        raise InputError(f"{source}: {unknown} is not a field that this version knows")
    return value


def _explain(message: str, raw: Any, kind: Any, prefix: str) -> str:
    """msgspec's message with the field's name and value in front."""
    what, _, place = message.partition(" - at `$")
    path = re.findall(r"\w+", place)
    field = prefix + ".".join(path)
    if name := re.search(r"(missing required|unknown) field `(\w+)`", what):
        field = f"{prefix}{'.'.join([*path, name[2]])}"
        return f"{field} is missing" if name[1] != "unknown" else f"{field} is not a field that this version knows"
    for part in path:
        raw = raw[int(part) if isinstance(raw, list) else part]
    problem = json.dumps(raw, ensure_ascii=False, default=str)[:100]
    if expected := re.match(r"Expected `(.+?)`, got `.+?`$", what):
        return f"{field.rstrip('.') or 'it'} is {problem}, expected {expected[1]}"
    if what.startswith("Invalid enum value"):
        return f"{field} is {problem}, expected {' or '.join(map(repr, get_args(_type_at(kind, path))))}"
    return f"{field}: {what}" if field else what


def _type_at(kind: Any, path: list[str]) -> Any:
    """The type of the field at ``path``, without its None."""
    for name in path:
        kind = get_type_hints(kind)[name]
        kind = next((option for option in get_args(kind) if is_dataclass(option)), kind)
    return kind


def _unknown(raw: Any, known: Any, prefix: str) -> str | None:
    """The first field of ``raw`` that is not in what was made of it: dataclasses leave such fields out without a word."""
    if not isinstance(raw, dict) or not isinstance(known, dict):
        return None
    for name, value in raw.items():
        if name not in known and value is not None:
            return f"{prefix}{name}"
        if problem := _unknown(value, known.get(name), f"{prefix}{name}."):
            return problem
    return None


def _card(entries: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in entries.items() if name in Card.__struct_fields__}
    notes = {name: value for name, value in entries.items() if name not in Card.__struct_fields__}
    return known | {"notes": {**entries.get("notes", {}), **notes}}
