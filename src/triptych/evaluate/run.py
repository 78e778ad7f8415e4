"""A model over a data set: generate, score, and say with which recipe. What ``triptych eval`` prints."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.evaluate.judgments import judgment_correlations
from triptych.io.files import write_file
from triptych.metrics.captions import score_captions
from triptych.tasks import Blip2Tasks, FlamingoTasks, load
from triptych.text.vocabulary import plain_caption

CHUNK = 32  # photos captioned together
JUDGMENTS = "expert-judgments.jsonl"


def caption_metrics(
    model: str,
    data: Path,
    split: str,
    limit: int | None,
    settings: Mapping[str, Any],
    output: Path | None = None,
    writer: str | None = None,
    shots: int = 0,
) -> dict[str, Any]:
    """Caption the photos of ``split`` and score them; ``output`` gets every caption with its references, as JSON lines.

    ``writer``: of BLIP-2's captions, ``lm`` or ``qformer`` (ITG); None = the model's own. ``shots``: photos of the training split with
    a caption each, the same for all, as examples in Flamingo's prompt.
    """
    if output is not None and not output.parent.is_dir():
        raise InputError(f"cannot write {output}: there is no folder {output.parent}; create it first")
    photos = [photo for photo in open_dataset(data, split) if photo.captions][:limit]
    if not photos:
        raise InputError(f"{data}: no photo of the split {split!r} has captions to compare with")
    captioner = load(model)
    if writer is not None:
        if not isinstance(captioner, Blip2Tasks):
            raise InputError(f"{model} has one way to write captions: --writer is for blip2")
        settings = {**settings, "writer": writer}
    if shots:
        if not isinstance(captioner, FlamingoTasks):
            raise InputError(f"{model} takes no examples in its prompt: --shots is for flamingo")
        if split == "train":
            raise InputError("--shots takes its examples from the training split: measure on another one")
        captioned = [photo for photo in open_dataset(data, "train") if photo.captions]
        if shots > len(captioned):
            raise InputError(f"{data} has {len(captioned)} captioned training photos: --shots {shots} are too many")
        given = random.Random(0).sample(captioned, shots)
        settings = {**settings, "shots": [(photo.image(), plain_caption(photo.captions[0])) for photo in given]}
    started = time.perf_counter()
    answers = []
    batches = range(0, len(photos), CHUNK)
    for first in track(batches, "captions", console=Console(stderr=True), disable=not Console(stderr=True).is_terminal):
        answers += captioner.caption([photo.image() for photo in photos[first : first + CHUNK]], **settings)
    seconds = time.perf_counter() - started
    candidates = {photo.id: answer.text for photo, answer in zip(photos, answers, strict=True)}
    references = {photo.id: photo.captions for photo in photos}
    if output is not None:
        lines = [
            json.dumps({"id": key, "caption": text, "references": references[key]}, ensure_ascii=False)
            for key, text in candidates.items()
        ]
        write_file(output, ("\n".join(lines) + "\n").encode())
    scores = score_captions(candidates, references)
    recipe = captioner.info()
    return {
        "model": model,
        "data": data.name,
        "split": split,
        "photos": len(photos),
        **{name: None if value is None else round(value, 4) for name, value in scores.items()},
        "seconds": round(seconds, 1),
        "shots": shots,
        "search": {**recipe["search"], **{name: value for name, value in settings.items() if name != "shots"}},
        "recipe": recipe["card"],
    }


def judgment_taus(data: Path) -> dict[str, Any]:
    """Kendall's tau-c of each metric with Flickr8k's expert judgments, which lie beside its photos."""
    path = (data if data.is_dir() else data.parent) / JUDGMENTS
    if not path.is_file():
        raise InputError(f"{path} is not there: the expert judgments come with Flickr8k")
    references = {photo.id: photo.captions for photo in open_dataset(data, "test")}
    taus = judgment_correlations(path, references)
    return {name: None if tau is None else round(tau, 4) for name, tau in taus.items()}
