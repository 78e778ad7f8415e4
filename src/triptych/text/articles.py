"""``a`` or ``an``: the form of the English article that stands before a word.

A model that is rewarded by a metric learns to begin every caption with ``a``, and guidance can make ``elephant`` likely behind it. The
right form follows from the next word alone, so it is a matter of spelling and not of the model's choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

ENGLISH_ARTICLES = frozenset(("a", "an"))
VOWEL_SOUND = re.compile(
    r"(?!eu|ewe|on(?:e|ce|esie)\b|u(?:$|-|fo|k|ni(?![dmn])|r[ei]|s[abeiu]|t[ei]))[aeiou]|heir|honest|honou?r|hour"
    r"|(?!(?:mrs?|ms|st)\b)[fhlmnrsx][^aeiouy]*$|suv|x-?ray|xbox"  # spelt, letter by letter
)


def with_article(noun: str) -> str:
    """``dog`` -> ``a dog``, ``hour`` -> ``an hour``."""
    return f"{'an' if VOWEL_SOUND.match(noun.lower()) else 'a'} {noun}"


def with_right_articles(words: Iterable[str]) -> Iterator[str]:
    """Lower-case words, each ``a`` and ``an`` in the form that the word behind it takes; before a digit, a mark or an article it stays.

    A word is given as soon as it is certain, so an article together with the word behind it.
    """
    article = None
    for word in words:
        if article is not None:
            known = word[:1].isalpha() and word not in ENGLISH_ARTICLES
            yield ("an" if VOWEL_SOUND.match(word) else "a") if known else article
        article = word if word in ENGLISH_ARTICLES else None
        if article is None:
            yield word
    if article is not None:
        yield article
