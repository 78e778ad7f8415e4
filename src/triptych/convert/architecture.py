"""Which class of transformers a folder holds, and why others cannot be opened as a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from triptych.checkpoints.store import TensorStore
from triptych.checkpoints.tables.language import FAMILIES
from triptych.checkpoints.tables.vision import VISION_TABLES
from triptych.errors import InputError

GENERATION, RETRIEVAL, INSTRUCT, IDEFICS_CLASS = (
    "Blip2ForConditionalGeneration",
    "Blip2ForImageTextRetrieval",
    "InstructBlipForConditionalGeneration",
    "IdeficsForVisionText2Text",
)
WITHOUT_LOSS = "Blip2Model"  # holds the tensors of the class for generation
WITHOUT_OUTPUT = {"InstructBlipModel": INSTRUCT, "IdeficsModel": IDEFICS_CLASS}
BARE = re.compile(
    r"(language_model\.)?(decoder\.)?layers\."
)  # keys of a language model that is in no class with an output layer
PART_CLASS = re.compile(r"(Blip2|InstructBlip)\w*(Model|WithProjection)|blip_2_\w+|instructblip_\w+")


def architecture(source: Path, config: Mapping[str, Any], state: TensorStore) -> str:
    """The class of transformers' that the config names; where it names none, the one that has these tensors.

    Raises:
        InputError: it is of another kind.
    """
    named, kind = config.get("architectures"), config.get("model_type")
    if isinstance(named, list) and named and named[0] != WITHOUT_LOSS:
        kind = named[0]
    elif kind == "instructblip":
        kind = INSTRUCT
    elif kind == "blip-2":
        kind = RETRIEVAL if "itm_head.weight" in state else GENERATION
    if kind not in (GENERATION, RETRIEVAL, INSTRUCT):
        raise InputError(f"{source} holds {kind}{why_not(str(kind), str(config.get('model_type')))}")
    return str(kind)


def why_not(kind: str, model_type: str) -> str:
    """What to do with a folder of another class."""
    if kind in WITHOUT_OUTPUT:
        return without_output(WITHOUT_OUTPUT[kind])
    if PART_CLASS.fullmatch(kind):
        return ", a part of a model: give the folder of the whole model"
    if model_type in FAMILIES:
        return ", a language model: `triptych train` and `triptych convert` take it with --lm"
    if model_type in VISION_TABLES:
        return ", an image encoder: `triptych train` takes it with --encoder"
    return f": {GENERATION}, {RETRIEVAL}, {INSTRUCT} and {IDEFICS_CLASS} can be read"


def without_output(whole: str) -> str:
    return f", without the layer that writes text: save the model as {whole}"


def check_output_layer(source: Path, names: Iterable[str], whole: str) -> None:
    """Raises InputError: the keys show that the language model is without its output layer. ``whole``: the class that has it."""
    if any(map(BARE.match, names)):
        raise InputError(f"{source} holds a model{without_output(whole)}")
