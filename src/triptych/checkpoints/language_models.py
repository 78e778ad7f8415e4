"""Language models of others read into ours: GGUF files, and directories as transformers saves them (Llama-like models, OPT,
GPT-NeoX, MPT).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from triptych.checkpoints.format import LoadReport, load_tensors
from triptych.checkpoints.gguf import GGUF, read_gguf
from triptych.checkpoints.tables.language import (
    GGUF_LLAMA,
    TABLES,
    config_from_hf,
    half_split,
    translate,
)
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.text.tokenizer import TextTokenizer


class LoadedLanguageModel(NamedTuple):
    decoder: Decoder  # frozen, in eval
    tokenizer: TextTokenizer
    report: LoadReport  # their keys: mapped, ignored


def load_language_model(path: Path | str) -> LoadedLanguageModel:
    """A language model from a GGUF file, or from a directory with config.json, safetensors and tokenizer files.

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


def build(config: DecoderConfig, tensors: Mapping[str, Tensor], source: Path | str) -> Decoder:
    """A frozen decoder of exactly these tensors, which it takes over.

    InputError: a key is missing or left over, or a shape is wrong.
    """
    with torch.device("meta"), WithoutInitialWeights():
        decoder = Decoder(config)
    try:
        decoder.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).partition(":")[2].split())
        raise InputError(f"{source} does not fit its own config: {why[:200]}") from None
    return decoder.eval().requires_grad_(False)


def from_directory(directory: Path) -> LoadedLanguageModel:
    """config.json, one or several ``*.safetensors``, and the files of a tokenizer, as transformers saves them."""
    config_file = directory / "config.json"
    try:
        settings = json.loads(config_file.read_bytes())
        config = config_from_hf(settings)
    except OSError as error:
        raise InputError(f"cannot read {config_file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config_file}: {error}") from None
    theirs: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        theirs |= load_tensors(file)
    if not theirs:
        raise InputError(f"{directory} holds no safetensors file")
    table = TABLES[settings["model_type"]]
    prefix = table["embedding"][0].partition(".")[0] + "."
    if not any(key.startswith(prefix) for key in theirs):  # saved without its head
        theirs = {prefix + key: tensor for key, tensor in theirs.items()}
    ours, report = translate(theirs, table, config)
    return LoadedLanguageModel(build(config, ours, directory), TextTokenizer.from_directory(directory), report)


@dataclass(frozen=True)
class _Fields:
    """The metadata of one architecture in a GGUF file."""

    file: GGUF
    architecture: str

    def __call__(self, name: str, default: Any = None) -> Any:
        value = self.file.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise InputError(f"{self.file.path} does not say {self.architecture}.{name}")
        return value


def from_gguf(path: Path) -> LoadedLanguageModel:
    """A Llama-like model (the architectures ``llama``, which Mistral's files have too, and ``qwen2``) of any quantisation."""
    file = read_gguf(path)
    architecture = file.metadata.get("general.architecture")
    if architecture not in ("llama", "qwen2"):
        raise InputError(f"{path} holds a model of the architecture {architecture!r}: llama and qwen2 can be read")
    config = gguf_config(file, architecture)
    theirs = {name: file.tensor(name) for name in file.entries if name != "rope_freqs.weight"}
    if architecture == "llama":
        for layer in range(config.layers):
            for part, heads in (("q", config.heads), ("k", config.groups)):
                for kind in ("weight", "bias"):
                    if (name := f"blk.{layer}.attn_{part}.{kind}") in theirs:
                        theirs[name] = half_split(theirs[name], heads, name)
    ours, report = translate(theirs, GGUF_LLAMA, config)
    return LoadedLanguageModel(build(config, ours, path), TextTokenizer.from_gguf(file.metadata), report)


def gguf_config(file: GGUF, architecture: str) -> DecoderConfig:
    field = _Fields(file, architecture)
    heads, dim = field("attention.head_count"), field("embedding_length")
    try:
        width = field("attention.key_length", field("rope.dimension_count", dim // heads))
        if width != field("attention.value_length", width) or width != field("rope.dimension_count", width):
            raise InputError(f"{file.path}: heads of several widths, or turned in part, are not covered")
        if field("expert_count", 0) or field("rope.scaling.type", "none") not in ("none", "linear"):
            raise InputError(
                f"{file.path}: experts and rotary positions that are scaled otherwise than linearly are not covered"
            )
        factors = None
        if "rope_freqs.weight" in file.entries:
            factors = tuple(file.tensor("rope_freqs.weight").tolist())
        elif (factor := field("rope.scaling.factor", 1.0)) != 1.0:
            factors = (float(factor),) * (width // 2)
        return DecoderConfig(
            vocab_size=file.entries["token_embd.weight"].shape[0],
            dim=dim,
            layers=field("block_count"),
            heads=heads,
            ffn_dim=field("feed_forward_length"),
            kv_heads=field("attention.head_count_kv", heads),
            head_dim=width,
            max_positions=field("context_length"),
            rope_theta=field("rope.freq_base", 10000.0),
            rope_factors=factors,
            window=file.metadata.get(f"{architecture}.attention.sliding_window"),
            eps=field("attention.layer_norm_rms_epsilon"),
            qkv_bias="blk.0.attn_q.bias" in file.entries,
            tied="output.weight" not in file.entries,
        )
    except (TypeError, KeyError, ZeroDivisionError) as error:
        raise InputError(f"{file.path}: its metadata makes no sense ({error})") from None
