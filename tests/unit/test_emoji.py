"""The data set of emoji: which names, which split, what is written; on a few names, without a font or a network."""

from pathlib import Path

import pytest
from PIL import Image

from triptych.data import open_dataset
from triptych.data.emoji import SIDE, font_drawer, head_of, main, read_names, split_of_name, write_drawings
from triptych.errors import InputError

LISTED = """\
# group: Animals & Nature
1F436                  ; fully-qualified     # 🐶 E0.6 dog face
1F415 200D 1F9BA       ; fully-qualified     # 🐕‍🦺 E12.0 service dog
1F996                  ; fully-qualified     # 🦖 E5.0 T-Rex
2618                   ; unqualified         # ☘ E1.0 shamrock
# group: People & Body
1F45E                  ; fully-qualified     # 👞 E0.6 man’s shoe
1F468 1F3FB            ; fully-qualified     # 👨🏻 E1.0 man: light skin tone
1F6B6 200D 27A1 FE0F   ; fully-qualified     # 🚶‍➡️ E15.1 person walking facing right
# group: Travel & Places
1F550                  ; fully-qualified     # 🕐 E0.6 one o’clock
# group: Symbols
2B06 FE0F              ; fully-qualified     # ⬆️ E0.6 up arrow
"""


def test_names_are_plain_and_of_what_can_be_seen() -> None:
    names = {"🐶": "dog face", "🐕\u200d🦺": "service dog", "🦖": "t-rex", "👞": "man's shoe"}
    assert read_names(LISTED) == names


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("dog", ["dog", "dog face", "guide dog"]),
        ("heart", ["red heart", "two hearts", "heart with arrow", "heart suit"]),
        ("firefighter", ["firefighter", "man firefighter", "woman firefighter"]),
        ("position", ["man in lotus position", "person in lotus position"]),
        ("person", ["man", "woman", "old man", "older person", "pregnant woman"]),
        ("grinning", ["grinning face", "grinning face with big eyes"]),
        ("joy", ["face with tears of joy"]),
        ("glass", ["glasses", "wine glass", "magnifying glass tilted left"]),
        ("thumb", ["thumbs up", "thumbs down"]),
        ("page", ["page facing up", "page with curl"]),
        ("car", ["police car", "bus", "oncoming taxi"]),
    ],
)
def test_near_duplicates_share_a_head_and_so_a_split(head: str, names: list[str]) -> None:
    assert [head_of(name) for name in names] == [head] * len(names)
    assert len({split_of_name(name) for name in names}) == 1


def test_the_splits_have_the_shares_meant() -> None:
    splits = [split_of_name(f"thing {number}x") for number in range(2000)]
    assert 0.12 < splits.count("test") / 2000 < 0.18
    assert 0.03 < splits.count("val") / 2000 < 0.07


def test_what_is_written_opens_as_a_data_set(tmp_path: Path) -> None:
    drawers = {
        "one": lambda emoji: Image.new("RGB", (SIDE, SIDE), "red"),
        "two": lambda emoji: None if emoji == "🦖" else Image.new("RGB", (SIDE, SIDE), "blue"),
    }
    counts = write_drawings(tmp_path / "out", read_names(LISTED), drawers)
    photos = open_dataset(tmp_path / "out")
    assert (counts["one"], counts["two"], len(photos)) == (4, 3, 7)
    assert photos[0].id == "one-1f436.png" and photos[0].captions == ("dog face",)
    assert photos[0].image().size == (SIDE, SIDE) and photos[0].extra == {"source": "one"}
    assert {photo.split for photo in photos if "dog" in photo.captions[0]} == {split_of_name("dog")}
    with pytest.raises(InputError, match="not an empty folder"):
        write_drawings(tmp_path / "out", {}, drawers)


def test_a_folder_that_cannot_be_made_or_a_font_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "font.ttf"
    bad.write_text("no font")
    with pytest.raises(InputError, match="no colour font"):
        font_drawer(bad, 109)
    with pytest.raises(InputError, match="cannot be written"):
        write_drawings(bad / "out", {}, {})
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "out"), "--noto", str(bad)])
    assert capsys.readouterr().err.count("\n") == 1
