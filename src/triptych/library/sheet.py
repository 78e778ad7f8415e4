"""The photos that a search found, as one page: small photos in a grid, each with rank, score and path. It needs no network."""

from collections.abc import Sequence

from triptych.figures.page import STATIC_POLICY, environment, thumbnail
from triptych.io.images import load_image
from triptych.library.find import FoundPhoto

BOX = (360, 360)


def sheet_page(query: str, hits: Sequence[FoundPhoto]) -> str:
    """The page as text; write it as UTF-8 (``triptych.io.files.write_file``). All texts are escaped.

    Raises InputError where a photo has gone since it was found.
    """
    photos = [
        {
            "rank": photo.rank,
            "score": f"{photo.score:.3f}",
            "path": photo.path,
            "name": photo.path.replace("\\", "/").rpartition("/")[2],
            "thumbnail": thumbnail(load_image(photo.path), BOX),
        }
        for photo in hits
    ]
    return environment().get_template("sheet.html").render(title=query, policy=STATIC_POLICY, photos=photos)
