"""The frozen parts that a checkpoint stores, or names: an image encoder and a language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.checkpoints.config import CheckpointConfig, EncoderSpec, LanguageModelSpec
from triptych.checkpoints.format import sha256_of
from triptych.checkpoints.hub import language_model_path
from triptych.checkpoints.language_models import LoadedLanguageModel, load_language_model, unfilled
from triptych.checkpoints.locate import weights_hash
from triptych.checkpoints.parts import PARTS, part_fingerprint
from triptych.checkpoints.place import unallocated
from triptych.checkpoints.quantize import int8_recipes
from triptych.checkpoints.store import DerivedStore, Recipe, TensorStore
from triptych.errors import InputError
from triptych.models.encoders import check_part, published_encoder
from triptych.nn.cnn import ENCODERS, ConvNet
from triptych.nn.decoder import Decoder
from triptych.nn.int8 import Int8Linear
from triptych.nn.linear import Linear
from triptych.nn.t5 import T5
from triptych.nn.vit import CLIP_MEAN, CLIP_STD, ViT
from triptych.text.tokenizer import TextTokenizer

FROZEN = ("vision_encoder.", "lm.")
ADDED = "lm.added."  # rows of tokens that were added to a frozen language model: they are trained, and saved


@contextmanager
def buildable(directory: Path) -> Iterator[None]:
    """Raises InputError: the sizes in the config are those of no model."""
    try:
        yield
    except (RuntimeError, ZeroDivisionError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{directory / 'config.json'}: no model has these sizes ({why})") from None


def frozen_prefixes(config: CheckpointConfig[Any]) -> tuple[str, ...]:
    """Of the tensors that a checkpoint does not hold because they come from elsewhere."""
    stored = config.encoder.stored, config.lm is not None and config.lm.stored
    return tuple(prefix for prefix, there in zip(FROZEN, stored, strict=True) if not there)


def tensors_to_save(model: nn.Module, config: CheckpointConfig[Any]) -> dict[str, Tensor]:
    """What a checkpoint holds: the trained tensors, and those of the frozen parts that are stored."""
    elsewhere = frozen_prefixes(config)
    tensors = model.state_dict()
    return {name: tensors[name] for name in tensors if name.startswith(ADDED) or not name.startswith(elsewhere)}


def in_bfloat16(lm: Decoder | T5, spec: LanguageModelSpec | None) -> None:
    """The layers of a frozen language model as autocast would take them at every step; not of one that is saved with the checkpoint."""
    if spec is None or not spec.stored:
        for module in lm.modules():
            if isinstance(module, Linear):
                module.to(torch.bfloat16)


def find_language_model(name: str, near: Path | None = None) -> LoadedLanguageModel:
    """A frozen language model; see ``language_model_path``."""
    return load_language_model(language_model_path(name, near))


def named_language_model(directory: Path, config: CheckpointConfig[Any]) -> LoadedLanguageModel:
    """The language model that the checkpoint in ``directory`` names.

    Raises:
        InputError: it is nowhere, cannot be read, or is another than in training.
    """
    assert config.lm is not None
    lm = find_language_model(config.lm.name, directory)
    if language_model_fingerprint(config.lm.name, lm) != config.lm.sha256:
        raise InputError(f"{directory} was trained with another {config.lm.name} than is there now")
    return lm


def language_model_fingerprint(name: str, lm: LoadedLanguageModel) -> str:
    return part_fingerprint(name) if name in {part.name for part in PARTS} else sha256_of(lm.model)


def language_model_spec(
    name: str, lm: LoadedLanguageModel, end_id: int | None = None, added_tokens: int = 0
) -> LanguageModelSpec:
    """What a checkpoint says of a language model that it does not hold: name or whole path, and fingerprint (without ``added_tokens``)."""
    path = Path(name).expanduser()
    own = path.exists() and name not in {part.name for part in PARTS}
    return LanguageModelSpec(
        str(path.resolve()) if own else name,
        stored=False,
        sha256=language_model_fingerprint(name, lm),
        end_id=end_id,
        added_tokens=added_tokens,
        file_sha256=weights_hash(path) if own and path.is_file() else None,
    )


def with_int8_layers(model: nn.Module, tensors: TensorStore) -> TensorStore:
    """Put ``Int8Linear`` in the place of a stored language model's linear layers; returns the tensors that fill the model then."""
    recipes = {name: Recipe((name,), lambda x: x[0]) for name in tensors}
    for name, layer in [*model.named_modules()]:
        if not (name.startswith("lm.") and isinstance(layer, Linear) and f"{name}.weight" in tensors):
            continue
        with unallocated():
            quantised = Int8Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantised)
        del recipes[f"{name}.weight"]
        recipes[f"{name}.codes"], recipes[f"{name}.scale"] = int8_recipes(f"{name}.weight")
    return DerivedStore(tensors, recipes)


class FrozenParts(NamedTuple):
    """The encoder and the language model of a checkpoint; those that it stores have no memory yet (``place.fill``)."""

    encoder: ConvNet | ViT
    lm: Decoder | T5 | None
    tokenizer: TextTokenizer | None


def frozen_parts(directory: Path, config: CheckpointConfig[Any], dtype: torch.dtype) -> FrozenParts:
    """The frozen parts that a checkpoint names, as ``dtype``, or stores.

    Raises:
        InputError: a part is unknown, cannot be read, or is another than in training.
    """
    dtype = torch.bfloat16 if dtype == torch.int8 else dtype
    encoder = frozen_encoder(directory, config.encoder)
    if not config.encoder.stored:
        encoder.to(dtype)
    if config.lm is None:
        return FrozenParts(encoder, None, None)
    if config.lm.stored:
        assert config.lm.network is not None and config.lm.eos is not None
        tokenizer = replace(TextTokenizer.from_directory(directory), eos_ids=frozenset(config.lm.eos))
        return FrozenParts(encoder, unfilled(config.lm.network), tokenizer)
    lm = named_language_model(directory, config)
    tokenizer = lm.tokenizer
    if config.lm.added_tokens:
        lm.decoder.add_tokens([None] * config.lm.added_tokens)
        tokenizer = replace(tokenizer, eos_ids=frozenset({config.lm.end_id or 0}))
    return FrozenParts(encoder, lm.model.to(dtype), tokenizer)


def frozen_encoder(directory: Path, spec: EncoderSpec) -> ConvNet | ViT:
    """The image encoder that a checkpoint names; without memory where the checkpoint stores it."""
    if spec.vit is not None:
        with unallocated():
            return ViT(spec.vit, spec.pixels(spec.vit.image_size, CLIP_MEAN, CLIP_STD))
    if spec.name not in ENCODERS:
        raise InputError(f"{directory}: encoder.name is {spec.name!r}, expected one of {', '.join(ENCODERS)}")
    if spec.stored:
        with unallocated():
            return ENCODERS[spec.name](spec.cut, spec.image_size)
    check_part(directory, spec)
    return published_encoder(spec.name, spec.cut, image_size=spec.image_size)
