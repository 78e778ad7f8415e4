"""A model on the Hugging Face hub: its files and a model card, in one commit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.hub import is_model_id
from triptych.checkpoints.locate import load_config
from triptych.convert.export import export_checkpoint
from triptych.errors import InputError, TriptychError

PUSHED_FORMATS = ("triptych", "hf")
TITLES = {"sat": "Show, Attend and Tell", "flamingo": "Flamingo", "blip2": "BLIP-2"}
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "bsd-3-clause", "openrail", "llama2")
HUB_TAGS = {
    "sat": ["image-captioning"],
    "flamingo": ["image-captioning", "few-shot"],
    "blip2": ["image-captioning", "visual-question-answering"],
}


def push(directory: Path, name: str, form: str = "triptych", private: bool = False, bases: Sequence[str] = ()) -> str:
    """Upload the checkpoint in ``directory`` as ``name`` (owner/name), in our format or as a folder of transformers (hf).

    Args:
        bases: the models on the hub that it was made of; beside them the language model, where its name is one of the hub's.

    Returns:
        The address of the commit.

    Raises:
        InputError: ``name`` is no name of a model, the format is unknown or cannot hold the model, or nobody is logged in.
        TriptychError: the hub does not answer, or refuses the upload.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not is_model_id(name) or "@" in name:
        raise InputError(f"{name!r} is no name of a model on the hub: expected OWNER/NAME")
    if form not in PUSHED_FORMATS:
        raise InputError(f"unknown format {form!r}: expected {' or '.join(PUSHED_FORMATS)}")
    config = load_config(directory)
    with tempfile.TemporaryDirectory() as scratch:
        folder = directory
        if form == "hf":
            folder = Path(scratch) / "hf"
            export_checkpoint(directory, folder, "hf")
        card = model_card(config, name, form, bases)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        added = [huggingface_hub.CommitOperationAdd(there, str(path)) for there, path in files.items()]
        added.append(huggingface_hub.CommitOperationAdd("README.md", card.encode()))
        api = huggingface_hub.HfApi()
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.create_commit(
                name, added, commit_message=f"{TITLES.get(config.system, config.system)} by Triptych"
            )
        except LocalTokenNotFoundError:
            raise InputError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN") from None
        except (HfHubHTTPError, OSError) as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TriptychError(f"the hub did not take {name}: {why}") from None
    return str(commit.commit_url)


def model_card(config: CheckpointConfig[Any], name: str, form: str, bases: Sequence[str] = ()) -> str:
    """A README.md with front matter: licence, base models, task; what the model is, how it is used, its figures."""
    card, title = config.card, TITLES.get(config.system, config.system)
    own = [config.lm.name] if config.lm and is_model_id(config.lm.name) else []
    front: dict[str, Any] = {
        "license": licence_id(card.licence),
        "license_name": card.licence if licence_id(card.licence) == "other" else None,
        "base_model": list(dict.fromkeys([*bases, *own])) or None,
        "library_name": "transformers" if form == "hf" else "triptych",
        "pipeline_tag": "image-to-text",
        "tags": [config.system, *HUB_TAGS.get(config.system, [])],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None), "---", ""]
    lines += [f"# {name.partition('/')[2]}", "", f"{title}, an image captioning model by Triptych.", ""]
    for label, value in (("Made by", card.recipe), ("Data", card.data), ("Licence", card.licence)):
        if isinstance(value, str):
            lines += [f"- {label}: {value}"]
    lines += ["", "```", f"triptych caption photo.jpg --model {name}", "```"]
    for label, figures in (("validation", card.validation), ("test", card.test)):
        if rows := list(figures_of(figures or {})):
            lines += ["", f"| {label} | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    return "\n".join(lines) + "\n"


def licence_id(licence: str | None) -> str:
    """The hub's name of a licence; ``other`` where it has none, ``unknown`` where the card says nothing."""
    if licence is None:
        return "unknown"
    plain = licence.strip().lower().replace(" ", "-")
    return plain if plain in LICENCES else "other"


def figures_of(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers of nested tables with their names."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from figures_of(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
