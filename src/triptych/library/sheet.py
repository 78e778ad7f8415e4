"""Photos of a library as one page: small photos in a grid, each with a number, a label and its path. It needs no network."""

from collections.abc import Iterable
from dataclasses import dataclass

from triptych.figures.page import STATIC_POLICY, environment, thumbnail
from triptych.io.images import load_image

BOX = (360, 360)


@dataclass(frozen=True)
class SheetPhoto:
    """``number``: its rank, or that of its group."""

    path: str
    number: int
    label: str


def sheet_page(title: str, photos: Iterable[SheetPhoto]) -> str:
    """The page as text; write it as UTF-8 (``triptych.io.files.write_file``). All texts are escaped.

    Raises InputError where a photo has gone since it was found.
    """
    fields = [
        {
            "rank": photo.number,
            "score": photo.label,
            "path": photo.path,
            "name": photo.path.replace("\\", "/").rpartition("/")[2],
            "thumbnail": thumbnail(load_image(photo.path), BOX),
        }
        for photo in photos
    ]
    return environment().get_template("sheet.html").render(title=title, policy=STATIC_POLICY, photos=fields)
