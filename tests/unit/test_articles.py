"""``a`` and ``an`` in what Show, Attend and Tell writes."""

from collections.abc import Iterator

import pytest

from triptych.text.articles import with_right_articles
from triptych.text.vocabulary import SPECIALS, WordVocabulary


@pytest.mark.parametrize(
    ("article", "words"),
    [
        ("an", "airplane elephant igloo orange umbrella usher urban unidentified uninhabited hour honest heir only onion"),
        ("an", "suv mp3 rv x-ray xbox hd"),
        ("a", "dog zebra house yellow uniform unicycle university usual used urinal utensil ukulele u-turn one one-way"),
        ("a", "european ewe horse ufo usb onesie tv bmx dj mr st"),
    ],
)  # fmt: skip
def test_the_article_follows_from_the_next_word(article: str, words: str) -> None:
    for word in words.split():
        for written in ("a", "an"):
            assert list(with_right_articles(["the", written, word])) == ["the", article, word]


def test_what_has_no_sound_of_its_own_leaves_the_article() -> None:
    assert list(with_right_articles(["an", "8", "a", "'s", "a", "a"])) == ["an", "8", "a", "'s", "a", "a"]


def test_a_word_is_given_as_soon_as_it_is_certain() -> None:
    read: list[str] = []

    def words() -> Iterator[str]:
        for word in ("a", "elephant", "eats"):
            read.append(word)
            yield word

    right = with_right_articles(words())
    assert next(right) == "an" and read == ["a", "elephant"]
    assert next(right) == "elephant" and read == ["a", "elephant"]


def test_captions_have_the_right_articles_and_tokens_stay_as_they_were_written() -> None:
    english = WordVocabulary((*SPECIALS, "a", "an", "the", "elephant", "dog", "'s"))
    ids = [1, 4, 7, 9, 5, 8, 2]
    assert english.decode(ids) == "An elephant's a dog." and english.join(ids) == "a elephant's an dog"
    french = WordVocabulary((*SPECIALS, "a", "an", "il", "aime"))
    assert french.decode([6, 4, 7]) == "Il a aime."
