"""Where a model looked while it wrote each word, drawn over the photo.

A map is shown as light: the photo shines where the model looked and sinks into a dark blue veil where it did not. Light
reads the same for every kind of colour vision, keeps the photo's own colours where they matter, and survives a
black-and-white printer. Every word is scaled to its own maximum, and the scale starts at zero: an even map stays evenly
bright instead of having its noise stretched into a finding.
"""

from bisect import bisect_right
from collections.abc import Sequence
from io import BytesIO
from math import exp
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from triptych.evidence import Evidence, Floats, check_pictures
from triptych.figures.fonts import font
from triptych.io.files import write_file

VEIL = (32, 36, 90)  # indigo, not black: in a dark photo, too, the lit place stands out, by colour
VEIL_OPACITY = 0.82  # below 1, so that the photo stays recognisable everywhere
SPREAD = 0.7  # Gaussian width in grid cells; finer detail than a cell is nothing that the model said

WIDTH = 1400  # of a figure, pixels
MARGIN, GAP = 40, 18
TALLEST = 480  # of a photo in a figure
PAPER, INK, GREY = (255, 255, 255), (22, 25, 37), (96, 101, 118)
CAPTION_SIZE, WORD_SIZE, NOTE_SIZE = 46, 32, 21

LEGEND = (
    "The clearer the photo, the more the model looked there while it wrote the word.",
    "Each word has its own scale, from none to its own maximum: compare places, not words.",
    "Percentages: how likely the model found the word.",
)


def heat(cells: Floats, size: tuple[int, int]) -> Floats:
    """The map of grid cells [h, w] as a smooth picture [H, W] of `size` = (W, H), in the same units.

    Every pixel is a Gaussian-weighted mean of the cells (after SAT section 5.4: upsampling, then a Gaussian filter), so
    the result never leaves the range of the cells: no ringing, and no darkening at the border.
    """

    def weights(pixels: int, count: int) -> NDArray[np.float64]:
        where = (np.arange(pixels) + 0.5) * count / pixels - 0.5
        kernel = np.exp(-0.5 * ((where[:, None] - np.arange(count)) / SPREAD) ** 2)
        return np.asarray(kernel / kernel.sum(1, keepdims=True))

    (rows, columns), (width, height) = cells.shape, size
    return (weights(height, rows) @ cells @ weights(width, columns).T).astype(np.float32)


def light(maps: Floats, sizes: Sequence[tuple[int, int]]) -> list[Floats]:
    """One word's maps [N, h, w] as N pictures in 0..1 of the given sizes, 1 at the maximum over all N pictures."""
    pictures = [heat(cells, size) for cells, size in zip(maps, sizes, strict=True)]
    most = max(float(picture.max()) for picture in pictures)
    return [picture / most if most > 0 else picture for picture in pictures]


def veil_alpha(lit: Floats) -> Floats:
    """Opacity of the veil, 0..1, where the light is `lit`, 0..1."""
    return VEIL_OPACITY * (1 - lit)


def veiled(photo: Image.Image, lit: Floats) -> Image.Image:
    """The photo (RGB) under the veil; `lit` is [H, W] in 0..1."""
    alpha = veil_alpha(lit)[..., None]
    return Image.fromarray(np.rint(np.asarray(photo) * (1 - alpha) + np.array(VEIL) * alpha).astype(np.uint8))


