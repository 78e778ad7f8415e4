"""Photos of a library as one page: small photos in a grid, each with a number, a label and its path. It needs no network."""

from collections.abc import Iterable
from dataclasses import dataclass

from triptych.errors import InputError, TriptychError
from triptych.figures.page import STATIC_POLICY, environment, thumbnail
from triptych.io.images import load_image
from triptych.library.matcher import Notice, unreadable_photos

BOX = (360, 360)


@dataclass(frozen=True)
class SheetPhoto:
    """``number``: its rank, or that of its group."""

    path: str
    number: int
    label: str


def sheet_page(title: str, photos: Iterable[SheetPhoto], notice: Notice) -> str:
    """The page as text; write it as UTF-8 (``triptych.io.files.write_file``). All texts are escaped.

    Photos that can no longer be read are left out, and ``notice`` is called once.
    """
    unreadable: list[TriptychError] = []
    fields = []
    for photo in photos:
        try:
            image = load_image(photo.path)
        except InputError as error:
            unreadable.append(error)
            continue
        name = photo.path.replace("\\", "/").rpartition("/")[2]
        small = thumbnail(image, BOX)
        fields.append(
            {"rank": photo.number, "score": photo.label, "path": photo.path, "name": name, "thumbnail": small}
        )
    if unreadable:
        notice(unreadable_photos(unreadable))
    return environment().get_template("sheet.html").render(title=title, policy=STATIC_POLICY, photos=fields)
