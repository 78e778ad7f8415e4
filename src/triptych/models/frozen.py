"""The frozen parts that a checkpoint stores, or names: an image encoder and a language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.checkpoints.config import CheckpointConfig, EncoderSpec, LanguageModelSpec
from triptych.checkpoints.format import LoadReport, sha256_of
from triptych.checkpoints.language_models import LoadedLanguageModel, build, load_language_model
from triptych.checkpoints.parts import PARTS, part_fingerprint, part_path
from triptych.errors import InputError
from triptych.models.encoders import check_part, published_encoder
from triptych.nn.cnn import ENCODERS, ConvNet
from triptych.nn.decoder import Decoder
from triptych.nn.linear import Linear
from triptych.nn.vit import CLIP_MEAN, CLIP_STD, ViT
from triptych.text.tokenizer import TextTokenizer

FROZEN = ("vision_encoder.", "lm.")


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
    return {name: x for name, x in model.state_dict().items() if not name.startswith(elsewhere)}


def in_bfloat16(lm: Decoder, spec: LanguageModelSpec | None) -> None:
    """The layers of a frozen language model as autocast would take them at every step; not of one that is saved with the checkpoint."""
    if spec is None or not spec.stored:
        for module in lm.modules():
            if isinstance(module, Linear):
                module.to(torch.bfloat16)


def find_language_model(name: str) -> LoadedLanguageModel:
    """A frozen language model: the name of an embedded part, a GGUF file, or a directory as transformers saves it."""
    return load_language_model(part_path(name) if name in {part.name for part in PARTS} else Path(name))


def language_model_fingerprint(name: str, lm: LoadedLanguageModel) -> str:
    return part_fingerprint(name) if name in {part.name for part in PARTS} else sha256_of(lm.model)


def frozen_lm(directory: Path, spec: LanguageModelSpec, tensors: dict[str, Tensor]) -> LoadedLanguageModel:
    """The language model that a checkpoint names, or holds: its tensors are taken out of ``tensors`` then."""
    if spec.stored:
        assert spec.network is not None and spec.eos is not None
        own = {name.removeprefix("lm."): tensors.pop(name) for name in [*tensors] if name.startswith("lm.")}
        tokenizer = replace(TextTokenizer.from_directory(directory), eos_ids=frozenset(spec.eos))
        return LoadedLanguageModel(build(spec.network, own, directory), tokenizer, LoadReport(tuple(own), (), ()))
    lm = find_language_model(spec.name)
    if language_model_fingerprint(spec.name, lm) != spec.sha256:
        raise InputError(f"{directory} was trained with another {spec.name} than is there now")
    return lm


def frozen_encoder(directory: Path, spec: EncoderSpec) -> ConvNet | ViT:
    """The image encoder that a checkpoint names; its weights are still to be read where the checkpoint holds them."""
    if spec.vit is not None:
        return ViT(spec.vit, spec.mean or CLIP_MEAN, spec.std or CLIP_STD)
    if spec.name not in ENCODERS:
        raise InputError(f"{directory}: encoder.name is {spec.name!r}, expected one of {', '.join(ENCODERS)}")
    if spec.stored:
        return ENCODERS[spec.name](spec.cut, spec.image_size)
    check_part(directory, spec)
    return published_encoder(spec.name, spec.cut, image_size=spec.image_size)
