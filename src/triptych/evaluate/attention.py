"""The share of a word's attention that falls into the boxes of the thing it names.

For data with COCO's object boxes (``extra["objects"]``). Only words that name something with a box in the photo count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.data import Photo
from triptych.errors import InputError
from triptych.evaluate.progress import progress
from triptych.tasks import Captions

PEOPLE = (
    "person man woman boy girl child baby player rider skateboarder surfer snowboarder skier biker cyclist "
    "men women people boys girls children"
)
SYNONYMS = {
    **dict.fromkeys(PEOPLE.split(), "person"),
    "bike": "bicycle",
    "ball": "sports ball",
    "table": "dining table",
    "plane": "airplane",
    "phone": "cell phone",
}
FINE = 10  # subdivisions of a grid cell's side for measuring boxes
LEAST_SUM = 1e-12  # of a map: below, the word attends to nothing
SMALL = 0.25  # of a photo: boxes that cover less of it are measured apart, too


def inside(boxes: Sequence[Sequence[float]], size: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.float64]:
    """The share of each grid cell that the boxes cover, ``[h, w]``, 0 to 1. Boxes are x, y, width, height in a photo of ``size`` = W, H."""
    fine = np.zeros((grid[0] * FINE, grid[1] * FINE))
    scale = np.array([fine.shape[1] / size[0], fine.shape[0] / size[1]])
    for x, y, width, height in boxes:
        corners = np.rint(np.array([[x, y], [x + width, y + height]]) * scale).astype(int)
        (left, top), (right, bottom) = corners.clip(0)  # a box may begin outside of the photo
        fine[top:bottom, left:right] = 1
    return fine.reshape(grid[0], FINE, grid[1], FINE).mean((1, 3))


def named(word: str, categories: set[str]) -> str | None:
    """The category of a photo that the word names, singular or plural."""
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if (category := SYNONYMS.get(form, form)) in categories:
            return category
    return None


def attention_in_boxes(captioner: Captions, photos: Sequence[Photo]) -> dict[str, float | int | None]:
    """The mean share of the attention inside the boxes, and the share of the photo that they cover, which uniform attention would reach.

    ``small_*``: only words whose boxes cover less than a quarter of the photo, where attention to the middle does not help; None = there
    are none. A word that attends to no cell counts as 0.

    Raises:
        InputError: no photo has boxes, or no caption names a thing that has one.
    """
    photos = [photo for photo in photos if photo.extra.get("objects")]
    if not photos:
        raise InputError("no photo has object boxes (COCO's `objects`): use data with them, such as COCO's instances")
    rows = []
    for photo in progress(photos, "photos"):
        boxes: dict[str, list[Sequence[float]]] = {}
        for thing in photo.extra["objects"]:
            boxes.setdefault(thing["category"], []).append(thing["box"])
        image = photo.image()
        evidence = captioner.caption(image, explain=True).evidence
        for word, maps in zip(evidence.words, evidence.maps[:, 0], strict=True) if evidence else ():
            if category := named(word, set(boxes)):
                cells = inside(boxes[category], image.size, maps.shape)
                rows.append((float((maps * cells).sum() / max(maps.sum(), LEAST_SUM)), float(cells.mean())))
    if not rows:
        raise InputError("no caption names a thing that has a box")
    shares = np.array(rows)
    small = shares[shares[:, 1] < SMALL]

    def means(name: str, part: NDArray[np.float64]) -> dict[str, float | int | None]:
        attention, area = np.round(part.mean(0), 4).tolist() if len(part) else (None, None)
        return {f"{name}words": len(part), f"{name}attention": attention, f"{name}area": area}

    return {"photos": len(photos), **means("", shares), **means("small_", small)}
