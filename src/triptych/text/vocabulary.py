"""Whole words as the vocabulary of Show, Attend and Tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import regex

from triptych.errors import InputError
from triptych.io.files import read_json_object
from triptych.text.articles import ENGLISH_ARTICLES, with_right_articles
from triptych.text.letters import LETTER, LETTER_OR_DIGIT, compose

PAD, BOS, EOS, UNK = range(4)
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")

WORD = regex.compile(rf"{LETTER_OR_DIGIT}+(?:-{LETTER_OR_DIGIT}+)*|'{LETTER}+")


FUNCTION_WORDS = frozenset(Path(__file__).with_name("function_words.txt").read_text("utf-8").split())  # English
SAME_THINGS = tuple(
    frozenset(group.split())
    for group in (
        "bicycle bike",
        "motorcycle motorbike bike",
        "plane airplane aeroplane",
        "football soccer",
        "couch sofa",
        "television tv",
    )
)


def same_things(word: str) -> frozenset[str]:
    """The words that would name a second time what ``word`` names: itself, its synonyms, and their plurals; a plural leaves the singular,
    as in "two dogs play with a white dog". None for a function word."""
    if word in FUNCTION_WORDS:
        return frozenset()
    forms = number_forms(word)
    names = {word}
    for group in SAME_THINGS:
        if word in group:
            names |= group
        elif group & forms:
            names |= {f"{name}s" for name in group}
    return frozenset(f"{name}{ending}" for name in names for ending in ("", "s", "es")) - FUNCTION_WORDS


def number_forms(word: str) -> frozenset[str]:
    """A word, its singular and its plural, by rule; one of them may be no word."""
    return frozenset((word, f"{word}s", f"{word}es", word.removesuffix("s"), word.removesuffix("es")))


def split_words(text: str) -> list[str]:
    """``"A dog's long-haired pup."`` -> ``["a", "dog", "'s", "long-haired", "pup"]``: lower case, without punctuation.

    Words of any script keep their marks and inner joiners; composed and decomposed text (NFC, NFD) have the same words.
    """
    lower = compose(compose(text).lower())
    return WORD.findall(lower.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def plain_caption(caption: str) -> str:
    """A caption in the form that language models learn to write: ``"A dog 's ball ."`` -> ``"a dog's ball"``."""
    return " ".join(split_words(caption)).replace(" '", "'")


@dataclass(frozen=True)
class WordVocabulary:
    """``words[i]`` is the word of id i; the first four are ``<pad> <start> <end> <unk>``."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[:4] != SPECIALS:
            raise InputError(f"a vocabulary begins with {' '.join(SPECIALS)}")
        if len(set(self.words)) != len(self.words):
            raise InputError("the vocabulary contains a word twice")
        object.__setattr__(self, "_ids", {word: i for i, word in enumerate(self.words)})

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 5) -> WordVocabulary:
        """All words that occur at least ``min_count`` times, the most frequent first."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        kept = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
        return cls((*SPECIALS, *kept))

    def repetitions(self, token: int) -> frozenset[int]:
        """The tokens that a caption with ``token`` should not contain any more: a content word and its synonyms. None for a function word,
        a number or a special word."""
        if token < len(SPECIALS):
            return frozenset()
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return frozenset(ids[word] for word in same_things(self.words[token]) if word in ids)

    def word_token(self, word: str) -> int | None:
        """The token of a word; None if it is unknown."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return ids.get(word)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Ids of the words, without start and end."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return [ids.get(word, UNK) for word in split_words(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """A sentence with the right articles: ``"A dog's ball."``"""
        text = join_words(self.correct_articles(self.words[i] for i in text_ids(ids)))
        return f"{text[:1].upper()}{text[1:]}." if text else ""

    def join(self, ids: Sequence[int]) -> str:
        """``"a dog's ball"``: the words as they are."""
        return join_words(self.words[i] for i in text_ids(ids))

    def correct_articles(self, words: Iterable[str]) -> Iterator[str]:
        """``text.articles.with_right_articles`` if the vocabulary is English."""
        english = (ENGLISH_ARTICLES | {"the"}).issubset(self._ids)  # type: ignore[attr-defined]
        return with_right_articles(words) if english else iter(words)


def text_ids(ids: Iterable[int]) -> Iterator[int]:
    """Without padding, start and end."""
    return (i for i in ids if i not in (PAD, BOS, EOS))


def join_words(words: Iterable[str]) -> str:
    return "".join(spaced(words))


def spaced(words: Iterable[str]) -> Iterator[str]:
    """The words with a space before each but the first and those that begin with an apostrophe: together they are the text."""
    for place, word in enumerate(words):
        yield word if place == 0 or word.startswith("'") else f" {word}"


def read_vocabulary(path: Path) -> WordVocabulary:
    """Read a checkpoint's ``vocabulary.json``. Raises InputError: it cannot be read, or is not a vocabulary."""
    try:
        return WordVocabulary(tuple(map(str, read_json_object(path)["words"])))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a vocabulary: {error}") from None
