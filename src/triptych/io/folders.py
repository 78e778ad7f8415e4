"""The pictures in folders, recognised by their suffixes."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from triptych.errors import InputError
from triptych.io.limits import printable

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tif", ".tiff", ".heic", ".heif", ".hif", ".heics", ".heifs"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".qoi", ".sgi", ".pcx", ".tga"),
)
"""The suffixes of pictures that can be read, in lower case."""

LOG = logging.getLogger(__name__)


def is_picture_name(name: str) -> bool:
    """Whether a file has the name of a picture: one of `SUFFIXES`, in lower or upper case, and not hidden."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122 (called often)


def find_images(sources: Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Return `sources` with each folder replaced by the pictures in it, sorted by name.

    Hidden files and subfolders are left out; other files are reported in the log. Files and URLs are not read here.
    Raises InputError: a folder cannot be listed or contains no picture.
    """
    images: list[str | os.PathLike[str]] = []
    for source in sources:
        if not os.path.isdir(source):  # noqa: PTH112 (a URL, or a name with a null byte, is no Path)
            images.append(source)
            continue
        try:
            names = sorted(path.name for path in Path(source).iterdir() if path.is_file())
        except OSError as error:
            raise InputError(f"{printable(source)}: cannot list this folder: {error.strerror}") from None
        inside = [name for name in names if is_picture_name(name)]
        others = [name for name in names if not is_picture_name(name) and not name.startswith(".")]
        if not inside:
            raise InputError(f"{printable(source)}: no pictures in this folder (known: {' '.join(SUFFIXES)})")
        if others:
            LOG.warning(left_out(source, others))
        images += [Path(source) / name for name in inside]
    return images


def left_out(folder: str | os.PathLike[str], names: Sequence[str]) -> str:
    """One line about the files of a folder that do not have names of pictures."""
    listed = ", ".join(printable(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{printable(folder)}: {files} left out, not pictures by name: {listed}"


def walk_folders(root: str, failed: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Each folder from ``root`` down with the sorted names of its files; hidden folders and files and a library's tables are left out.

    Links to folders are followed except those to a folder above them, and each folder is listed once. ``failed`` is called with the
    error of each folder that cannot be listed.
    """
    waiting, listed = [root], set[str]()
    while waiting:
        top = waiting.pop(0)
        if top != root and _leads_back(top, listed):
            continue
        for place, folders, names in os.walk(top, onerror=failed):
            listed.add(os.path.realpath(place))
            folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".lance"))
            paths = {name: os.path.join(place, name) for name in folders}  # noqa: PTH118
            links = [name for name in folders if os.path.islink(paths[name])]  # noqa: PTH114
            waiting += [paths[name] for name in links]  # after all real folders, so that those keep their own paths
            folders[:] = [n for n in folders if n not in links and os.path.realpath(paths[n]) not in listed]
            yield place, sorted(name for name in names if not name.startswith("."))


def _leads_back(link: str, listed: set[str]) -> bool:
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))  # noqa: PTH120
    return target in listed or os.path.join(place, "").startswith(os.path.join(target, ""))  # noqa: PTH118
