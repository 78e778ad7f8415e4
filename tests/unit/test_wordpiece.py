"""Word pieces: transformers' ids, [DEC], padding, limits, and text that comes back readable."""

from pathlib import Path

import pytest

from triptych.errors import InputError
from triptych.text.wordpiece import SPECIAL_PIECES, WordPieces

PIECES = "a dog ' s two man runs long - haired ball . , ? ##ning run ##s un ##i ##code it isn t [ ] cls sep 日"
WORDS = (*SPECIAL_PIECES, *PIECES.split())
TEXTS = (
    "A dog's LONG-haired ball.",
    "Two men running, isn't it?",
    "Ünïcode 日 [SEP] \N{GRINNING FACE}",
    "",
    "  a\tdog\n ",
)


@pytest.fixture(scope="module")
def pieces() -> WordPieces:
    return WordPieces(WORDS)


def test_ids_equal_those_of_transformers(pieces: WordPieces, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    peer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)
    ids, mask = WordPieces.read(tmp_path / "vocab.txt").encode(TEXTS)
    for text, row, kept in zip(TEXTS, ids, mask, strict=True):
        if "[SEP]" not in text:  # here it is text; there it ends the text
            assert row[kept].tolist() == peer(text)["input_ids"]


def test_dec_is_added_once(pieces: WordPieces) -> None:
    assert (pieces.dec, len(pieces)) == (len(WORDS), len(WORDS) + 1)
    again = WordPieces(pieces.words)
    assert (again.dec, len(again)) == (pieces.dec, len(pieces))


def test_special_words_in_a_text_are_text(pieces: WordPieces) -> None:
    ids = pieces.encode(["[SEP] [CLS] a"])[0][0].tolist()
    assert ids.count(pieces.sep) == ids.count(pieces.cls) == 1


def test_padding_and_mask(pieces: WordPieces) -> None:
    ids, mask = pieces.encode(["a dog", "a", ""])
    assert ids.tolist()[1:] == [[pieces.cls, ids[0, 1], pieces.sep, pieces.pad], [pieces.cls, pieces.sep, 0, 0]]
    assert mask.sum(1).tolist() == [4, 3, 2]
    assert [tuple(x.shape) for x in pieces.encode([])] == [(0, 0), (0, 0)]


def test_long_texts_are_refused_or_cut(pieces: WordPieces) -> None:
    with pytest.raises(InputError, match="7 word pieces, 6 at most"):
        pieces.encode(["a", "a dog runs a dog"], max_tokens=6)
    ids, mask = pieces.encode(["a", "a dog runs a dog"], max_tokens=6, cut=True)
    whole = pieces.encode(["a dog runs a dog"])[0][0].tolist()
    assert ids[1].tolist() == [*whole[:5], pieces.sep]
    assert mask[1].all()


def test_decoded_text_reads_well(pieces: WordPieces) -> None:
    ids = pieces.encode(["A dog's long-haired ball, running. It isn't"])[0][0].tolist()
    assert pieces.decode([pieces.dec, *ids]) == "a dog's long-haired ball, running. it isn't"


@pytest.mark.parametrize("words", [WORDS[1:], (*WORDS, "dog")], ids=["no-pad", "twice"])
def test_other_vocabularies_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="vocabulary"):
        WordPieces(words)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        WordPieces.read(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        WordPieces.read(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("dog", True),
        ("강아지 dog", True),
        ("running", True),
        ("a", True),
        ("日", False),  # a letter of another script that the vocabulary happens to have
        ("강아지", False),
        ("\N{DOG FACE}", False),
        ("?!", False),
        ("runx", False),
    ],
)
def test_whether_a_text_has_a_known_word(pieces: WordPieces, text: str, known: bool) -> None:
    assert pieces.knows_a_word(text) == known


def test_text_that_is_not_unicode_is_refused(pieces: WordPieces) -> None:
    with pytest.raises(InputError, match="not Unicode"):
        pieces.encode(["a dog", "x \udcb0"])
