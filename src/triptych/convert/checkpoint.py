"""Which layout a published checkpoint has, and what reads it."""

from __future__ import annotations

from pathlib import Path

import torch

from triptych.checkpoints.format import load_checkpoint, save_checkpoint
from triptych.checkpoints.hub import CHECKPOINT_FILE, local_path
from triptych.checkpoints.locate import BUNDLED, shipped_models
from triptych.checkpoints.place import LoadReport
from triptych.checkpoints.quantize import stored_as
from triptych.checkpoints.weight_files import WHOLE, check_keys, open_file, read_json
from triptych.convert.blip2 import convert_lavis, convert_transformers
from triptych.convert.embed import embed_language_model
from triptych.convert.flamingo import convert_openflamingo
from triptych.convert.idefics import convert_idefics
from triptych.convert.published import without_wrapper
from triptych.convert.tutorial import convert_tutorial
from triptych.errors import InputError

OF_TRANSFORMERS = ("vision_model.", "language_model.", "model.vision_model.", "model.language_model.")  # keys begin so


def convert_checkpoint(
    source: Path,
    target: Path,
    word_map: Path | None = None,
    half: bool = False,
    int8: bool = False,
    vision: Path | None = None,
    lm: Path | None = None,
    embed_lm: bool = False,
) -> LoadReport:
    """Write ``source`` as the checkpoint directory ``target``, in the dtypes that it has, in fp16 (``half``) or 8-bit integers (``int8``).

    Args:
        source: one of our checkpoint directories, a directory of transformers' (BLIP-2, InstructBLIP, IDEFICS), a BLIP-2 checkpoint of
            LAVIS (``.pth``), one of OpenFlamingo (``.pt``), or one of the Show, Attend and Tell tutorial (``BEST_checkpoint_*.pth.tar``);
            or a model on the Hugging Face hub (``owner/name``), as ``vision`` and ``lm`` may be.
        word_map: the ``WORDMAP_*.json`` of a tutorial checkpoint.
        embed_lm: put the language model that one of our checkpoints names inside.
        vision, lm: the frozen parts that a checkpoint of LAVIS or OpenFlamingo leaves out (``convert_lavis``, ``convert_openflamingo``).

    Returns:
        The keys of ``source`` that were used (mapped) and those left aside (ignored), and the keys of ours that it had not (missing).

    Raises:
        InputError: a file cannot be read, is of another layout, or holds more than tensors and modules.
    """
    if half and int8:
        raise InputError("--half and --int8: choose one width")
    dtype = torch.int8 if int8 else torch.float16 if half else None
    source = BUNDLED / source if str(source) in shipped_models() and not source.exists() else local_path(source)
    vision, lm = (None if part is None else local_path(part) for part in (vision, lm))
    if (source / CHECKPOINT_FILE).is_file() and not (source / "config.json").exists():
        source /= CHECKPOINT_FILE
    if source.is_dir():
        if word_map is not None:
            raise InputError(f"{source} has its own vocabulary: --word-map goes with a tutorial checkpoint")
        if vision or lm:
            raise InputError(f"{source} has its own frozen parts: --vision and --lm go with LAVIS or OpenFlamingo")
        return convert_folder(source, target, dtype, embed_lm)
    if not source.exists():
        raise InputError(f"cannot read {source}: no such file or directory")
    refuse_embedding(source, embed_lm)
    if word_map is not None:
        return convert_tutorial(source, target, word_map, dtype)
    return convert_file(source, target, dtype, vision, lm)


def convert_folder(source: Path, target: Path, dtype: torch.dtype | None, embed_lm: bool) -> LoadReport:
    """One of our checkpoint directories, or one of transformers'. Raises as ``convert_checkpoint``."""
    config = read_json(source / "config.json")
    if "format" in config:
        return (embed_language_model if embed_lm else rewrite)(source, target, dtype)
    refuse_embedding(source, embed_lm)
    if config.get("model_type") == "idefics":
        return convert_idefics(source, config, target, dtype)
    return convert_transformers(source, config, target, dtype)


def convert_file(
    source: Path, target: Path, dtype: torch.dtype | None, vision: Path | None, lm: Path | None
) -> LoadReport:
    """A checkpoint of LAVIS or OpenFlamingo. Raises as ``convert_checkpoint``."""
    try:
        state = open_file(source)
    except InputError as error:
        raise InputError(f"{error} (a checkpoint of the Show, Attend and Tell tutorial goes with --word-map)") from None
    check_keys(state, source)
    state = without_wrapper(without_wrapper(state, "perceiver.latents"), "query_tokens")
    if "perceiver.latents" in state:
        return convert_openflamingo(source, state, target, dtype, vision, lm)
    if any(key.startswith(OF_TRANSFORMERS) for key in state):
        file = WHOLE[source.suffix != ".safetensors"]
        raise InputError(
            f"{source} holds tensors of a model of transformers: put it as {file} into a folder with that model's config.json, tokenizer "
            "and processor, and name the folder"
        )
    if "query_tokens" in state:
        return convert_lavis(source, state, target, dtype, vision, lm)
    raise InputError(
        f"{source} is no checkpoint of LAVIS or OpenFlamingo: it has no query_tokens and no perceiver.latents"
    )


def refuse_embedding(source: Path, embed_lm: bool) -> None:
    if embed_lm:
        raise InputError(f"{source} becomes a checkpoint with its language model inside anyway: leave out --embed-lm")


def rewrite(source: Path, target: Path, dtype: torch.dtype | None) -> LoadReport:
    """One of our checkpoints once more, its floats in another width."""
    config, tensors = load_checkpoint(source)
    texts = {name: (source / name).read_bytes() for name in config.files if name != config.weights}
    cast = stored_as(tensors, dtype)
    save_checkpoint(target, config=config, tensors=cast, extra_files=texts)
    return LoadReport(tuple(tensors), (), ())
