"""A checkpoint that names its language model, once more with the language model inside: a folder that can be moved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from triptych.checkpoints.config import LanguageModelSpec
from triptych.checkpoints.format import load_checkpoint, save_checkpoint
from triptych.checkpoints.hub import language_model_path
from triptych.checkpoints.language_models import LoadedLanguageModel, build
from triptych.checkpoints.place import LoadReport
from triptych.checkpoints.quantize import stored_as
from triptych.checkpoints.store import JoinedStore, MemoryStore, renamed
from triptych.convert.published import TOKENIZER_FILES
from triptych.errors import InputError
from triptych.models.frozen import ADDED, named_language_model
from triptych.nn.configs import DecoderConfig, T5Config
from triptych.text.tokenizer import TextTokenizer


def embed_language_model(source: Path, target: Path, dtype: torch.dtype | None) -> LoadReport:
    """Write the checkpoint ``source`` as ``target``, the language model that it was trained over inside.

    Args:
        dtype: of all tensors; None = as they are, the language model's in fp32.

    Raises:
        InputError: it has no language model, or holds it already; the language model is not where it was, or is another.
    """
    config, tensors = load_checkpoint(source)
    if config.lm is None or config.lm.stored:
        what = "holds its language model already" if config.lm else "has no language model"
        raise InputError(f"{source} {what}: leave out --embed-lm")
    lm = with_own_rows(named_language_model(source, config), config.lm, tensors)
    network = lm.model.config
    spec = LanguageModelSpec(
        Path(config.lm.name).name,
        stored=True,
        decoder=network if isinstance(network, DecoderConfig) else None,
        t5=network if isinstance(network, T5Config) else None,
        eos=tuple(sorted(lm.tokenizer.eos_ids)),
        end_id=config.lm.end_id,
    )
    own = MemoryStore({f"lm.{name}": tensor for name, tensor in lm.model.state_dict().items()})
    trained = renamed(tensors, {name: name for name in tensors if not name.startswith(ADDED)})
    files = {name: (source / name).read_bytes() for name in config.files if name != config.weights}
    files |= tokenizer_files(language_model_path(config.lm.name, source), lm.tokenizer)
    save_checkpoint(
        target,
        config=msgspec.structs.replace(config, lm=spec),
        tensors=stored_as(JoinedStore([trained, own]), dtype),
        extra_files=files,
    )
    return LoadReport((*tensors, *own), (), ())


def with_own_rows(
    lm: LoadedLanguageModel, spec: LanguageModelSpec, tensors: Mapping[str, Tensor]
) -> LoadedLanguageModel:
    """The language model with the rows of its added tokens (``tensors`` of the checkpoint) behind its own, as if it had always had them."""
    if not spec.added_tokens:
        return lm
    config = replace(lm.decoder.config, vocab_size=lm.decoder.config.vocab_size + spec.added_tokens)
    rows = lm.model.state_dict()
    for name in ("embedding", "head"):
        if f"{ADDED}{name}" in tensors:
            rows[f"{name}.weight"] = torch.cat([rows[f"{name}.weight"], tensors[f"{ADDED}{name}"]])
    tokenizer = lm.tokenizer if spec.end_id is None else replace(lm.tokenizer, eos_ids=frozenset({spec.end_id}))
    return LoadedLanguageModel(build(config, rows, spec.name), tokenizer, lm.report)


def tokenizer_files(directory: Path, tokenizer: TextTokenizer) -> dict[str, bytes]:
    """Those of the language model's folder; of a GGUF file, the same tokenizer as transformers would save it."""
    if directory.is_dir():
        return {name: (directory / name).read_bytes() for name in TOKENIZER_FILES if (directory / name).exists()}
    names = {i: text for text, i in tokenizer.specials.items()}
    settings = {
        "bos_token": names.get(tokenizer.bos_id or 0) if tokenizer.bos_id is not None else None,
        "eos_token": names.get(min(tokenizer.eos_ids, default=-1)),
        "unk_token": names.get(tokenizer.unk_id) if tokenizer.unk_id is not None else None,
        "add_bos_token": tokenizer.add_bos,
        "chat_template": tokenizer.template,
    }
    kept = {name: value for name, value in settings.items() if value is not None}
    return {
        "tokenizer.json": tokenizer.tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(kept, indent=2).encode(),
    }
