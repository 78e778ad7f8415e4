"""From whatever names a model to a checkpoint directory of ours: a name, a folder, a published file, a model on the hub.

What is published in another layout is converted once into the cache (``home() / "converted"``), under a name that changes with the files;
the conversion of earlier files at the same place is deleted then.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from triptych.checkpoints.cache import delete_superseded
from triptych.checkpoints.hub import CACHED, CHECKPOINT_FILE, MODEL_ID, cached_id, fetch_model, local_path, named_model
from triptych.checkpoints.locate import BUNDLED, refuse_adapter, shipped_models
from triptych.checkpoints.parts import home
from triptych.errors import InputError, TriptychError
from triptych.extras import importing

VERSION = 5  # of what conversion writes: another one converts anew
FILES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
PART_OF_FOLDER = re.compile(r"config\.json|(model|pytorch_model|triptych)\b.*\.(safetensors|bin|index\.json)")
OTHER_FILES = {
    ".gguf": "holds a language model alone: give it with --lm",
    ".onnx": "holds graphs without their tokenizer and settings: name the model that they were made of",
    ".zip": "is packed: unpack it first",
    ".gz": "is packed: unpack it first",
}
OPENAI_CLIP = "openai/clip-vit-large-patch14"  # of all published OpenFlamingos
FLAMINGO_LANGUAGE_MODELS = {  # by where a gated block lies in an OpenFlamingo, and its width; of those trained on instructions, too
    ("transformer.blocks", 2048): ("anas-awadalla/mpt-1b-redpajama-200b", "anas-awadalla/mpt-1b-redpajama-200b-dolly"),
    ("transformer.blocks", 4096): ("anas-awadalla/mpt-7b", "anas-awadalla/mpt-7b"),
    ("gpt_neox.layers", 2560): (
        "togethercomputer/RedPajama-INCITE-Base-3B-v1",
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
    ),
}
GATED = re.compile(r"lang_encoder\.(.+)\.\d+\.gated_cross_attn_layer\.attn\.norm\.weight")
LANGUAGE_MODELS = {  # by the projection in a LAVIS checkpoint, and its width
    ("opt_proj.weight", 2560): "facebook/opt-2.7b",
    ("opt_proj.weight", 4096): "facebook/opt-6.7b",
    ("t5_proj.weight", 2048): "google/flan-t5-xl",
    ("t5_proj.weight", 4096): "google/flan-t5-xxl",
    ("llm_proj.weight", 4096): "lmsys/vicuna-7b-v1.1",
    ("llm_proj.weight", 5120): "lmsys/vicuna-13b-v1.1",
}


def find_checkpoint(model: str | Path) -> Path:
    """The checkpoint directory of ``model``: the name of a shipped one, a directory of ours or of transformers', a file of LAVIS's,
    OpenFlamingo's or the tutorial's, a model on the Hugging Face hub (``owner/name``, ``owner/name@revision``).

    What needs conversion is converted once, which one line on stderr says.

    Raises:
        InputError: none of these, or it cannot be read.
        TriptychError: the cache cannot be written.
    """
    if str(model) in shipped_models():
        return BUNDLED / str(model)
    path = local_path(model)
    if path.is_dir():
        return from_folder(path, str(model))
    if path.is_file():
        if PART_OF_FOLDER.fullmatch(path.name) and (path.parent / "config.json").is_file():
            return from_folder(path.parent, str(model))
        if path.name.endswith(FILES):
            return converted(path, str(model))
        what = OTHER_FILES.get(
            path.suffix, f"is no checkpoint: name a directory, or a file that ends in {', '.join(FILES)}"
        )
        raise InputError(f"{path} {what}")
    raise InputError(
        f"unknown model {str(model)!r}: choose {', '.join(shipped_models())}, or name a checkpoint directory, a published checkpoint "
        "or a model on the Hugging Face hub (owner/name)"
    )


def find_folder(model: str | Path) -> Path:
    """``find_checkpoint``, but folders of transformers' and models on the hub are returned as they are, not converted."""
    folder = BUNDLED / str(model) if str(model) in shipped_models() else local_path(model)
    return folder if (folder / "config.json").exists() else find_checkpoint(model)


def from_folder(folder: Path, name: str) -> Path:
    """The folder itself if it is a checkpoint of ours, else what it is converted to."""
    refuse_adapter(folder)
    if not (folder / "config.json").exists():
        if (folder / CHECKPOINT_FILE).is_file():
            return converted(folder / CHECKPOINT_FILE, name)
        inner = next(iter(sorted(path.parent.name for path in folder.glob("*/config.json"))), None)
        hint = f"; {inner} within it has one: name that" if inner else ""
        raise InputError(
            f"{folder} has no config.json: it is neither a checkpoint of ours nor a model of transformers{hint}"
        )
    return folder if is_ours(folder) else converted(folder, name)


