"""Language models of others read into ours: GGUF files, and directories as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from triptych.checkpoints.format import LoadReport, load_tensors, read_torch_pickle
from triptych.checkpoints.gguf_models import LONG_ROPE, ROPE_FACTORS, open_gguf
from triptych.checkpoints.tables.language import LanguageModelConfig, config_from_hf, family_of, translate, with_head
from triptych.errors import InputError
from triptych.nn.configs import T5Config
from triptych.nn.decoder import Decoder
from triptych.nn.t5 import T5
from triptych.text.tokenizer import TextTokenizer


class LoadedLanguageModel(NamedTuple):
    model: Decoder | T5  # frozen, in eval
    tokenizer: TextTokenizer
    report: LoadReport  # their keys: mapped, ignored

    @property
    def decoder(self) -> Decoder:
        """See ``decoder_only``."""
        return decoder_only(self.model)


def decoder_only(model: Decoder | T5) -> Decoder:
    """A language model whose blocks can be run one by one, with Flamingo's between them or in training.

    Raises:
        InputError: it is a T5.
    """
    if not isinstance(model, Decoder):
        raise InputError(
            "this needs a decoder-only language model, and a T5 reads the prompt with an encoder: use it with BLIP-2"
        )
    return model


def load_language_model(path: Path | str) -> LoadedLanguageModel:
    """A language model from a GGUF file, or from a directory with config.json, tensors and tokenizer files.

    InputError: it cannot be read, or is of a kind that the decoder does not cover.
    """
    path = Path(path)
    return from_directory(path) if path.is_dir() else from_gguf(path)


class WithoutInitialWeights(TorchFunctionMode):
    """Modules made under it draw no initial weights (on the meta device that would load a symbolic algebra system)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(config: LanguageModelConfig, tensors: Mapping[str, Tensor], source: Path | str) -> Decoder | T5:
    """A frozen language model of exactly these tensors, which it takes over.

    InputError: a key is missing or left over, or a shape is wrong.
    """
    with torch.device("meta"), WithoutInitialWeights():
        model = T5(config) if isinstance(config, T5Config) else Decoder(config)
    try:
        model.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).partition(":")[2].split())
        raise InputError(f"{source} does not fit its own config: {why[:200]}") from None
    return model.eval().requires_grad_(False)


def from_directory(directory: Path) -> LoadedLanguageModel:
    """config.json, the files of tensors (safetensors, else ``pytorch_model*.bin``) and those of a tokenizer, as transformers saves them.

    Raises:
        InputError: a file is missing, cannot be read or does not fit; or the model is of a kind that the decoder does not cover.
    """
    settings = language_settings(directory)
    config, family = config_from_hf(settings), family_of(settings)
    theirs = with_prefix(read_weights(directory), family.table["embedding"][0])
    config = with_head(config, theirs)
    ours, report = translate(theirs, family.table, config, family.changes)
    tokenizer = TextTokenizer.from_directory(directory)
    ends = eos_ids(directory, settings, tokenizer)
    return LoadedLanguageModel(build(config, ours, directory), replace(tokenizer, eos_ids=ends), report)


def language_settings(directory: Path) -> dict[str, Any]:
    """The config of the language model in a directory's config.json; of a Gemma 3 with pictures, that of its text side."""
    if (directory / "adapter_config.json").exists():
        raise InputError(
            f"{directory} holds an adapter: merge it into its base model (peft: merge_and_unload) and save that"
        )
    settings = read_settings(directory / "config.json")
    if isinstance(quantized := settings.get("quantization_config"), dict):
        kind = quantized.get("quant_method", "unknown")
        raise InputError(
            f"{directory} is quantised ({kind}), which cannot be read: give the model in fp16, or as a GGUF file"
        )
    if settings.get("model_type") == "gemma3" and isinstance(settings.get("text_config"), dict):
        return {"eos_token_id": settings.get("eos_token_id"), **settings["text_config"], "model_type": "gemma3_text"}
    return settings


def read_settings(path: Path, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty where an optional one is not there."""
    try:
        content = {} if optional and not path.exists() else json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory, in fp32."""
    theirs: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        theirs |= load_tensors(file)
    for file in [] if theirs else sorted(directory.glob("pytorch_model*.bin")):
        tensors = {name: x for name, x in read_torch_pickle(file).items() if isinstance(x, Tensor)}
        theirs |= {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    if not theirs:
        raise InputError(f"{directory} holds neither safetensors files nor pytorch_model.bin")
    return theirs


def with_prefix(theirs: dict[str, Tensor], embedding: str) -> dict[str, Tensor]:
    """Keys as of the language model by itself, with its head: saved without it, or within another model, they begin otherwise.

    ``embedding``: the name of the word embeddings there.
    """
    prefix, dot, leaf = embedding.rpartition(".")
    stored = min(
        (key for key in theirs if f".{key}".endswith(f".{leaf}.weight")), key=len, default=f"{embedding}.weight"
    )
    begin = stored.removesuffix(f"{leaf}.weight")
    return {f"{prefix}{dot}{key.removeprefix(begin)}" if key.startswith(begin) else key: x for key, x in theirs.items()}


def eos_ids(directory: Path, settings: Mapping[str, Any], tokenizer: TextTokenizer) -> frozenset[int]:
    """The tokens that end a text: all that config.json, generation_config.json and the tokenizer name."""
    ends = set(tokenizer.eos_ids)
    for source in (settings, read_settings(directory / "generation_config.json", optional=True)):
        named = source.get("eos_token_id")
        ends |= {i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int) and i >= 0}
    return frozenset(ends)


def from_gguf(path: Path) -> LoadedLanguageModel:
    """A GGUF file of any quantisation.

    Raises:
        InputError: it cannot be read, or is of an architecture that the decoder does not cover.
    """
    file, architecture, config = open_gguf(path)
    theirs = {name: file.tensor(name) for name in file.entries if name not in (ROPE_FACTORS, *LONG_ROPE)}
    ours, report = translate(theirs, architecture.table, config, architecture.changes)
    return LoadedLanguageModel(build(config, ours, path), TextTokenizer.from_gguf(file.metadata), report)
