"""Fonts for figures: Pillow's own where it has the letters, else one of the system's that has them.

``TRIPTYCH_FONT`` names a font file to use instead.
"""

import logging
import os
import shutil
import subprocess
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from triptych.errors import InputError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
DEFAULT = ""  # the place of Pillow's own font in a list of font files
NO_GLYPH = "\uffff"  # no character, so every font draws its replacement glyph for it
PROBE_SIZE = 24  # pixels at which glyphs are compared
KNOWN_FILES = (  # where fontconfig is absent: macOS, Windows, Debian, Fedora, Arch
    "/System/Library/Fonts/Supplemental/Arial Unicode.ttf",
    "/System/Library/Fonts/AppleSDGothicNeo.ttc",
    "C:/Windows/Fonts/malgun.ttf",
    "C:/Windows/Fonts/msyh.ttc",
    "C:/Windows/Fonts/Nirmala.ttc",
    "C:/Windows/Fonts/segoeui.ttf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
)

log = logging.getLogger(__name__)


def font(size: int, text: str = "") -> Font:
    """A font of ``size`` pixels that has the letters of ``text``.

    Where no font has them all, the one that lacks the fewest; the letters it lacks are logged once, as one warning.

    Raises:
        InputError: ``TRIPTYCH_FONT`` names no font file.
    """
    return open_font(font_file(letters_of(text), os.environ.get("TRIPTYCH_FONT", "")), size)


@lru_cache(maxsize=256)
def open_font(file: str, size: int) -> Font:
    if file == DEFAULT:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        raise InputError(f"{file} is not a font file that can be read: set TRIPTYCH_FONT to a .ttf or .otf") from None


def letters_of(text: str) -> str:
    """The distinct visible characters, sorted: no white space, no control or format characters (joiners)."""
    return "".join(sorted({c for c in text if not c.isspace() and unicodedata.category(c)[0] != "C"}))


@lru_cache(maxsize=256)
def font_file(letters: str, chosen: str) -> str:
    """The file of the font to write ``letters`` with; ``chosen`` is preferred, then Pillow's own, then the system's."""
    fewest, best = letters, chosen or DEFAULT
    for file in [*([chosen] if chosen else []), DEFAULT, *system_files(letters)]:
        missing = missing_letters(file, letters)
        if not missing:
            return file
        if len(missing) < len(fewest):
            fewest, best = missing, file
    log.warning(
        "no font on this machine has %r: set TRIPTYCH_FONT to a font file that has, or write .html instead of .png",
        fewest[:20],
    )
    return best


def missing_letters(file: str, letters: str) -> str:
    """The letters for which the font draws its replacement glyph."""
    face = open_font(file, PROBE_SIZE)
    replacement = bytes(face.getmask(NO_GLYPH))
    return "".join(letter for letter in letters if bytes(face.getmask(letter)) == replacement)


def system_files(letters: str) -> list[str]:
    """Font files of this machine that may have the letters: fontconfig's choice, then known places."""
    files = []
    if program := shutil.which("fc-match"):
        codes = " ".join(f"{ord(letter):x}" for letter in letters[:200])
        command = [program, "--format=%{file}", f"sans-serif:charset={codes}"]
        files.append(subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip())
    return [file for file in dict.fromkeys([*files, *KNOWN_FILES]) if file and Path(file).is_file()]