def draw_words(images: Image.Image | Sequence[Image.Image], evidence: Evidence) -> Image.Image:
    """The figure of Show, Attend and Tell: the photo with its caption, then the photo once per word under its map.

    `images` are N RGB pictures of any size and shape (the grid covers a whole picture, so its map stretches with it).
    With several, each word has one picture below the other and all share one scale. Returns RGB, 1,400 pixels wide.
    """
    photos = [images] if isinstance(images, Image.Image) else list(images)
    check_pictures(len(photos), evidence)
    columns = columns_for(photos, len(evidence.words))
    cell = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    small = [fit_within(photo, (cell, TALLEST)) for photo in photos]
    head = draw_head(small, " ".join(evidence.words), columns, cell)
    label = round(1.6 * WORD_SIZE)
    block = label + sum(photo.height + GAP for photo in small) + GAP
    rows = -(-len(evidence.words) // columns)
    figure = Image.new("RGB", (WIDTH, head.height + rows * block + MARGIN - 2 * GAP * (rows > 0)), PAPER)
    figure.paste(head)
    draw = ImageDraw.Draw(figure)
    for index, (word, maps, logprob) in enumerate(zip(evidence.words, evidence.maps, evidence.logprobs, strict=True)):
        x, y = MARGIN + index % columns * (cell + GAP), head.height + index // columns * block
        chance = percent(logprob)
        room = cell - font(NOTE_SIZE).getlength(chance) - GAP / 2
        draw.text((x, y + WORD_SIZE), shorten_to_width(word, WORD_SIZE, room), INK, font(WORD_SIZE, word), anchor="ls")
        draw.text((x + cell, y + WORD_SIZE), chance, GREY, font(NOTE_SIZE), anchor="rs")
        y += label
        for photo, lit in zip(small, light(maps, [photo.size for photo in small]), strict=True):
            figure.paste(veiled(photo, lit), (x, y))
            y += photo.height + GAP
    return figure


def columns_for(photos: Sequence[Image.Image], words: int) -> int:
    """Columns that give cells of about the same area whatever the photos' shape, and a well filled last row."""
    aspect = float(np.mean([photo.width / photo.height for photo in photos]))
    columns = 3 if aspect > 2 else 4 if aspect > 1.2 else 5
    return columns if -words % columns <= -words % (columns + 1) else columns + 1


def draw_head(photos: Sequence[Image.Image], caption: str, columns: int, cell: int) -> Image.Image:
    """The photos, and the caption and the legend beside them, or below where there are too many photos."""
    beside = len(photos) <= columns - 2
    shelves = [photos[at : at + columns] for at in range(0, len(photos), columns)]
    heights = [max(photo.height for photo in shelf) for shelf in shelves]
    shelved = sum(heights) + GAP * (len(shelves) - 1)

    left = MARGIN + (len(photos) * (cell + GAP) + GAP if beside else 0)
    lines = wrap(caption, CAPTION_SIZE, WIDTH - MARGIN - left)
    notes = [line for text in LEGEND for line in wrap(text, NOTE_SIZE, WIDTH - MARGIN - left)]
    leading, note_leading = round(1.25 * CAPTION_SIZE), round(1.45 * NOTE_SIZE)
    legend_height = note_leading * (len(notes) + 1) + GAP // 2
    text_height = leading * len(lines) + 2 * GAP + legend_height
    height = max(shelved, text_height) if beside else shelved + 2 * GAP + text_height

    head = Image.new("RGB", (WIDTH, MARGIN + height + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(head)
    y = MARGIN
    for shelf, tallest in zip(shelves, heights, strict=True):
        for column, photo in enumerate(shelf):
            head.paste(photo, (MARGIN + column * (cell + GAP), y))
        y += tallest + GAP

    y = MARGIN if beside else y + GAP
    for line in lines:
        draw.text((left, y), line, INK, font(CAPTION_SIZE, caption))
        y += leading

    y = MARGIN + height - legend_height
    bar = legend_bar((WIDTH // 4, NOTE_SIZE))
    x = left + round(font(NOTE_SIZE).getlength("little")) + GAP // 2
    draw.text((left, y + NOTE_SIZE // 2), "little", GREY, font(NOTE_SIZE), anchor="lm")
    head.paste(bar, (x, y))
    draw.text((x + bar.width + GAP // 2, y + NOTE_SIZE // 2), "much", GREY, font(NOTE_SIZE), anchor="lm")
    y += note_leading + GAP // 2
    for line in notes:
        draw.text((left, y), line, GREY, font(NOTE_SIZE))
        y += note_leading
    return head


def legend_bar(size: tuple[int, int]) -> Image.Image:
    """The scale from none (left) to the word's maximum (right), as it looks over a light grey photo."""
    return veiled(
        Image.new("RGB", size, (236, 233, 226)), np.tile(np.linspace(0, 1, size[0], dtype=np.float32), (size[1], 1))
    )


def percent(logprob: float) -> str:
    return f"{100 * exp(min(0.0, logprob)):.0f} %"


def fit_within(photo: Image.Image, box: tuple[int, int]) -> Image.Image:
    """The photo at its own aspect ratio, as large as the box (w, h) allows."""
    scale = min(box[0] / photo.width, box[1] / photo.height)
    return photo.resize(
        (max(1, round(photo.width * scale)), max(1, round(photo.height * scale))), Image.Resampling.LANCZOS
    )


def one_line(text: str) -> str:
    """Text on one line that every renderer takes: runs of white space are one space, what cannot be encoded a mark."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())


def shorten_to_width(text: str, size: int, room: float) -> str:
    """The text, or its beginning with an ellipsis where it is wider than `room` pixels."""
    text = one_line(text)
    face = font(size, text)
    if face.getlength(text) <= room:
        return text
    kept = bisect_right(range(len(text)), room, key=lambda count: face.getlength(text[:count] + "…"))
    return text[: max(0, kept - 1)] + "…"


def wrap(text: str, size: int, room: float) -> list[str]:
    """The text as lines of at most `room` pixels; a word wider than that is shortened."""
    lines = [""]
    face = font(size, text)
    for word in one_line(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= room:
            lines[-1] = longer
        elif lines[-1]:
            lines.append(shorten_to_width(word, size, room))
        else:
            lines[-1] = shorten_to_width(word, size, room)
    return lines


def write_png(path: Path, image: Image.Image) -> None:
    """Write the picture as PNG, all or nothing."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=3)  # a tenth of the time of the smallest file, which is 8% smaller
    write_file(path, buffer.getvalue())
