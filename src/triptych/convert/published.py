"""What the readers of published checkpoints share: files of transformers', state dicts, and the frozen parts that ours hold then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from triptych.checkpoints.config import LanguageModelSpec
from triptych.checkpoints.language_models import LanguageModelFiles, unfilled
from triptych.checkpoints.place import check_fit
from triptych.checkpoints.store import TensorStore, renamed
from triptych.checkpoints.weight_files import read_json
from triptych.errors import InputError
from triptych.io.pixels import PixelSpec, pixel_spec
from triptych.nn.configs import T5Config
from triptych.nn.decoder import Decoder
from triptych.nn.t5 import T5
from triptych.nn.vit import CLIP_MEAN, CLIP_STD
from triptych.text.tokenizer import TextTokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "added_tokens.json",
    "special_tokens_map.json",
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


def without_wrapper(state: TensorStore, name: str) -> TensorStore:
    """Keys without the prefix of a module around the model, which is what stands before ``name``, a key of its own."""
    begin = min((key for key in state if f".{key}".endswith(f".{name}")), key=len, default=name).removesuffix(name)
    return renamed(state, {key.removeprefix(begin): key for key in state}) if begin else state


def layers(names: Iterable[str], prefix: str) -> int:
    return len({name.removeprefix(f"{prefix}.").partition(".")[0] for name in names if name.startswith(f"{prefix}.")})


def vit_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of an image encoder that its tensors show."""
    dim, _, patch, _ = tensors["vision_encoder.patches.weight"].shape
    return {
        "dim": dim,
        "layers": layers(tensors, "vision_encoder.blocks"),
        "mlp_dim": len(tensors["vision_encoder.blocks.0.up.weight"]),
        "patch_size": patch,
        "image_size": patch * math.isqrt(tensors["vision_encoder.positions"].shape[-2] - 1),
    }


# Language models


class StoredLM(NamedTuple):
    """A language model that goes into the checkpoint; its tensors are still where they come from."""

    tensors: TensorStore  # under our names
    tokenizer: TextTokenizer
    spec: LanguageModelSpec
    files: Mapping[str, bytes]  # of the tokenizer

    @property
    def network(self) -> Decoder | T5:
        """Its module, without memory."""
        assert self.spec.network is not None
        return unfilled(self.spec.network)


def stored_lm(
    directory: Path, name: str, lm: LanguageModelFiles, eos: Iterable[int], end_id: int | None = None
) -> StoredLM:
    """A language model with the tokenizer in ``directory``.

    Args:
        eos: the ids that end a text.
        end_id: the one that ends an example of a few-shot prompt.

    Raises:
        InputError: the tensors do not fit the config, or an id is none of its vocabulary.
    """
    ends = tuple(sorted(eos))
    if not ends or not all(0 <= i < lm.config.vocab_size for i in ends):
        raise InputError(
            f"{directory}: its language model ends a text with {list(ends)}, which are no ids of its vocabulary"
        )
    t5, decoder = (lm.config, None) if isinstance(lm.config, T5Config) else (None, lm.config)
    spec = LanguageModelSpec(name, True, decoder=decoder, eos=ends, end_id=end_id, t5=t5)
    check_fit(unfilled(lm.config), lm.tensors.layouts(), directory)
    files = {file: (directory / file).read_bytes() for file in TOKENIZER_FILES if (directory / file).exists()}
    return StoredLM(lm.tensors, replace(lm.tokenizer, eos_ids=frozenset(ends)), spec, files)


# Files of transformers


def section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A config within a config, what it leaves out filled in."""
    inner = config.get(name) or {}
    if not isinstance(inner, dict):
        raise InputError(f"the {name} of config.json is not a JSON object")
    return {**defaults, **inner}


def heads_and_epsilon(source: Path, part: Mapping[str, Any], *activations: str) -> tuple[int, float]:
    """Raises InputError: they are not positive numbers, or the feed-forward is none with one of the ``activations``."""
    heads, eps = part["num_attention_heads"], part["layer_norm_eps"]
    if (activation := part.get("hidden_act", "gelu")) not in activations:
        raise InputError(
            f"{source}: a feed-forward with {activation!r} is not covered: only {' and '.join(activations)}"
        )
    if not isinstance(heads, int) or heads < 1 or not isinstance(eps, float) or not 0 < eps < 1:
        raise InputError(f"{source}: {heads!r} heads and an epsilon of {eps!r}: both must be positive")
    return heads, eps


def published_pixels(directory: Path, image_size: int, shortest_side: int | None = None) -> PixelSpec:
    """How the processor in a folder of transformers' brings photos to an encoder of ``image_size`` pixels.

    Without a file that says so photos have CLIP's colours, and their ``shortest_side`` (None = they are stretched).

    Raises:
        InputError: the settings are out of bounds, or ask for what is not done here.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = read_json(directory / name, optional=True)
        settings = section(settings, "image_processor", settings)
        if {"image_mean", "size", "crop_size", "do_resize"} & settings.keys():
            try:
                return pixel_spec(settings, image_size, CLIP_MEAN, CLIP_STD)
            except InputError as error:
                raise InputError(f"{directory / name}: {error}") from None
    return PixelSpec(image_size, CLIP_MEAN, CLIP_STD, shortest_side)
