"""Language models of others read into ours: GGUF files, and directories as transformers saves them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.checkpoints.gguf import GGUF
from triptych.checkpoints.gguf_models import LONG_ROPE, ROPE_FACTORS, open_gguf
from triptych.checkpoints.locate import refuse_adapter
from triptych.checkpoints.place import LoadReport, fill, unallocated
from triptych.checkpoints.store import TensorStore, renamed
from triptych.checkpoints.tables.language import LanguageModelConfig, config_from_hf, family_of, translated, with_head
from triptych.checkpoints.weight_files import check_settings, open_folder, read_json
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


class LanguageModelFiles(NamedTuple):
    """A language model whose tensors are still in its files."""

    config: LanguageModelConfig
    tensors: TensorStore  # under our names
    tokenizer: TextTokenizer
    report: LoadReport  # their keys: mapped, ignored


def load_language_model(path: Path | str) -> LoadedLanguageModel:
    """A language model from a GGUF file, or from a directory with config.json, tensors and tokenizer files.

    InputError: it cannot be read, or is of a kind that the decoder does not cover.
    """
    files = open_language_model(Path(path))
    return LoadedLanguageModel(build(files.config, files.tensors, path), files.tokenizer, files.report)


def open_language_model(path: Path) -> LanguageModelFiles:
    """The same without its tensors read. Errors as ``load_language_model``'s, but for those of a tensor."""
    return open_directory(path) if path.is_dir() else open_gguf_model(path)


def unfilled(config: LanguageModelConfig) -> Decoder | T5:
    """The module of a language model, without memory."""
    with unallocated():
        return T5(config) if isinstance(config, T5Config) else Decoder(config)


def build(config: LanguageModelConfig, tensors: Mapping[str, Tensor], source: Path | str) -> Decoder | T5:
    """A frozen language model of exactly these tensors, in fp32; they are read one after the other.

    InputError: a key is missing or left over, or a shape is wrong.
    """
    model = unfilled(config)
    fill(model, tensors, source=source)
    return model.eval().requires_grad_(False)


def open_directory(directory: Path) -> LanguageModelFiles:
    """config.json, the files of tensors (safetensors, else ``pytorch_model*.bin``) and those of a tokenizer, as transformers saves them.

    Raises:
        InputError: a file is missing, cannot be read or does not fit; or the model is of a kind that the decoder does not cover.
    """
    settings = language_settings(directory)
    config, family = config_from_hf(settings), family_of(settings)
    theirs = with_prefix(open_folder(directory), family.table["embedding"][0])
    config = with_head(config, theirs)
    ours, report = translated(theirs, family.table, config, family.changes)
    tokenizer = TextTokenizer.from_directory(directory)
    ends = eos_ids(directory, settings, tokenizer)
    return LanguageModelFiles(config, ours, replace(tokenizer, eos_ids=ends), report)


def language_settings(directory: Path) -> dict[str, Any]:
    """The config of the language model in a directory's config.json; of a Gemma 3 with pictures, that of its text side."""
    refuse_adapter(directory)
    settings = read_json(directory / "config.json")
    check_settings(directory, settings)
    if settings.get("model_type") == "gemma3" and isinstance(settings.get("text_config"), dict):
        return {"eos_token_id": settings.get("eos_token_id"), **settings["text_config"], "model_type": "gemma3_text"}
    return settings


def with_prefix(theirs: TensorStore, embedding: str) -> TensorStore:
    """Keys as of the language model by itself, with its head: saved without it, or within another model, they begin otherwise.

    ``embedding``: the name of the word embeddings there.
    """
    prefix, dot, leaf = embedding.rpartition(".")
    stored = min(
        (key for key in theirs if f".{key}".endswith(f".{leaf}.weight")), key=len, default=f"{embedding}.weight"
    )
    begin = stored.removesuffix(f"{leaf}.weight")
    outer = begin.removesuffix(f"{prefix}{dot}")  # what stands before the head, too
    own = {f"{prefix}{dot}{key.removeprefix(begin)}" if key.startswith(begin) else key: key for key in theirs}
    return renamed(theirs, {name.removeprefix(outer) if name == key else name: key for name, key in own.items()})


def eos_ids(directory: Path, settings: Mapping[str, Any], tokenizer: TextTokenizer) -> frozenset[int]:
    """The tokens that end a text: all that config.json, generation_config.json and the tokenizer name."""
    ends = set(tokenizer.eos_ids)
    for source in (settings, read_json(directory / "generation_config.json", optional=True)):
        named = source.get("eos_token_id")
        ends |= {i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int) and i >= 0}
    return frozenset(ends)


class GGUFStore(TensorStore):
    """The tensors of a GGUF file in fp32; ``without`` those of these names."""

    def __init__(self, file: GGUF, without: frozenset[str] = frozenset()) -> None:
        self.file = file
        self._names = {name: None for name in file.entries if name not in without}

    @property
    def names(self) -> Collection[str]:
        return self._names

    def __getitem__(self, name: str) -> Tensor:
        return self.file.tensor(name)

    def layout(self, name: str) -> Tensor:
        return torch.empty(self.file.entries[name].shape, device="meta")


def open_gguf_model(path: Path) -> LanguageModelFiles:
    """A GGUF file of any quantisation.

    Raises:
        InputError: it cannot be read, or is of an architecture that the decoder does not cover.
    """
    file, architecture, config = open_gguf(path)
    theirs = GGUFStore(file, frozenset((ROPE_FACTORS, *LONG_ROPE)))
    ours, report = translated(theirs, architecture.table, config, architecture.changes)
    return LanguageModelFiles(config, ours, TextTokenizer.from_gguf(file.metadata), report)
