"""The frozen parts that a checkpoint of Flamingo or BLIP-2 names, or holds: an image encoder and a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.checkpoints.format import LoadReport, sha256_of
from triptych.checkpoints.language_models import LanguageModel, build, load_language_model
from triptych.checkpoints.parts import PARTS, part_path
from triptych.errors import InputError
from triptych.generate import Search
from triptych.models.locate import part_fingerprint, published_encoder
from triptych.nn.cnn import ENCODERS, ConvNet
from triptych.nn.decoder import Decoder, DecoderConfig
from triptych.nn.linear import Linear
from triptych.nn.vit import ViT, ViTConfig
from triptych.text.tokenizer import TextTokenizer

FROZEN = ("vision_encoder.", "lm.")


def tensors_to_save(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint holds: the trained tensors, and those of frozen parts that come from no other place."""
    encoder, lm = config["encoder"], config["lm"]
    held = {"vision_encoder": encoder["part"] is None, "lm": lm is not None and "config" in lm}
    return {name: x for name, x in model.state_dict().items() if held.get(name.partition(".")[0], True)}


def frozen_entries(config: Mapping[str, Any], search: Search) -> dict[str, Any]:
    """What a checkpoint's config says of its frozen parts and of how text is made by default."""
    made = {name: getattr(search, name) for name in ("beams", "length_penalty", "max_new_tokens")}
    return {"encoder": config["encoder"], "lm": config["lm"], "search": made}


def in_bfloat16(lm: Decoder, config: Mapping[str, Any]) -> None:
    """The layers of a frozen language model as autocast would take them at every step; not of one that is saved with the checkpoint."""
    if "config" not in config["lm"]:
        for module in lm.modules():
            if isinstance(module, Linear):
                module.to(torch.bfloat16)


def find_language_model(name: str) -> LanguageModel:
    """A frozen language model: the name of an embedded part, a GGUF file, or a directory as transformers saves it."""
    return load_language_model(part_path(name) if name in {part.name for part in PARTS} else Path(name))


def language_model_fingerprint(name: str, lm: LanguageModel) -> str:
    return part_fingerprint(name) if name in {part.name for part in PARTS} else sha256_of(lm.decoder)


def frozen_lm(directory: Path, spec: Mapping[str, Any], tensors: dict[str, Tensor]) -> LanguageModel:
    """The language model that a checkpoint names, or holds: its tensors are taken out of ``tensors`` then."""
    if "config" in spec:
        own = {name.removeprefix("lm."): tensors.pop(name) for name in [*tensors] if name.startswith("lm.")}
        factors = spec["config"]["rope_factors"]
        config = DecoderConfig(**{**spec["config"], "rope_factors": factors and tuple(factors)})
        tokenizer = replace(TextTokenizer.from_directory(directory), eos_ids=frozenset(spec["eos"]))
        return LanguageModel(build(config, own, directory), tokenizer, LoadReport(tuple(own), (), ()))
    lm = find_language_model(spec["name"])
    if language_model_fingerprint(spec["name"], lm) != spec["sha256"]:
        raise InputError(f"{directory} was trained with another {spec['name']} than is there now")
    return lm


def frozen_encoder(directory: Path, spec: Mapping[str, Any]) -> ConvNet | ViT:
    if spec["name"] == ViT.name:
        return ViT(ViTConfig(**spec["config"]), tuple(spec["mean"]), tuple(spec["std"]))
    if spec["part"] is None:
        return ENCODERS[spec["name"]](None, spec["image_size"])
    if spec["part"] != part_fingerprint(spec["name"]):
        raise InputError(f"{directory} was trained over another {spec['name']} than this version fetches")
    return published_encoder(spec["name"], image_size=spec["image_size"])
