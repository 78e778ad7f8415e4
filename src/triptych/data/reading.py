"""Reading the photos of a long run, in which one damaged photo must not end the work."""

import logging
from collections.abc import Callable, Iterable, Iterator

from PIL import Image

from triptych.data.photos import Photo
from triptych.errors import InputError

LOG = logging.getLogger(__name__)


class PhotoReader:
    """Reads photos; one that cannot be read is named, left out and counted.

    ``damaged`` maps the name of each photo that was left out to the reason. One reader serves a whole run: a photo that
    it meets again is not named again.
    """

    def __init__(self, strict: bool = False, notice: Callable[[str], None] = LOG.warning) -> None:
        """``strict``: the first photo that cannot be read ends the run; ``notice`` gets one line about each otherwise."""
        self.strict, self.notice = strict, notice
        self.damaged: dict[str, str] = {}

    def image(self, photo: Photo) -> Image.Image | None:
        """The photo, upright RGB, or None where it cannot be read. Raises InputError if ``strict``."""
        try:
            return photo.image()
        except InputError as error:
            if self.strict:
                raise
            if photo.name not in self.damaged:
                self.damaged[photo.name] = str(error)
                self.notice(f"left out: {error}")
            return None

    def images(self, photos: Iterable[Photo]) -> Iterator[tuple[Photo, Image.Image]]:
        """The photos that can be read, each with its image, one after the other.

        Raises InputError, if ``strict`` at the first that cannot be read, else at the end where there are photos and
        none of them can be read.
        """
        tried = read = 0
        for photo in photos:
            tried += 1
            if (image := self.image(photo)) is not None:
                read += 1
                yield photo, image
        if tried and not read:
            raise InputError(f"none of the {tried} photos can be read; {next(iter(self.damaged.values()))}")

    def readable(self, photos: Iterable[Photo]) -> list[Photo]:
        """The photos that can be read: each is decoded once to find out. Raises as `images` does."""
        return [photo for photo, _ in self.images(photos)]

    def summary(self) -> str | None:
        """How many photos were left out, in one line for the end of the run; None where all could be read."""
        count = len(self.damaged)
        if not count:
            return None
        names = [*self.damaged][:3]
        more = f" and {count - 3} more" if count > 3 else ""
        return f"{count} {'photo was' if count == 1 else 'photos were'} left out as damaged: {', '.join(names)}{more}"
