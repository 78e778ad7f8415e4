"""What the readers of published checkpoints share: files of transformers', state dicts, and the frozen parts that ours hold then."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from triptych.checkpoints.config import EncoderSpec, LanguageModelSpec
from triptych.checkpoints.format import load_tensors, sha256_of
from triptych.errors import InputError
from triptych.nn.configs import Colour
from triptych.nn.decoder import Decoder
from triptych.nn.t5 import T5
from triptych.nn.vit import CLIP_MEAN, CLIP_STD, ViT
from triptych.text.tokenizer import TextTokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "added_tokens.json",
    "chat_template.jinja",
)


@contextmanager
def known_layout(source: Path, name: str) -> Iterator[None]:
    """Raises InputError: names or shapes are none of the layout's, whatever they led to."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{source} is not {name} of the known layout ({type(error).__name__}: {why})") from None


def state_dict_in(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The state dict in what a training saved, without the prefix of what ran it on several devices."""
    inner = (content.get(name) for name in ("model", "model_state_dict", "state_dict"))
    state = next((found for found in inner if isinstance(found, dict)), content)
    return {
        key.removeprefix("module."): tensor
        for key, tensor in state.items()
        if isinstance(key, str) and isinstance(tensor, Tensor)
    }


def layers(names: Iterable[str], prefix: str) -> int:
    return len({name.removeprefix(f"{prefix}.").partition(".")[0] for name in names if name.startswith(f"{prefix}.")})


def vit_sizes(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of an image encoder that its tensors show."""
    dim, _, patch, _ = found["vision_encoder.patches.weight"].shape
    return {
        "dim": dim,
        "layers": layers(found, "vision_encoder.blocks"),
        "mlp_dim": len(found["vision_encoder.blocks.0.up.weight"]),
        "patch_size": patch,
        "image_size": patch * math.isqrt(found["vision_encoder.positions"].shape[-2] - 1),
    }


def vit_spec(vit: ViT) -> EncoderSpec:
    """What the config of a checkpoint says of an image encoder that it stores."""
    return EncoderSpec(vit.name, stored=True, image_size=vit.image_size, vit=vit.config, mean=vit.mean, std=vit.std)


# Language models


class StoredLM(NamedTuple):
    """A language model that goes into the checkpoint."""

    model: Decoder | T5
    tokenizer: TextTokenizer
    spec: LanguageModelSpec
    files: Mapping[str, bytes]  # of the tokenizer


def stored_lm(name: str, model: Decoder | T5, directory: Path, eos: Any, end_id: int | None = None) -> StoredLM:
    """A language model with the tokenizer in ``directory``. ``eos``: the ids that end a text; None = those of the tokenizer."""
    tokenizer = TextTokenizer.from_directory(directory)
    ends = sorted(tokenizer.eos_ids) if eos is None else eos if isinstance(eos, list) else [eos]
    if not ends or not all(isinstance(i, int) and 0 <= i < model.config.vocab_size for i in ends):
        raise InputError(f"{directory}: its language model ends a text with {ends}, which are no ids of its vocabulary")
    files = {file: (directory / file).read_bytes() for file in TOKENIZER_FILES if (directory / file).exists()}
    network = {"t5" if isinstance(model, T5) else "decoder": model.config}
    spec = LanguageModelSpec(name, True, sha256_of(model), eos=tuple(ends), end_id=end_id, **network)  # type: ignore[arg-type]
    return StoredLM(model, replace(tokenizer, eos_ids=frozenset(ends)), spec, files)


# Files of transformers


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A config within a config, what it leaves out filled in."""
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"the {name} of config.json is not a JSON object")
    return {**defaults, **found}


def heads_and_epsilon(source: Path, part: Mapping[str, Any], *activations: str) -> tuple[int, float]:
    """Raises InputError: they make no sense, or the feed-forward is none with one of the ``activations``."""
    heads, eps = part["num_attention_heads"], part["layer_norm_eps"]
    if (activation := part.get("hidden_act", "gelu")) not in activations:
        raise InputError(
            f"{source}: a feed-forward with {activation!r} is not covered: only {' and '.join(activations)}"
        )
    if not isinstance(heads, int) or heads < 1 or not isinstance(eps, float) or not 0 < eps < 1:
        raise InputError(f"{source}: {heads!r} heads and an epsilon of {eps!r} make no sense")
    return heads, eps


def colours(directory: Path) -> tuple[Colour, Colour]:
    """The mean and the standard deviation that pixels are normalised by; CLIP's where no file of the processor is there."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = read_json(directory / name) if (directory / name).exists() else {}
        settings = section(settings, "image_processor", settings)
        if "image_mean" in settings:
            try:
                (r, g, b), (r_, g_, b_) = (map(float, settings[f"image_{x}"]) for x in ("mean", "std"))
                if all(map(math.isfinite, (r, g, b))) and min(r_, g_, b_) > 0:
                    return (r, g, b), (r_, g_, b_)
            except (KeyError, TypeError, ValueError):
                pass
            raise InputError(f"{directory / name}: its image_mean and image_std make no sense")
    return CLIP_MEAN, CLIP_STD


def read_safetensors(directory: Path) -> dict[str, Tensor]:
    """model.safetensors, or the files that its index names."""
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if not index.exists():
        if not whole.exists():
            raise InputError(f"{directory} has no model.safetensors: save it as safetensors; pickles are not read")
        return load_tensors(whole)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise InputError(f"{index} does not say which files beside it hold the tensors")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        state |= load_tensors(directory / name)
    if absent := sorted(places.keys() - state.keys()):
        raise InputError(f"{index} names {absent[0]}, which is in none of its files")
    return state