def is_ours(folder: Path) -> bool:
    """Whether config.json is one of ours; True for a damaged one, too: reading it then says what is wrong. Loads no torch."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(config, dict) or "format" in config


class FrozenFiles(NamedTuple):
    """What ``convert`` is given besides a published file."""

    word_map: Path | None = None
    vision: Path | None = None
    lm: Path | None = None


def converted(source: Path, name: str) -> Path:
    """The checkpoint that ``source`` becomes, in the cache; made at the first use."""
    folder, files = home() / "converted", fingerprint(source)
    if (known := next(folder.glob(f"*-{files}"), None)) is not None:
        return known
    target = folder / f"{named_place(source, name)}-{files}"
    with importing("torch", f"{name}, a published checkpoint,"):
        from triptych.convert.checkpoint import convert_checkpoint

    print(f"triptych: converting {name} once, into {target}", file=sys.stderr)
    beside = target.with_name(f"{target.name}.{os.getpid()}")  # two processes may convert at once
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        given = frozen_files(source, name) if source.is_file() else FrozenFiles()
        convert_checkpoint(source, beside, given.word_map, vision=given.vision, lm=given.lm)
        if not target.is_dir():
            beside.replace(target)
        if replaced := delete_superseded(target):
            print(f"triptych: deleted the conversion of its earlier files, {replaced[0].name}", file=sys.stderr)
    except OSError as error:
        raise TriptychError(
            f"cannot write {target}: {error.strerror or error}; TRIPTYCH_HOME names another folder"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def named_place(source: Path, name: str) -> str:
    """The name of a model, and a hash of where it lies: of its path, or of its name on the hub with the revision that was asked for."""
    hub, place = cached_id(source), str(source.resolve())
    if hub is not None and (match := MODEL_ID.fullmatch(named_model(name))):
        place = f"{hub}@{match['revision'] or 'main'}"
    elif hub is not None and CACHED.fullmatch(Path(name).name):
        place = f"{hub}@main"
    model = source.name if hub is None else hub.replace("/", "--")
    return f"{model}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def fingerprint(source: Path) -> str:
    """Changes with the files: their names, sizes and times."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    digest = hashlib.sha256(f"{VERSION} {source.resolve()}".encode())
    for path in files:
        stat = path.stat()  # of what a link of the hub's cache points to
        digest.update(f"{path.relative_to(source)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def frozen_files(source: Path, name: str = "") -> FrozenFiles:
    """The parts that a published file leaves out, where people have them: beside it, else on the hub.

    The tutorial's word map lies beside its checkpoint. LAVIS keeps its image encoder in ``eva_vit_g.pth``, which it downloads into torch's
    cache; the language model of its second stage is the published one. OpenFlamingo leaves out OpenAI's CLIP and its language model.

    Args:
        name: what a person called it; OpenFlamingo's models differ by it.
    """
    if source.name.endswith(".tar"):
        return FrozenFiles(word_map=word_map_beside(source))
    from triptych.checkpoints.weight_files import open_file

    state = open_file(source)
    if "perceiver.latents" in state:
        return flamingo_files(
            source, {key: state.layout(key).shape[-1] for key in state if state.layout(key).ndim}, name
        )
    if "query_tokens" not in state:
        return FrozenFiles()
    vision = None
    if not any(key.startswith("visual_encoder.") for key in state):
        torch_home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
        places = (source.parent / "eva_vit_g.pth", torch_home / "hub" / "checkpoints" / "eva_vit_g.pth")
        vision = next((path for path in places if path.is_file()), None)
    for (key, width), lm in LANGUAGE_MODELS.items():
        if key in state and len(state.layout(key)) == width:
            return FrozenFiles(vision=vision, lm=beside_or_on_hub(source, lm))
    return FrozenFiles(vision=vision)


def flamingo_files(source: Path, widths: Mapping[str, int], name: str) -> FrozenFiles:
    """What an OpenFlamingo leaves out. ``widths``: of its tensors. Version 1 does not show its language model."""
    vision = None if any(key.startswith("vision_encoder.") for key in widths) else beside_or_on_hub(source, OPENAI_CLIP)
    for key, width in widths.items():
        if (match := GATED.fullmatch(key)) and (match[1], width) in FLAMINGO_LANGUAGE_MODELS:
            base, instructed = FLAMINGO_LANGUAGE_MODELS[match[1], width]
            named = f"{name} {source}".lower()
            return FrozenFiles(vision=vision, lm=beside_or_on_hub(source, instructed if "instruct" in named else base))
    return FrozenFiles(vision=vision)


def beside_or_on_hub(source: Path, model: str) -> Path:
    """A folder of the model's name beside ``source``, else the model on the hub."""
    beside = source.parent / model.partition("/")[2]
    return beside if beside.is_dir() else fetch_model(model)


def word_map_beside(source: Path) -> Path:
    """Raises InputError: there is none, or several."""
    maps = sorted(source.parent.glob("WORDMAP_*.json"))
    if len(maps) != 1:
        problem = f"there are {len(maps)}: name one with `triptych convert --word-map`" if maps else "it is missing"
        raise InputError(f"{source} goes with the tutorial's WORDMAP_*.json in the same folder, and {problem}")
    return maps[0]
