"""The folder that holds the photos of a JSON file."""

import os
from collections.abc import Sequence
from pathlib import Path

from triptych.data.photos import is_file


def photo_folder(source: Path, names: Sequence[str]) -> Path:
    """The folder to which ``names`` are relative, found by the first of them.

    It is the folder of ``source`` (the one above where that is called ``annotations``, in any case), or a sub-folder of it or of its
    ``images``; of several the one that is called as the file is (``train2014`` for ``captions_train2014.json``).
    """
    root = source.parent.parent if source.parent.name.lower() == "annotations" else source.parent
    folders = [root]
    for parent in (root, root / "images"):
        if parent.is_dir():
            with os.scandir(parent) as entries:
                subs = sorted(entry.name for entry in entries if entry.is_dir())
            folders += [parent / sub for sub in sorted(subs, key=lambda sub: sub not in source.stem)]
    return next((folder for folder in folders for name in names[:1] if is_file(folder / name)), root)
