"""``triptych tag``: keywords of photos."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.application import app
from triptych.cli.common import (
    DeviceOption,
    Images,
    Json,
    MatchingModel,
    PrecisionOption,
    complain,
    emit,
    escape_controls,
    exit_if_left_out,
    has_folder,
    pictures,
)
from triptych.cli.folders import FolderOptions, describe_folder, with_folder_options
from triptych.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image

    from triptych.folders.pipeline import Describe
    from triptych.tasks.tagging import Tag, Tagger


@app.command()
@with_folder_options("prefix", "suffix", "alt_text")
def tag(
    images: Images,
    vocabulary: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Words to choose from, one a line.", show_default="about 350 everyday nouns"),
    ] = None,
    at_least: Annotated[
        float, typer.Option(metavar="P", help="Only words that people would use with at least this probability.")
    ] = 0.3,
    most: Annotated[int, typer.Option(min=1, max=32, help="How many words a photo gets at most.")] = 10,
    model: MatchingModel = "blip2",
    *,
    options: FolderOptions,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """Find keywords for each photo, or each photo of a folder. They are the words of a vocabulary that fit."""
    from triptych.tasks.tagging import read_words

    options = replace(options, as_json=as_json, device=device, keywords=True)
    words = None if vocabulary is None else read_words(vocabulary)
    opener = partial(open_tagger, model, precision, device, words, at_least, most)
    if not options.given and not has_folder(images):
        tag_each(opener(), model, pictures(images), as_json)
        return
    settings: dict[str, Any] = {"model": model, "at_least": at_least, "most": most}
    if words is not None:
        settings["vocabulary"] = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    describe_folder(images, partial(open_tags, opener), settings, options)


def open_tagger(
    model: str,
    precision: str | None,
    device: str | None,
    words: Sequence[str] | None,
    at_least: float,
    most: int,
) -> Tagger:
    """Load the model with its vocabulary; words that it does not know are reported on stderr."""
    from triptych.tasks import load_matcher
    from triptych.tasks.tagging import Tagger

    tagger = Tagger(load_matcher(model, precision, device), words, at_least, most)
    if unknown := tagger.left_out:
        complain(InputError(f"left out {len(unknown)} words that the model does not know: {', '.join(unknown[:5])}"))
    return tagger


def open_tags(opener: Callable[[], Tagger]) -> Describe:
    """Load the model; the result tags photos, for ``describe_folder``."""
    from triptych.folders.pipeline import Description

    tagger = opener()

    def describe(photos: Sequence[Image]) -> Sequence[Description]:
        tags = [tags_by_word(of_photo) for of_photo in tagger(photos)]
        return [Description(", ".join(words), {}, words) for words in tags]

    return describe


def tag_each(tagger: Tagger, model: str, sources: list[str], as_json: bool) -> None:
    """Tag photos one by one; bad photos are reported and left out."""
    from triptych.io.images import load_image

    left_out = 0
    for source in sources:
        try:
            (tags,) = tagger([load_image(source)])
        except InputError as error:
            complain(error)
            left_out += 1
            continue
        words = tags_by_word(tags)
        text = f"{escape_controls(source)}: {', '.join(words)}" if len(sources) > 1 else ", ".join(words)
        emit({"image": source, "model": model, "tags": words}, as_json, text)
    exit_if_left_out(left_out)


def tags_by_word(tags: Sequence[Tag]) -> dict[str, float]:
    return {tag.word: round(tag.probability, 4) for tag in tags}
