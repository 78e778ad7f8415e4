"""Flamingo out again: a ``checkpoint.pt`` that OpenFlamingo loads (version 2). It leaves out both frozen models, as theirs do."""

from __future__ import annotations

from pathlib import Path

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.format import load_typed
from triptych.checkpoints.store import DerivedStore, TensorStore, renamed
from triptych.checkpoints.tables.flamingo import gated, resampler
from triptych.checkpoints.tables.language import FAMILIES
from triptych.convert.export_keys import complete, published_recipes, write_torch_file
from triptych.convert.flamingo import HEAD_WIDTH
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig
from triptych.systems.configs import FlamingoConfig
from triptych.text.prompt import END, IMAGE
from triptych.text.tokenizer import TextTokenizer


def export_openflamingo(directory: Path, target: Path) -> int:
    """Write the Flamingo in ``directory`` as ``target``, a file of OpenFlamingo's, in the dtypes that it is stored in.

    Returns:
        How many tensors were written.

    Raises:
        InputError: OpenFlamingo does not compute what this model does (the message says why), or ``target`` is there.
        TriptychError: the disk is full or not writable.
    """
    config, tensors = load_typed(directory, "flamingo", FlamingoConfig)
    lm = exportable(directory, config)
    return write_torch_file(target, openflamingo_tensors(tensors, config.model, lm))


def exportable(directory: Path, config: CheckpointConfig[FlamingoConfig]) -> DecoderConfig:
    """The language model's sizes. Raises InputError: OpenFlamingo cannot run the model."""
    lm, model = config.lm, config.model
    if config.encoder.vit is None:
        raise InputError(
            f"{directory} reads photos with the CNN {config.encoder.name}, and OpenFlamingo with a CLIP alone"
        )
    if lm is None or not lm.stored or lm.decoder is None:
        raise InputError(
            f"{directory} only names its language model: `triptych convert {directory} COPY --embed-lm` puts it inside"
        )
    if (
        model.style != "flamingo"
        or model.look != "last"
        or model.head_dim != HEAD_WIDTH
        or model.dim not in (None, model.image_dim)
    ):
        raise InputError(f"{directory} has resamplers or gated blocks of another shape than OpenFlamingo's")
    tokenizer = TextTokenizer.from_directory(directory)
    own = tokenizer.specials.get(END, len(tokenizer)), tokenizer.specials.get(IMAGE, len(tokenizer) + 1)
    if own != (lm.end_id, model.image_id):
        raise InputError(f"{directory} marks pictures and ends by other tokens than OpenFlamingo's {IMAGE} and {END}")
    return lm.decoder


def openflamingo_tensors(tensors: TensorStore, model: FlamingoConfig, lm: DecoderConfig) -> DerivedStore:
    """Under their names, a gated block by the number of the language model's block that it stands before."""
    family = family_name(lm)
    embedding = FAMILIES[family].table["embedding"][0]
    blocks = FAMILIES[family].table["blocks.*.attention_norm"][0].partition("*")[0]
    numbered = {}
    for name in tensors:
        part, number, rest = (*name.split(".", 2), "")[:3]
        new = f"xattn.{(int(number) + 1) * model.every - 1}.{rest}" if part == "xattn" else name
        numbered[new] = name
    own = renamed(tensors, numbered)
    table = {
        **resampler("perceiver", "resampler"),
        **gated(f"lang_encoder.{blocks}*.gated_cross_attn_layer", "xattn.*"),
        f"lang_encoder.{embedding}": "lm.embedding",
    }
    return complete(own, published_recipes(own, table, {}), "OpenFlamingo", ("lm.", "vision_encoder."))


def family_name(lm: DecoderConfig) -> str:
    """Which of the architectures that OpenFlamingo knows."""
    if lm.positions == "alibi":
        return "mosaic_gpt" if lm.qk_norm == "all" else "mpt"
    return "opt" if lm.positions == "learned" else "gpt_neox" if lm.parallel else "llama"
