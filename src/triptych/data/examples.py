"""Pictures with texts, as examples for a prompt: a folder with a text file beside each picture, or a data set with captions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.io.folders import is_picture_name
from triptych.io.images import load_image

MAX_EXAMPLE_BYTES = 1 << 16  # bytes of a text file
EXAMPLE_SIDE = 512  # pixels of an encoder's input at most

ExamplePair = tuple[Callable[[], Image.Image], str]


def read_examples(path: Path) -> list[ExamplePair]:
    """For each example a function that opens its picture, and its text, in order of names.

    ``photo.jpg.txt`` or ``photo.txt`` beside ``photo.jpg`` is its text. Where a folder has no such pair, ``path`` is opened as a data
    set, and its training photos (all, if it names no split) are taken with their first captions.

    Raises:
        InputError: there is no example, or a text cannot be read.
    """
    if path.is_dir():
        pictures = sorted(file for file in path.iterdir() if is_picture_name(file.name))
        beside = [(file, (file.with_name(f"{file.name}.txt"), file.with_suffix(".txt"))) for file in pictures]
        if pairs := [(file, text) for file, texts in beside if (text := next(filter(Path.is_file, texts), None))]:
            return [(partial(load_image, file, EXAMPLE_SIDE), read_line(text)) for file, text in pairs]
    photos = open_dataset(path)
    train = [photo for photo in photos if photo.split == "train"] or photos
    examples: list[ExamplePair] = [(photo.image, photo.captions[0].strip()) for photo in train if photo.captions]
    if not examples:
        raise InputError(f"{path}: no photo of this data set has a caption, so there is no example")
    return examples


def read_line(file: Path) -> str:
    """Raises InputError: the file is empty, too large or no UTF-8."""
    try:
        if file.stat().st_size > MAX_EXAMPLE_BYTES:
            raise InputError(f"{file}: too large for the text of an example ({MAX_EXAMPLE_BYTES >> 10} kB at most)")
        text = " ".join(file.read_text(encoding="utf-8").split())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    if not text:
        raise InputError(f"{file}: is empty; write what its picture shows, or delete it")
    return text
