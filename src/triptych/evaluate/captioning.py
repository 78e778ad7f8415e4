"""Captions of a data set's photos, and their metrics."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.progress import batches, progress
from triptych.io.images import ImageSource
from triptych.metrics.captions import score_captions
from triptych.tasks import Captions
from triptych.tasks.capabilities import Model
from triptych.tasks.examples import ExampleIndex
from triptych.text.vocabulary import plain_caption

CAPTIONED_TOGETHER = 32


def captions_by_id(captioner: Captions, photos: Sequence[Photo], settings: Mapping[str, Any]) -> dict[str, str]:
    """The model's caption of each photo, by the photo's id. ``settings``: arguments of ``Captions.caption``."""
    texts = {}
    for part in batches(photos, CAPTIONED_TOGETHER, "captions"):
        answers = captioner.caption([photo.image() for photo in part], **settings)
        texts.update({photo.id: answer.text for photo, answer in zip(part, answers, strict=True)})
    return texts


def captions_by_nearest(
    captioner: Captions, photos: Sequence[Photo], examples: ExampleIndex, count: int, settings: Mapping[str, Any]
) -> dict[str, str]:
    """As ``captions_by_id``, each photo after its ``count`` most similar examples."""
    texts = {}
    for photo in progress(photos, "captions"):
        image = photo.image()
        texts[photo.id] = captioner.caption(image, shots=examples.nearest(image, count), **settings).text
    return texts


def caption_metrics(
    texts: Mapping[str, str], photos: Sequence[Photo], *, meteor: bool = True
) -> dict[str, float | None]:
    """BLEU, METEOR (None if it is not computed), ROUGE-L and CIDEr-D of captions by photo id, rounded."""
    scores = score_captions(texts, {photo.id: photo.captions for photo in photos}, meteor=meteor)
    return {name: None if score is None else round(score, 4) for name, score in scores.items()}


def example_index(model: Model, train: Sequence[Photo]) -> ExampleIndex:
    """An index of all captioned training photos."""
    pairs = [(photo.image, plain_caption(photo.captions[0])) for photo in train if photo.captions]
    return ExampleIndex(model, pairs)


def caption_examples(train: Sequence[Photo], count: int) -> list[tuple[ImageSource, str]]:
    """Training photos with a caption each as examples for a prompt, drawn at random with a fixed seed.

    Raises:
        InputError: there are fewer than ``count``.
    """
    captioned = [photo for photo in train if photo.captions]
    if count > len(captioned):
        raise InputError(f"{count} examples, but only {len(captioned)} captioned training photos: ask for fewer")
    drawn = random.Random(0).sample(captioned, count)
    return [(photo.image(), plain_caption(photo.captions[0])) for photo in drawn]
